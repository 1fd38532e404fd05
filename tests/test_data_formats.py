"""Files in every format and compression, and everything that can be wrong with them."""

from __future__ import annotations

import bz2
import contextlib
import csv
import gzip
import io
import json
import lzma
import os
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

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
from data_pipeline.sources.members import members

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


def zstandard_bomb() -> bytes:
    zeros = zstandard.ZstdCompressor().compressobj()
    return b"".join(zeros.compress(bytes(1_000_000)) for _ in range(100)) + zeros.flush()


def read_all(file: io.RawIOBase | io.BufferedReader) -> int:
    return sum(len(data) for data in iter(lambda: file.read(8192) or b"", b""))


@pytest.mark.parametrize("opened", [opening.decompressed, lambda file: next(iter(members(file) or ()))])
def test_little_of_a_zstandard_bomb_is_ever_in_memory(opened: Callable[[io.BytesIO], Any]) -> None:
    bomb = zstandard_bomb()
    assert len(bomb) < 10_000
    tracemalloc.start()
    try:
        file = opened(io.BytesIO(bomb))
        with contextlib.suppress(opening.ArchiveError):
            assert read_all(file) < 30_000_000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 30_000_000


def test_a_text_may_begin_like_the_name_of_a_compression(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("BZhang is a surname.")
    (tmp_path / "b.txt").write_bytes(bz2.compress(b""))
    documents, quarantined, _ = collected(files(tmp_path / "*.txt"), tmp_path)
    assert [document.text for document in documents] == ["BZhang is a surname."]
    assert [row["reason"] for row in quarantined] == ["empty"]


def test_a_file_that_is_called_like_a_pattern_is_found(tmp_path: Path) -> None:
    (tmp_path / "report[1].txt").write_text(GOOD)
    (tmp_path / "report1.txt").write_text("another")
    documents, _, _ = collected(files(tmp_path / "report[1].txt"), tmp_path)
    assert [document.text for document in documents] == [GOOD]
    fsspec.filesystem("memory").pipe("/odd/report[1].txt", GOOD.encode())
    documents, _, _ = collected(TextFiles(patterns=("memory://odd/report[1].txt",)), tmp_path / "remote")
    assert [document.text for document in documents] == [GOOD]


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
        *(("line 3", "no_text"), ("line 6", "invalid_utf8"), ("line 7", "line_too_long")),
        ("line 8", "invalid_row"),
        *(("line 9", "no_text"), ("line 10", "no_text")),
    ]


def test_a_quotation_mark_within_a_field_of_csv_is_text(tmp_path: Path) -> None:
    rows = ['a 5" disk', "second", "third", 'a 3" disk', "fifth"]
    (tmp_path / "a.csv").write_text("\n".join(["text", *rows]))
    documents, quarantined, _ = collected(files(tmp_path / "a.csv"), tmp_path)
    assert [document.text for document in documents] == rows and not quarantined


def test_a_row_of_csv_that_cannot_be_read_costs_only_itself(tmp_path: Path) -> None:
    rows = ["id,text", "1,stray\rreturn", "2,first", '3,"never closed', '4,"second"', '5,"closed" too early', "6,third"]
    (tmp_path / "a.csv").write_bytes("\n".join(rows).encode())
    (tmp_path / "b.csv").write_bytes(b"text\rone\rtwo\r")
    documents, quarantined, _ = collected(files(tmp_path / "*.csv"), tmp_path)
    assert [document.text for document in documents] == ["first", "second", "third"]
    assert reasons(quarantined) == [(f"line {number}", "invalid_row") for number in (2, 4, 6, 1)]


def test_bytes_that_are_not_utf8_cost_only_the_row_whose_text_they_stand_in(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b'name,text\ncaf\xe9,first\n2,"second\ncaf\xe9, with a comma\n"\n3,third\n')
    documents, quarantined, _ = collected(files(tmp_path / "a.csv"), tmp_path)
    assert [document.text for document in documents] == ["first", "third"]
    assert reasons(quarantined) == [("line 3", "invalid_utf8")]


