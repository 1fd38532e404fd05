"""What a curated dataset promises, checked document by document in plain Python.

The pipeline's arrays and hashes are not used: a regular expression finds the words, and sets and hashes are Python's
own. So a mistake made there is not made here again.
"""

from __future__ import annotations

import hashlib
import re
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.cli import from_dict
from common.errors import UserError
from data_pipeline.config import CleaningConfig, CollectionConfig, DecontaminationConfig
from data_pipeline.dedup.decontamination import COMMON
from data_pipeline.dedup.evaluation_texts import EvaluationArgument, evaluation_texts, plan
from data_pipeline.documents import PART_MARK, Document, read_rows

_REPORTED = 100  # problems of each check that are kept


@dataclass(frozen=True)
class Published:
    """A document as the shards hold it."""

    split: str  # "train" or "val"
    shard: str  # such as "train_00000"
    number: int  # in the shard
    source: int  # position in the manifest's `sources`
    byte_count: int  # that the index gives
    ids: np.ndarray  # with the end-of-text id, (tokens,)
    text: str  # decoded
    provenance: dict[str, Any]

    @property
    def place(self) -> str:
        return f"{self.shard} document {self.number}"


class Check:
    """One promise, and what was found against it."""

    name = ""

    def __init__(self) -> None:
        self.problems: list[str] = []  # the first of them
        self.wrong = 0  # number of all
        self.examined = ""

    def report(self, problem: str) -> None:
        self.wrong += 1
        if self.wrong <= _REPORTED:
            self.problems.append(problem)


class DocumentCheck(Check, ABC):
    """Documents are added, those of the validation split first; what is wrong is known after `finish`."""

    @abstractmethod
    def add(self, document: Published) -> None: ...

    @abstractmethod
    def finish(self) -> None: ...


class Tokens(DocumentCheck):
    """Ids are in the vocabulary, documents end with the end-of-text id, and decode to as many bytes as indexed."""

    name = "tokens"

    def __init__(self, vocab_size: int, eos_id: int, exact: bool = True) -> None:
        """`exact`: texts come back from their ids unchanged; where they do not, their bytes are not compared."""
        super().__init__()
        self._vocab_size, self._eos_id, self._exact, self._count = vocab_size, eos_id, exact, 0

    def add(self, document: Published) -> None:
        ids, place = document.ids, document.place
        self._count += len(ids)
        if not len(ids) or ids[-1] != self._eos_id:
            self.report(f"{place} does not end with the end-of-text id {self._eos_id}")
        if (ids[:-1] == self._eos_id).any():
            self.report(f"{place} has the end-of-text id {self._eos_id} inside")
        if len(ids) and ids.max() >= self._vocab_size:
            self.report(f"{place} has the id {ids.max()}, but the vocabulary ends at {self._vocab_size - 1}")
        size = len(document.text.encode("utf-8", "surrogatepass"))
        if self._exact and size != document.byte_count:
            self.report(f"{place} decodes to {size} bytes; its index says {document.byte_count}")

    def finish(self) -> None:
        changed = "" if self._exact else "; texts not compared: the tokenizer changes them"
        self.examined = f"{self._count:,} tokens{changed}"


