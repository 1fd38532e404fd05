"""Datasets of the Hugging Face hub, streamed with the `datasets` package, or the same formats in a local directory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from common.errors import UserError
from data_pipeline.config import CollectionConfig
from data_pipeline.documents import Document, Quarantined, Skipped
from data_pipeline.sources.config import HubDataset


def plan(source: HubDataset, config: CollectionConfig, downloads: Path) -> list[tuple[tuple[Any, ...], str]]:
    """One part: a stream has no cheap way to begin in the middle.

    Raises:
        UserError: the `datasets` package is not installed, or a local directory holds nothing to read.
    """
    _datasets_package()
    files = _local_files(source)
    state = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return [((), repr(state))]


def read(
    source: HubDataset, number: int, items: tuple[Any, ...], config: CollectionConfig
) -> Iterator[Document | Quarantined | Skipped]:
    """Documents until `max_bytes` of text were taken, in the order of the dataset."""
    taken = 0
    try:
        for position, row in enumerate(_rows(source)):
            record = _record(source, number, position, row)
            yield record
            if isinstance(record, Document):
                taken += len(record.text.encode("utf-8", "replace"))
                if taken >= source.max_bytes:
                    return
    except UserError:
        raise
    except Exception as error:  # the package raises many kinds for a missing network, a gate or a wrong name
        raise UserError(
            f"source {source.name!r}: reading {source.path} failed: {type(error).__name__}: {error}. Check the "
            "network, the names of subset, split and revision, and whether the dataset asks you to log in first"
        ) from error


def _record(source: HubDataset, number: int, position: int, row: dict[str, Any]) -> Document | Quarantined | Skipped:
    """The row as a document; counted and not listed where its licence is not an accepted one."""
    if source.text_column not in row:
        raise UserError(
            f"source {source.name!r}: {source.path} has no column {source.text_column!r}; it has {', '.join(row)}"
        )
    text, where = row[source.text_column], f"row {position}"
    if not isinstance(text, str):
        return Quarantined(number, source.path, where, "no_text")
    licence = str(row.get(source.licence_column) or "unknown") if source.licence_column else source.licence
    if source.licence_column and source.accepted_licences and licence not in source.accepted_licences:
        return Skipped("refused_licence")
    title = row.get(source.title_column) if source.title_column else None
    origin = row.get(source.origin_column) if source.origin_column else None
    return Document(
        id=f"{source.name}/{position}",
        source=number,
        kind=source.kind,
        origin=str(origin or f"{source.path}#{position}"),
        licence=licence,
        revision=source.revision or "",
        text=f"{title}\n\n{text}" if title else text,
    )


def _rows(source: HubDataset) -> Iterable[dict[str, Any]]:
    datasets = _datasets_package()
    files = _local_files(source)
    if files:
        kind = "parquet" if files[0].suffix == ".parquet" else "json"
        names = [str(path) for path in files]
        rows: Iterable[dict[str, Any]] = datasets.load_dataset(kind, data_files=names, split="train", streaming=True)
        return rows
    return datasets.load_dataset(
        source.path, source.subset, split=source.split, revision=source.revision, streaming=True
    )


def _local_files(source: HubDataset) -> list[Path]:
    directory = Path(source.path)
    if not directory.is_dir():
        return []
    for pattern in ("*.parquet", "*.jsonl"):
        files = sorted(directory.glob(pattern))
        if files:
            return files
    raise UserError(f"source {source.name!r}: directory {directory} holds no .parquet and no .jsonl file")


def _datasets_package() -> Any:
    try:
        import datasets
    except ImportError as error:
        raise UserError("a HubDataset source needs the datasets package: pip install -e '.[data]'") from error
    return datasets