def test_rows_that_are_never_closed_take_time_in_proportion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line of this file leaves a quotation mark open, wherever one begins to read."""
    given = [0]
    real = csv.reader

    def counting(lines: Iterable[str], **options: Any) -> Any:
        def counted() -> Iterator[str]:
            for line in lines:
                given[0] += 1
                yield line

        return real(counted(), **options)

    monkeypatch.setattr(csv, "reader", counting)
    (tmp_path / "a.csv").write_text("text\n" + 'x","y""\n' * 5000)
    _, quarantined, _ = collected(files(tmp_path / "a.csv"), tmp_path, CollectionConfig(max_record_bytes=2000))
    assert [row["reason"] for row in quarantined] == ["invalid_row"] * 5000
    assert given[0] < 5 * 5000


def test_lines_on_both_sides_of_a_bad_one_are_no_one_document(tmp_path: Path) -> None:
    text = "Le café est ouvert\nTout le monde entre\nL'été arrive\nBonjour"
    (tmp_path / "a.txt").write_text(text, encoding="latin-1")
    documents, quarantined, _ = collected(files(tmp_path / "a.txt"), tmp_path)
    assert [document.text for document in documents] == ["Tout le monde entre\n", "Bonjour"]
    assert [row["reason"] for row in quarantined] == ["invalid_utf8"] * 2


def test_utf16_is_read_in_every_format(tmp_path: Path) -> None:
    contents = {"a.csv": f"id,text\n1,{GOOD} \U0001f600\n", "b.jsonl": json.dumps({"text": GOOD}), "c.txt": GOOD}
    contents |= {"d.md": GOOD, "e.py": GOOD}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content.encode("utf-16"))
    (tmp_path / "f.txt.gz").write_bytes(gzip.compress(b"\xfe\xff" + (GOOD * 5000).encode("utf-16-be")))
    documents, quarantined, _ = collected(files(tmp_path / "*.*"), tmp_path)
    assert [document.text for document in documents[:5]] == [f"{GOOD} \U0001f600", *[GOOD] * 4]
    assert "".join(document.text for document in documents[5:]) == GOOD * 5000 and not quarantined
    (tmp_path / "torn.txt").write_bytes(f"{GOOD}\nend".encode("utf-16")[:-1])
    documents, quarantined, _ = collected(files(tmp_path / "torn.txt"), tmp_path / "torn")
    assert [document.text for document in documents] == [f"{GOOD}\n"]
    assert [row["reason"] for row in quarantined] == ["invalid_utf8"]


def test_a_file_that_gives_nothing_is_counted_as_empty(tmp_path: Path) -> None:
    for name, content in {"a.txt": " \n\n", "b.jsonl": "\n\n", "c.csv": "id,text\n", "d.py": "", "e.md": ""}.items():
        (tmp_path / name).write_text(content)
    documents, quarantined, counts = collected(files(tmp_path / "*.*"), tmp_path)
    assert not documents and counts.dropped == {"empty": 5}
    assert [Path(row["file"]).name for row in quarantined] == ["a.txt", "b.jsonl", "c.csv", "d.py", "e.md"]


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
    assert sorted(row["reason"] for row in quarantined) == ["empty"] * 4 + ["no_text"] * 7


def test_a_large_column_of_parquet_is_read_a_little_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [os.urandom(1000).hex() for _ in range(4000)]
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), tmp_path / "a.parquet", compression="none")
    largest = [0]

    class Counting(io.FileIO):
        def read(self, size: int | None = -1, /) -> bytes:
            data = super().read(-1 if size is None else size)
            largest[0] = max(largest[0], len(data))
            return data

    monkeypatch.setattr(text_files, "open_raw", Counting)
    documents, _, _ = collected(files(tmp_path / "a.parquet"), tmp_path)
    assert [document.text for document in documents] == texts and largest[0] < 4_000_000


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