class Totals(DocumentCheck):
    """Documents, bytes and tokens are those of the manifest, by source, split and shard; and so are licences."""

    name = "counts"

    def __init__(self, manifest: dict[str, Any]) -> None:
        super().__init__()
        self._manifest = manifest
        self._found: Counter[tuple[object, ...]] = Counter()

    def add(self, document: Published) -> None:
        source, split, place = document.source, document.split, document.place
        names = [each["name"] for each in self._manifest["sources"]]
        name = names[source] if source < len(names) else None
        if name is None or document.provenance.get("source") != name:
            said = document.provenance.get("source")
            self.report(f"{place} is of source {name!r} by its index, of {said!r} by its provenance")
        for what, count in (("documents", 1), ("bytes", document.byte_count), ("tokens", len(document.ids))):
            self._found["split", split, what] += count
            self._found["source", name, split, what] += count
            if what != "bytes":
                self._found["shard", document.shard, what] += count
        self._found["licence", document.provenance.get("licence")] += 1

    def finish(self) -> None:
        expected = dict(self._expected())
        for key in sorted(expected.keys() | self._found.keys(), key=str):
            found, said = self._found[key], expected.get(key, 0)
            if found != said:
                self.report(f"{' '.join(map(str, key))}: {found:,} found, {said:,} in manifest.json")
        documents = sum(self._found["split", split, "documents"] for split in self._manifest["splits"])
        before: int | None = None
        for stage in self._manifest.get("stages", []):
            if stage["documents_in"] != stage["documents_out"] + sum(stage["dropped"].values()):
                self.report(f"stage {stage['name']}: documents in are not those out and those dropped")
            if before not in (None, stage["documents_in"]):
                self.report(f"stage {stage['name']}: {stage['documents_in']:,} in, but {before:,} came out before")
            before = stage["documents_out"]
        if before not in (None, documents):
            self.report(f"{documents:,} documents found, but {before:,} came out of the last stage")
        self.examined = f"{documents:,} documents"

    def _expected(self) -> Iterator[tuple[tuple[object, ...], int]]:
        for split, entry in self._manifest["splits"].items():
            for what in ("documents", "bytes", "tokens"):
                yield ("split", split, what), entry[what]
                for source in self._manifest["sources"]:
                    yield ("source", source["name"], split, what), source["splits"][split][what]
            for shard in entry["shards"]:
                for what in ("documents", "tokens"):
                    yield ("shard", Path(shard["file"]).stem, what), shard[what]
        for licence, count in self._manifest.get("licences", {}).items():
            yield ("licence", licence), count


class ExactDuplicates(DocumentCheck):
    """No two documents have the same words, whatever their case and spaces. About 200 bytes a document in memory."""

    name = "exact duplicates"

    def __init__(self) -> None:
        super().__init__()
        self._places: dict[bytes, str] = {}

    def add(self, document: Published) -> None:
        words = " ".join(document.text.lower().split())
        key = hashlib.sha256(words.encode("utf-8", "surrogatepass")).digest()
        if key in self._places:
            self.report(f"{document.place} has the text of {self._places[key]}")
        else:
            self._places[key] = document.place

    def finish(self) -> None:
        self.examined = f"{len(self._places):,} texts"


class Leaks(DocumentCheck):
    """No held-out document shares `threshold` of its shingles with a training document, or this with it.

    Every pair is compared that shares a shingle. The shingles of held-out documents are in memory, 200 bytes each.
    """

    name = "leaks"

    def __init__(self, shingle_words: int, threshold: float) -> None:
        super().__init__()
        self._words, self._threshold = shingle_words, threshold
        self._held_out: list[tuple[str, int]] = []  # place and number of shingles
        self._holders: defaultdict[int, list[int]] = defaultdict(list)  # of each shingle
        self._compared = 0

    def add(self, document: Published) -> None:
        own = self._shingles(document.text)
        if document.split == "val":
            for shingle in own:
                self._holders[shingle].append(len(self._held_out))
            self._held_out.append((document.place, len(own)))
            return
        shared: Counter[int] = Counter()
        for shingle in self._holders.keys() & own:
            shared.update(self._holders[shingle])
        self._compared += 1
        for number, count in shared.items():
            place, size = self._held_out[number]
            if count >= self._threshold * min(size, len(own)):
                share = count / min(size, len(own))
                self.report(f"{place} is held out and shares {share:.0%} of its words with {document.place}")

    def finish(self) -> None:
        self.examined = f"{len(self._held_out):,} x {self._compared:,} documents"

    def _shingles(self, text: str) -> set[int]:
        words = _words(text)
        return set(_runs(words, self._words)) or {hash(tuple(words))}


