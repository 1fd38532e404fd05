"""A finished dataset is checked from scratch: every kind of fault that is planted in one is found."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_data_helpers import prose, replace_words, small_config, words, write_jsonl

from common.errors import UserError
from common.files import read_json, sha256_of, write_json
from data_pipeline.config import CollectionConfig, DecontaminationConfig, DeduplicationConfig, SplitConfig
from data_pipeline.manifest import fingerprint_of
from data_pipeline.pipeline import curate
from data_pipeline.shards import Dataset, ShardWriter
from data_pipeline.sources.config import TextFiles
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.verify import main, summary, verify

EXAM = " ".join(words(901, 40))
COMMON = " ".join(words(902, 20))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Books in pieces, short texts of which some hold evaluation texts, repeated paragraphs: what has to be right."""
    folder = tmp_path_factory.mktemp("published")
    for book in range(6):
        paragraphs = [prose(1000 * book + part, 60) for part in range(12)]
        (folder / f"book{book}.txt").write_text("\n\n".join(paragraphs), encoding="utf-8")
    texts = [prose(seed) for seed in range(70)] + [f"{prose(70 + number)}\n\n{prose(75, 30)}" for number in range(3)]
    texts += [f"{prose(90 + number, 60)} {EXAM}. {prose(95 + number, 60)}" for number in range(2)]
    texts += [f"{prose(100 + number, 60)} {COMMON}. {prose(200 + number, 60)}" for number in range(14)]
    config = small_config(
        write_jsonl(folder / "texts.jsonl", texts),
        deduplication=DeduplicationConfig(paragraphs=True),
        decontamination=DecontaminationConfig((str(write_jsonl(folder / "exam.jsonl", [EXAM, COMMON])),)),
        split=SplitConfig(validation_fraction=0.15),
        collection=CollectionConfig(max_document_bytes=1500),
    )
    books = TextFiles(patterns=(str(folder / "*.txt"),), name="books", licence="public domain")
    curate(replace(config, sources=(*config.sources, books)), folder / "data", workers=1)
    return folder / "data"


@pytest.fixture
def copy(published: Path, tmp_path: Path) -> Path:
    """To spoil. Not with its stages: there the shards are the same files."""
    return shutil.copytree(published, tmp_path / "data", ignore=lambda *_: ["stages"])


@dataclass
class Entry:
    split: str
    ids: np.ndarray
    size: int
    source: int
    provenance: dict[str, Any]


