"""Files in every format and compression, and everything that can be wrong with them."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path

import fsspec
import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from test_data_sources import GOOD, collected, files, reasons

from common.errors import UserError
from data_pipeline.collect import plan
from data_pipeline.config import CollectionConfig
from data_pipeline.sources import opening, text_files
from data_pipeline.sources.config import TextFiles

COMPRESSIONS: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor(write_checksum=True).compress,
}


def json_lines(count: int) -> bytes:
    return b"".join(json.dumps({"text": f"{GOOD} {number}"}).encode() + b"\n" for number in range(count))


@pytest.mark.parametrize("suffix", [*COMPRESSIONS, ".other"])
def test_compression_is_known_by_content(tmp_path: Path, suffix: str) -> None:
    """Several members in a row, a wrong suffix and a right one."""
    compress = COMPRESSIONS.get(suffix, gzip.compress)
    name = f"a.jsonl{suffix}" if suffix != ".other" else "a.jsonl"
    (tmp_path / name).write_bytes(compress(json_lines(3)) + compress(json_lines(2)))
    documents, quarantined, _ = collected(files(tmp_path / name), tmp_path)
    assert [document.text for document in documents] == [f"{GOOD} {number}" for number in (0, 1, 2, 0, 1)]
    assert not quarantined and documents[4].origin.endswith(f"{name}#line5")


def test_a_suffix_may_lie_about_compression(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(json_lines(2))
    documents, quarantined, _ = collected(files(tmp_path / "a.jsonl.gz"), tmp_path)
    assert len(documents) == 2 and not quarantined


@pytest.mark.parametrize("suffix", COMPRESSIONS)
@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_what_comes_before_the_damage_is_kept(tmp_path: Path, suffix: str, damage: str) -> None:
    lines = b"".join(json.dumps({"text": GOOD + os.urandom(2000).hex()}).encode() + b"\n" for _ in range(400))
    content = COMPRESSIONS[suffix](lines[: len(lines) // 2]) + COMPRESSIONS[suffix](lines[len(lines) // 2 :])
    place = 3 * len(content) // 4
    content = content[:place] if damage == "truncated" else content[:place] + b"\x00\xff" * 40 + content[place + 80 :]
    (tmp_path / f"a.jsonl{suffix}").write_bytes(content)
    documents, quarantined, _ = collected(files(tmp_path / f"a.jsonl{suffix}"), tmp_path)
    assert 150 < len(documents) < 400
    assert quarantined and quarantined[-1]["reason"] in {"truncated_archive", "damaged_archive"}
    if damage == "truncated":
        assert reasons(quarantined)[-1] == (f"after line {len(documents)}", "truncated_archive")


def test_an_archive_that_expands_without_end_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "SMALL", 100_000)
    content = json_lines(2) + b"\n" * 20_000_000
    (tmp_path / "bomb.jsonl.bz2").write_bytes(bz2.compress(content))
    documents, quarantined, _ = collected(files(tmp_path / "bomb.jsonl.bz2"), tmp_path)
    assert len(documents) == 2 and [row["reason"] for row in quarantined] == ["expands_too_much"]


def test_csv(tmp_path: Path) -> None:
    rows = [
        b"\xef\xbb\xbfid,text",
        f'1,"{GOOD}, with a comma"'.encode(),
        b"2",
        f'3,"{GOOD}\nover two lines"'.encode(),
        b"4,caf\xe9 " + GOOD.encode(),
        b"5," + b"x" * 5000,
        b'6,"never closed',
        *(b"y", b"y"),
        f"7,{GOOD} 6".encode(),
        f"8,{GOOD}".encode(),
    ]
    (tmp_path / "a.csv").write_bytes(b"\r\n".join(rows))
    config = CollectionConfig(max_record_bytes=1500)
    documents, quarantined, _ = collected(files(tmp_path / "a.csv"), tmp_path, config)
    texts = [document.text.replace("\r", "") for document in documents]
    assert texts == [f"{GOOD}, with a comma", f"{GOOD}\nover two lines", f"{GOOD} 6", GOOD]
    assert reasons(quarantined) == [
        *(("line 3", "no_text"), ("line 6, byte 5", "invalid_utf8"), ("line 7", "line_too_long")),
        ("line 8", "invalid_row"),
        *(("line 9", "no_text"), ("line 10", "no_text")),
    ]


def test_a_table_without_the_column_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text(f"id\tbody\n1\t{GOOD}\n")
    pyarrow.parquet.write_table(pyarrow.table({"body": [GOOD]}), tmp_path / "b.parquet")
    documents, quarantined, _ = collected(files(tmp_path / "*.*"), tmp_path)
    assert not documents and reasons(quarantined) == [("whole file", "no_text_field")] * 2
    source = TextFiles(patterns=(str(tmp_path / "*.*"),), text_field="body")
    assert [document.text for document in collected(source, tmp_path / "again")[0]] == [GOOD, GOOD]


def test_parquet(tmp_path: Path) -> None:
    strings = [GOOD, None, "  ", f"{GOOD} é"]
    for name, array in {
        "plain": pyarrow.array(strings),
        "large": pyarrow.array(strings, pyarrow.large_string()),
        "dictionary": pyarrow.array(strings).dictionary_encode(),
        "numbers": pyarrow.array([1, 2, 3, 4]),
        "empty": pyarrow.array([], pyarrow.string()),
    }.items():
        table = pyarrow.table({"text": array, "other": pyarrow.nulls(len(array))})
        pyarrow.parquet.write_table(table, tmp_path / f"{name}.parquet", row_group_size=3)
    documents, quarantined, _ = collected(files(tmp_path / "*.parquet"), tmp_path)
    assert [document.text for document in documents] == [GOOD, f"{GOOD} é"] * 3
    assert sorted(row["reason"] for row in quarantined) == ["empty"] * 3 + ["no_text"] * 7


def test_damaged_parquet_costs_only_what_is_damaged(tmp_path: Path) -> None:
    table = pyarrow.table({"text": [f"{GOOD} {number}" for number in range(3000)]})
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(table, path, row_group_size=1000, compression="gzip")
    whole = path.read_bytes()
    group = pyarrow.parquet.ParquetFile(path).metadata.row_group(1).column(0)
    start = group.dictionary_page_offset or group.data_page_offset
    path.write_bytes(whole[:start] + b"\xff" * 200 + whole[start + 200 :])
    (tmp_path / "b.parquet").write_bytes(whole[:-40])
    documents, quarantined, _ = collected(files(tmp_path / "*.parquet"), tmp_path)
    assert [document.text.rpartition(" ")[2] for document in documents] == [
        *map(str, range(1000)),
        *map(str, range(2000, 3000)),
    ]
    assert [row["reason"] for row in quarantined] == ["damaged_parquet"] * 2
    assert {row["position"].partition(",")[0] for row in quarantined} == {"row group 1", "whole file"}


PAGE = """<html><head><meta charset="{charset}"><title>T</title></head><body><nav><a href="/">Home</a> Menu</nav>
<article><h1>A title</h1><p>{text}</p></article><footer>Imprint</footer></body></html>"""


def test_html(tmp_path: Path) -> None:
    text = " ".join(f"The café has {number} tables, and all of them are taken." for number in range(20))
    (tmp_path / "a.html").write_text(PAGE.format(charset="utf-8", text=text), encoding="utf-8")
    (tmp_path / "b.htm").write_text(PAGE.format(charset="iso-8859-1", text=text), encoding="iso-8859-1")
    (tmp_path / "c.html").write_text(PAGE.format(charset="iso-8859-1", text=text), encoding="utf-8")  # it lies
    (tmp_path / "empty.html").write_text("<html></html>")
    (tmp_path / "deep.html").write_text("<div>" * 100_000 + GOOD)
    documents, quarantined, _ = collected(files(tmp_path / "*.htm*"), tmp_path)
    by_name = {Path(document.origin).name: document.text for document in documents}
    for name in ("a.html", "b.htm", "c.html"):
        assert "The café has 19 tables" in by_name[name] and "Menu" not in by_name[name]
    assert len(by_name) + len(quarantined) == 5 and "empty.html" not in by_name


def test_remote_files_go_through_fsspec(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/corpus/a.jsonl.gz", gzip.compress(json_lines(2)))
    memory.pipe("/corpus/deeper/b.txt", GOOD.encode())
    source = TextFiles(patterns=("memory://corpus/**/*.*",))
    documents, _, _ = collected(source, tmp_path)
    assert sorted(document.origin for document in documents) == [
        *("memory:///corpus/a.jsonl.gz#line1", "memory:///corpus/a.jsonl.gz#line2"),
        "memory:///corpus/deeper/b.txt#partline1",
    ]
    before = [part.state for part in plan([source], CollectionConfig(), tmp_path)]
    memory.pipe("/corpus/deeper/b.txt", f"{GOOD} {GOOD}".encode())
    assert [part.state for part in plan([source], CollectionConfig(), tmp_path)] != before
    with pytest.raises(UserError, match="no file matches 'memory://nowhere"):
        collected(TextFiles(patterns=("memory://nowhere/a.txt",)), tmp_path)
    with pytest.raises(UserError, match="cannot look for nothing:"):
        collected(TextFiles(patterns=("nothing://a",)), tmp_path)


def test_a_missing_package_is_named_before_anything_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.html").write_text("<html></html>")
    monkeypatch.setitem(__import__("sys").modules, "trafilatura", None)
    with pytest.raises(UserError, match=r"needs the trafilatura package: pip install -e '.\[data\]'"):
        text_files.plan(files(tmp_path / "a.html"), CollectionConfig(), tmp_path)


def test_any_file_name_can_be_recorded(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    names = [b"line\nbreak.txt", b"latin-\xe9.txt", "ünï.txt".encode()]
    for name in names:
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_text(GOOD)
    (folder / "loop").symlink_to(folder)
    documents, quarantined, _ = collected(files(folder / "**" / "*.txt"), tmp_path)
    assert len({document.origin for document in documents}) == len(documents) >= 3 and not quarantined
    assert all(document.text == GOOD for document in documents)


def test_a_file_that_vanishes_costs_only_itself(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.txt").write_text(GOOD)
    source = files(tmp_path / "*.txt")
    ((items, _),) = text_files.plan(source, CollectionConfig(), tmp_path)
    (tmp_path / "b.txt").unlink()
    found = list(text_files.read(source, 0, items, CollectionConfig()))
    assert [getattr(item, "reason", "read") for item in found] == ["read", "unreadable_file", "read"]