class Groups(DocumentCheck):
    """What belongs together is on one side, unless a source is a single text, which is drawn from by piece."""

    name = "groups"

    def __init__(self) -> None:
        super().__init__()
        self._places: dict[str, dict[str, str]] = {}  # group: split: first place
        self._sources: dict[str, set[int]] = {}  # group: sources that have it

    def add(self, document: Published) -> None:
        group = document.provenance.get("group") or str(document.provenance.get("id", "")).partition(PART_MARK)[0]
        self._places.setdefault(group, {}).setdefault(document.split, document.place)
        self._sources.setdefault(group, set()).add(document.source)

    def finish(self) -> None:
        groups = Counter(source for sources in self._sources.values() for source in sources)
        for group, places in self._places.items():
            if len(places) > 1 and any(groups[source] > 1 for source in self._sources[group]):
                self.report(f"{group!r} is on both sides: {places['train']}, {places['val']}")
        self.examined = f"{len(self._places):,} groups"


class Contamination(DocumentCheck):
    """No document holds an evaluation text. N-grams that the pipeline lists as common are no evidence."""

    name = "decontamination"

    def __init__(self, directory: Path, config: dict[str, Any]) -> None:
        """`directory` is that of the dataset, `config` what its manifest holds."""
        super().__init__()
        where = f"{directory / 'manifest.json'}: config"
        self._config = from_dict(DecontaminationConfig, config.get("decontamination", {}), where)
        self._texts: list[tuple[str, set[int]]] = []  # origin, n-grams
        self._holders: defaultdict[int, list[int]] = defaultdict(list)
        self._lengths: set[int] = set()
        self._documents: list[tuple[str, set[int]]] = []  # those that hold an n-gram
        self._common = _common_ngrams(directory)
        self.examined = "no evaluation texts"
        if self._config.patterns:
            try:
                self._read(
                    from_dict(CollectionConfig, config["collection"], where),
                    from_dict(CleaningConfig, config["cleaning"], where),
                )
            except UserError as error:
                self.report(f"not checked, as the evaluation texts cannot be read: {error}")

    def _read(self, collection: CollectionConfig, cleaning: CleaningConfig) -> None:
        config = self._config
        files, _ = plan(config, collection)
        for record in evaluation_texts(EvaluationArgument(files, config, collection, cleaning)):
            if not isinstance(record, Document):
                continue
            words = _words(record.text)
            length = min(len(words), config.ngram_words)
            if words and length >= min(config.min_words, config.ngram_words):
                self._lengths.add(length)
                ngrams = set(_runs(words, length))
                for ngram in ngrams:
                    self._holders[ngram].append(len(self._texts))
                self._texts.append((record.origin, ngrams))

    def add(self, document: Published) -> None:
        words = _words(document.text) if self._lengths else []
        held = {ngram for length in self._lengths for ngram in self._holders.keys() & set(_runs(words, length))}
        if held:
            self._documents.append((document.place, held))

    def finish(self) -> None:
        if not self._texts:
            return
        copies = Counter(ngram for _, held in self._documents for ngram in held)
        common = self._common
        if common is None:  # the stages were deleted
            common = {ngram for ngram, count in copies.items() if count > self._config.max_documents}
        for place, held in self._documents:
            shared = Counter(text for ngram in held - common for text in self._holders[ngram])
            for text, count in shared.items():
                origin, ngrams = self._texts[text]
                if count >= min(self._config.min_matches, len(ngrams)):
                    self.report(f"{place} holds {count} n-grams of the evaluation text {origin}")
        self.examined = f"{len(self._texts):,} evaluation texts"
        if ignored := len(common & copies.keys()):
            self.examined += f", {ignored:,} common n-grams ignored"


def _common_ngrams(directory: Path) -> set[int] | None:
    """The n-grams that the pipeline found in too many documents, or None without its stages."""
    paths = sorted((directory / "stages").glob(f"*_duplicates/{COMMON}"))
    return {hash(tuple(row["words"].split())) for path in paths for row in read_rows(path)} if paths else None


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _runs(words: Sequence[str], length: int) -> Iterator[int]:
    """Hashes of all runs of `length` words, by Python's own hash of strings and tuples."""
    return map(hash, zip(*(words[start:] for start in range(length)), strict=False))
