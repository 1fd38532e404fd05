"""Our own tasks for the harness, as a directory of YAML and JSON lines: made from a run's validation split and test
files, or generated. What it holds can be used without us: `lm_eval --include_path DIR --tasks mini_cloze`."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from common.errors import UserError
from common.files import atomic_write, read_json_lines
from data_pipeline.shards import Dataset, TokenStream
from data_pipeline.tokenizer import Tokenizer
from evaluation.harness.minimal_pairs import Language, minimal_pairs

TEMPLATES = Path(__file__).parents[1] / "tasks"
LANGUAGES: tuple[Language, ...] = ("en", "es")
_FEWEST_WORDS, _MOST_WORDS = 25, 60  # of a passage whose last word is asked for
_DOCUMENTS_A_PASSAGE = 4  # because not every one has a passage
_LAST_WORD = re.compile(r"\s([^\W\d_]{3,})[.!?]")  # of a sentence


@dataclass(frozen=True)
class Sources:
    """What tasks are made from."""

    tokenizer: Tokenizer
    dataset: Dataset | None = None
    """For perplexity and cloze: the data whose validation split is held out."""
    verses: Path | None = None
    """For translation: the test.jsonl that `python -m data_pipeline` wrote."""
    limit: int = 400
    """Most documents, passages or verses of a task, drawn from all of them; and pairs of each kind."""
    seed: int = 0


@dataclass
class TaskFiles:
    """Which tasks there are, by the name or tag that they are asked for by, and why others are not."""

    tags: dict[str, list[str]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def known(self) -> list[str]:
        """Every name that one of ours could be asked for by."""
        names = [name for names in self.tags.values() for name in names]
        return sorted({*self.tags, *names, *self.missing})


def write_tasks(directory: Path, sources: Sources) -> TaskFiles:
    """Write into `directory` every task that there is data for: NAME.yaml and NAME.jsonl.

    Raises:
        UserError: the data are damaged.
    """
    files = TaskFiles()
    documents = list(validation_documents(sources)) if sources.dataset is not None else []
    for name, tag, rows in _tasks(sources, documents):
        found = list(rows)
        if not found:
            files.missing[name] = _why_missing(tag)
            continue
        path = directory.resolve() / f"{name}.jsonl"
        template = (TEMPLATES / f"{name}.yaml").read_text(encoding="utf-8")
        with atomic_write(path) as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in found)
        with atomic_write(path.with_suffix(".yaml")) as file:
            file.write(f"{template}dataset_kwargs:\n  data_files:\n    test: {json.dumps(str(path))}\n")
        files.tags.setdefault(tag, []).append(name)
    return files


def _tasks(sources: Sources, documents: list[tuple[str, str]]) -> Iterator[tuple[str, str, Iterable[dict[str, Any]]]]:
    """Name, tag and rows of each task."""
    chosen = drawn(documents, sources.limit, sources.seed)
    yield "mini_perplexity", "mini_perplexity", [{"text": text, "language": language} for text, language in chosen]
    for language in LANGUAGES:
        clozes = list(passages(documents, language))
        yield f"mini_cloze_{language}", "mini_cloze", drawn(clozes, sources.limit, sources.seed)
        yield f"mini_pairs_{language}", "mini_pairs", map(asdict, minimal_pairs(language, sources.limit, sources.seed))
    yield "mini_translation", "mini_translation", _verses(sources)


def _why_missing(tag: str) -> str:
    if tag == "mini_translation":
        return "no verses: make them with python -m data_pipeline configs/data/translation_es_en.py"
    return "no held-out document suits: name curated data made with the run's tokenizer with --data DIR"


def validation_documents(sources: Sources) -> Iterator[tuple[str, str]]:
    """Text and language ("" where it is not known) of documents of the validation split, four times as many as wanted.

    Raises:
        UserError: the data were made with another tokenizer.
    """
    dataset = sources.dataset
    assert dataset is not None
    if dataset.tokenizer_sha256 != sources.tokenizer.sha256:
        raise UserError(f"the data in {dataset.directory} were made with another tokenizer than the run's; see --data")
    stream = dataset.split("val")
    special = set(sources.tokenizer.special_ids.values())
    documents = stream.documents()
    rows = list(zip(documents, _languages(stream, documents), strict=True))
    for row, language in drawn(rows, _DOCUMENTS_A_PASSAGE * sources.limit, sources.seed):
        ids = [token for token in stream.read(int(row["start"]), int(row["tokens"])).tolist() if token not in special]
        yield sources.tokenizer.decode(ids), language


def _languages(stream: TokenStream, documents: np.ndarray) -> Iterator[str]:
    """Of every document, "" where it is not known. Each file of records is read once, whatever is drawn later."""
    firsts = np.searchsorted(documents["start"], stream.starts)  # document of every shard, and the end
    for shard, count in zip(stream.shards, np.diff(firsts).tolist(), strict=True):
        records, found = shard.path.with_suffix(".documents.jsonl"), []
        if records.is_file():
            with open(records, encoding="utf-8") as lines:
                found = [str(json.loads(line).get("language", "")) for line in islice(lines, count)]
        yield from found + [""] * (count - len(found))


def passages(documents: Iterable[tuple[str, str]], language: Language) -> Iterator[dict[str, Any]]:
    """The beginning of each document in that language up to a last word, which is to be found; one a document."""
    for text, found in documents:
        if found != language:
            continue
        for match in _LAST_WORD.finditer(text):
            words = len(text[: match.start(1)].split())
            if words >= _FEWEST_WORDS:
                if words <= _MOST_WORDS:
                    yield {"context": text[: match.start()].rstrip(), "word": match[1], "language": language}
                break


def _verses(sources: Sources) -> list[dict[str, Any]]:
    if sources.verses is None or not sources.verses.is_file():
        return []
    return drawn(read_json_lines(sources.verses), sources.limit, sources.seed)


def drawn(rows: list[Any], limit: int | None, seed: int) -> list[Any]:
    """At most `limit` of the rows, in their order."""
    if limit is None or len(rows) <= limit:
        return rows
    places = random.Random(seed).sample(range(len(rows)), limit)
    return [rows[place] for place in sorted(places)]