class Contents:
    """All documents of a dataset, to be changed and published again with everything else as it should be."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.dataset = directory, Dataset(directory)
        self.tokenizer = Tokenizer(self.dataset.tokenizer_path)
        self.entries: list[Entry] = []
        for split in ("train", "val"):
            stream = self.dataset.split(split)
            for number, record in enumerate(stream.documents()):
                ids = stream.read(int(record["start"]), int(record["tokens"]))
                provenance = stream.provenance(number)
                self.entries.append(Entry(split, ids, int(record["bytes"]), int(record["source"]), provenance))

    def of(self, split: str, source: int = 0) -> list[Entry]:
        return [entry for entry in self.entries if entry.split == split and entry.source == source]

    def place(self, entry: Entry) -> int:
        """The number of a training document in its shard."""
        return [id(each) for each in self.entries if each.split == "train"].index(id(entry))

    def text(self, entry: Entry) -> str:
        return self.tokenizer.decode(entry.ids[:-1].tolist())

    def add(self, text: str, split: str, like: Entry) -> None:
        ids = np.array([*self.tokenizer.encode(text), self.dataset.eos_id])
        self.entries.append(Entry(split, ids, len(text.encode()), like.source, {**like.provenance, "id": "planted"}))

    def publish(self) -> None:
        for pattern in ("train_*", "val_*"):
            for path in self.directory.glob(pattern):
                path.unlink()
        manifest = {**self.dataset.manifest, "stages": [], "licences": {}}
        manifest["files"] = {Tokenizer.file_name: manifest["files"][Tokenizer.file_name]}
        for source in manifest["sources"]:
            source["splits"] = {split: dict.fromkeys(("documents", "bytes", "tokens"), 0) for split in ("train", "val")}
        for split in ("train", "val"):
            chosen = [entry for entry in self.entries if entry.split == split]
            with ShardWriter(self.directory, f"{split}_00000", np.dtype(manifest["dtype"])) as writer:
                for entry in chosen:
                    writer.add(entry.ids, entry.size, entry.source, entry.provenance)
            for entry in chosen:
                licence = entry.provenance["licence"]
                manifest["licences"][licence] = manifest["licences"].get(licence, 0) + 1
                of_source = manifest["sources"][entry.source]["splits"][split]
                for what, count in (("documents", 1), ("bytes", entry.size), ("tokens", len(entry.ids))):
                    of_source[what] += count
            for path in self.directory.glob(f"{split}_00000.*"):
                manifest["files"][path.name] = sha256_of(path)
            total = {"documents": len(chosen), "tokens": writer.tokens}
            shard = {"file": f"{split}_00000.bin", **total, "sha256": manifest["files"][f"{split}_00000.bin"]}
            size = sum(entry.size for entry in chosen)
            manifest["splits"][split] = {**total, "bytes": size, "shards": [shard]}
        manifest["fingerprint"] = fingerprint_of(manifest["files"])
        write_json(self.directory / "manifest.json", manifest)


def wrong(directory: Path) -> dict[str, list[str]]:
    """What each check finds, of those that find anything."""
    return {check.name: check.problems for check in verify(directory) if check.wrong}


def rehash(directory: Path) -> None:
    """Let the manifest vouch for the files as they are."""
    manifest = read_json(directory / "manifest.json")
    manifest["files"] = {name: sha256_of(directory / name) for name in manifest["files"]}
    for split in manifest["splits"].values():
        for shard in split["shards"]:
            shard["sha256"] = manifest["files"][shard["file"]]
    manifest["tokenizer"]["sha256"] = manifest["files"][Tokenizer.file_name]
    manifest["fingerprint"] = fingerprint_of(manifest["files"])
    write_json(directory / "manifest.json", manifest)


def test_a_sound_dataset_keeps_all_promises(published: Path, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(published)])
    lines = capsys.readouterr().out.splitlines()
    names = ["files", "counts", "tokens", "exact duplicates", "leaks", "groups", "decontamination"]
    assert [line[:18].strip() for line in lines] == names and all(line.endswith(" ok") for line in lines)
    assert "2 evaluation texts, 8 common n-grams ignored" in lines[-1]
    assert not wrong(copy)  # also without the stages
    Contents(copy).publish()
    assert not wrong(copy)


def set_token(directory: Path, position: int, value: int) -> None:
    shard = directory / "train_00000.bin"
    ids = np.fromfile(shard, "<u2")
    ids[position] = value
    ids.tofile(shard)


def swap(directory: Path, one: str, other: str) -> None:
    (directory / one).rename(directory / "aside")
    (directory / other).rename(directory / one)
    (directory / "aside").rename(directory / other)


def edit_manifest(directory: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    manifest = read_json(directory / "manifest.json")
    change(manifest)
    write_json(directory / "manifest.json", manifest)


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:-size])


def edit_index(directory: Path, field: str, change: int) -> None:
    path = directory / "train_00000.index.npy"
    index = np.load(path)
    index[field][3] += change
    np.save(path, index)


FAULTS: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "another token": (lambda d: set_token(d, 5, 300), "files", "train_00000.bin is not what was published"),
    "no shard": (lambda d: (d / "val_00000.bin").unlink(), "files", "val_00000.bin is missing"),
    "no index": (lambda d: (d / "val_00000.index.npy").unlink(), "files", "val_00000.bin cannot be read to its end"),
    "stray": (lambda d: (d / "train_00009.bin").touch(), "files", "train_00009.bin is not listed"),
    "tokenizer": (lambda d: (d / Tokenizer.file_name).write_bytes(b"?"), "files", "tokenizer.model is not a "),
    "fingerprint": (
        lambda d: edit_manifest(d, lambda m: m.update(fingerprint="0")), "files", "fingerprint is not that"
    ),
    "vocabulary": (lambda d: edit_manifest(d, lambda m: m.update(vocab_size=513)), "files", "are not those of the tok"),
    "split count": (
        lambda d: edit_manifest(d, lambda m: m["splits"]["val"].update(bytes=7)), "counts", "split val bytes: "
    ),
    "source count": (
        lambda d: edit_manifest(d, lambda m: m["sources"][1]["splits"]["train"].update(tokens=7)),
        "counts", "source books train tokens: ",
    ),
    "shard count": (
        lambda d: edit_manifest(d, lambda m: m["splits"]["train"]["shards"][0].update(documents=7)),
        "counts", "shard train_00000 documents: ",
    ),
    "licence": (lambda d: edit_manifest(d, lambda m: m["licences"].update(MIT=1)), "counts", "licence MIT: 0 found, 1"),
    "stage": (
        lambda d: edit_manifest(d, lambda m: m["stages"][2]["dropped"].update(x=1)), "counts", "stage filter: "
    ),
    "last stage": (
        lambda d: edit_manifest(d, lambda m: m["stages"][-1]["dropped"].update(x=-1) or m["stages"][-1].update(
            documents_out=m["stages"][-1]["documents_out"] + 1)),
        "counts", "came out of the last stage",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_changed_file_is_found(copy: Path, fault: str) -> None:
    spoil, check, message = FAULTS[fault]
    spoil(copy)
    found = wrong(copy)
    assert any(message in problem for problem in found[check]), found


REHASHED: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "id outside the vocabulary": (lambda d: set_token(d, 5, 60_000), "tokens", "document 0 has the id 60000"),
    "end inside": (lambda d: set_token(d, 5, 2), "tokens", "document 0 has the end-of-text id 2 inside"),
    "no end": (lambda d: set_token(d, -1, 300), "tokens", "does not end with the end-of-text id 2"),
    "another text": (lambda d: set_token(d, 5, 2 + 4 + 1), "tokens", "document 0 decodes to "),
    "swapped splits": (lambda d: swap(d, "train_00000.bin", "val_00000.bin"), "files", "do not follow one another"),
    "swapped provenance": (
        lambda d: swap(d, "train_00000.documents.jsonl", "val_00000.documents.jsonl"),
        "files",
        "more lines than",
    ),
    "cut provenance": (lambda d: cut(d / "train_00000.documents.jsonl", 40), "files", "cannot be read to its end"),
    "cut shard": (lambda d: cut(d / "train_00000.bin", 2), "files", "do not follow one another"),
    "cut index": (lambda d: cut(d / "train_00000.index.npy", 7), "files", "cannot be read to its end"),
    "wrong start": (lambda d: edit_index(d, "start", 1), "files", "do not follow one another"),
    "wrong length": (lambda d: edit_index(d, "tokens", 2_000_000_000), "files", "document 3 would end after it"),
    "wrong size": (lambda d: edit_index(d, "bytes", 1), "tokens", "train_00000 document 3 decodes to "),
    "wrong source": (lambda d: edit_index(d, "source", 2), "counts", "train_00000 document 3 is of source None"),
}


@pytest.mark.parametrize("fault", REHASHED)
def test_a_fault_that_the_manifest_vouches_for_is_found(copy: Path, fault: str) -> None:
    spoil, check, message = REHASHED[fault]
    spoil(copy)
    rehash(copy)
    found = wrong(copy)
    assert any(message in problem for problem in found[check]), found
    assert not any("sha256" in problem for problem in found.get("files", []))


def test_a_held_out_document_in_the_training_split_is_found(copy: Path) -> None:
    contents = Contents(copy)
    entry = contents.of("val")[0]
    contents.entries.append(replace(entry, split="train", provenance={**entry.provenance, "id": "planted"}))
    contents.publish()
    found = wrong(copy)
    assert found.keys() == {"leaks", "exact duplicates"} and len(found["leaks"]) == 1
    assert "is held out and shares 100% of its words with train_00000 document " in found["leaks"][0]


def test_a_document_that_resembles_a_held_out_one_is_found(copy: Path) -> None:
    contents = Contents(copy)
    entry = contents.of("val")[0]
    near = replace_words(contents.text(entry), 5, 5)
    contents.add(near, "train", entry)
    contents.add("\n\n".join((prose(7001, 300), contents.text(contents.of("val")[1]))), "train", entry)  # contains one
    contents.publish()
    found = wrong(copy)
    assert found.keys() == {"leaks"} and len(found["leaks"]) == 2


def test_a_document_that_resembles_one_less_than_the_threshold_is_none(copy: Path) -> None:
    contents = Contents(copy)
    entry = contents.of("val")[0]
    contents.add(replace_words(contents.text(entry), 5, 20), "train", entry)
    contents.publish()
    assert not wrong(copy)


def test_the_same_text_twice_is_found(copy: Path) -> None:
    contents = Contents(copy)
    entry = contents.of("train")[3]
    contents.add(contents.text(entry).upper().replace(" ", "\n", 3), "train", entry)
    contents.publish()
    found = wrong(copy)
    assert found.keys() == {"exact duplicates"}
    assert found["exact duplicates"][0].endswith(f" has the text of train_00000 document {contents.place(entry)}")


def test_a_book_on_both_sides_is_found(copy: Path) -> None:
    contents = Contents(copy)
    contents.of("train", source=1)[0].split = "val"
    contents.publish()
    found = wrong(copy)
    assert found.keys() == {"groups"} and "book" in found["groups"][0]


def test_a_repository_of_two_sources_on_both_sides_is_found(copy: Path) -> None:
    contents = Contents(copy)
    for entry in (contents.of("train")[0], contents.of("val", source=1)[0]):
        entry.provenance["group"] = "one repository"
    contents.publish()
    found = wrong(copy)
    assert found.keys() == {"groups"} and "one repository" in found["groups"][0]


def test_a_source_of_one_text_may_be_on_both_sides(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("\n\n".join(prose(seed, 60) for seed in range(150)))
    config = small_config(collection=CollectionConfig(max_document_bytes=2000))
    config = replace(config, sources=(TextFiles(patterns=(str(tmp_path / "book.txt"),)),))
    manifest = curate(config, tmp_path / "data", workers=1)
    assert min(manifest["splits"][name]["documents"] for name in ("train", "val")) > 1
    assert not wrong(tmp_path / "data")


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_evaluation_text_is_found(copy: Path, split: str) -> None:
    contents = Contents(copy)
    text = f"{prose(8000, 60)} {' '.join(EXAM.upper().split()[5:18])}, {prose(8001, 60)}"
    contents.add(text, split, contents.of("train")[0])
    contents.publish()
    found = wrong(copy)
    assert found.keys() == {"decontamination"} and "exam.jsonl#line1" in found["decontamination"][0]


def test_evaluation_texts_that_are_gone_leave_a_promise_open(copy: Path) -> None:
    edit_manifest(copy, lambda m: m["config"]["decontamination"].update(patterns=["nowhere/*.jsonl"]))
    assert "no file matches" in wrong(copy)["decontamination"][0]


def test_the_command_says_what_is_wrong(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    contents = Contents(copy)
    entry = contents.of("train")[0]
    for _ in range(15):
        contents.add(contents.text(entry), "train", entry)
    contents.publish()
    with pytest.raises(SystemExit, match="1"):
        main([str(copy)])
    output = capsys.readouterr().out
    assert "15 wrong" in output and output.count("exact duplicates: train_00000 document") == 10
    assert "exact duplicates: and 5 more" in output and summary(verify(copy)) in output


def test_what_is_no_dataset_is_an_error(tmp_path: Path, copy: Path) -> None:
    with pytest.raises(UserError, match="no curated data"):
        verify(tmp_path / "nothing")
    edit_manifest(copy, lambda m: m.pop("config"))
    with pytest.raises(UserError, match=r"manifest.json is damaged \(KeyError\('config'\)\)"):
        verify(copy)
    assert json.loads((copy / "manifest.json").read_text())
