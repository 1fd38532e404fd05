"""All examples of a fine-tuning run in memory: files in, two sets of token ids with a mask and a report out."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from common.errors import UserError
from data_pipeline.examples.chat_text import MARKS
from data_pipeline.examples.cutting import cut, divide
from data_pipeline.examples.formats import RecordFile, read_records
from data_pipeline.examples.prompts import Format, PromptStyle
from data_pipeline.examples.records import ChatText, Conversation, PlainText, Problem, Record
from data_pipeline.examples.rendering import Learn, Rendered, render_batch
from data_pipeline.examples.report import ExampleReport, FileReport, quantiles
from data_pipeline.examples.splits import held_out, in_fold
from data_pipeline.tokenizer import Tokenizer

_BATCH = 2048  # records encoded at once
_OUR_VARIABLES = {"messages", "add_generation_prompt", "bos_token", "eos_token", "tools"}  # of a chat template


@dataclass(frozen=True)
class ExampleOptions:
    """How files become examples."""

    format: Format | Literal["auto"] = "auto"
    """Of all files; "auto" tells by the content of each."""
    learn: Learn = "completion"
    """What the loss is taken of: the answers and their ends, or every token."""
    max_length: int = 1024
    """Tokens in an example, with the one before the text. Longer ones are cut at the end, documents into parts."""
    validation_files: tuple[str, ...] = ()
    """Files to validate on; no part of the training files is held out then."""
    validation_fraction: float = 0.0
    """Share of the questions to hold out; 0 holds out none."""
    folds: int = 0
    """Parts for cross-validation; 0 makes none."""
    fold: int | None = None
    """With folds: the part to validate on, from 0."""
    template_variables: dict[str, str] = field(default_factory=dict)
    """More that the chat template may ask for, such as `date_string`, which pins the date that some write."""
    seed: int = 0
    """Of the choice of what is held out."""

    @property
    def validates(self) -> bool:
        """Whether some examples are held out."""
        return bool(self.validation_files or self.validation_fraction or self.folds)


class ExampleSet:
    """The examples of one split: their ids and masks one behind the other in two flat arrays."""

    def __init__(self, examples: Sequence[Rendered], places: Sequence[str]) -> None:
        """`places` says of each example where it stands, as `file:line`."""
        self._ids = np.concatenate([np.empty(0, np.int32), *(example.ids for example in examples)])
        self._learned = np.concatenate([np.empty(0, bool), *(example.learned for example in examples)])
        self._places = list(places)
        self.lengths = np.array([len(example.ids) for example in examples], np.int64)
        """Tokens in each example, (examples,) int64."""
        self._starts = np.concatenate([[0], np.cumsum(self.lengths)])
        self.text_bytes = sum(example.text_bytes for example in examples)
        """UTF-8 bytes of the text that is learned, without special tokens."""
        self.targets = int(self._learned.sum())
        """Tokens that are learned."""

    def __len__(self) -> int:
        return len(self.lengths)

    def ids(self, number: int) -> np.ndarray:
        """Token ids of an example, (tokens,) int32; the first is what a model sees before a text."""
        return self._ids[self._starts[number] : self._starts[number + 1]]

    def learned(self, number: int) -> np.ndarray:
        """Which tokens of an example are targets, (tokens,) bool; never the first."""
        return self._learned[self._starts[number] : self._starts[number + 1]]

    def place(self, number: int) -> str:
        """The file and line that an example comes from."""
        return self._places[number]

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of all ids, masks and lengths: equal fingerprints mean equal examples in an equal order."""
        digest = hashlib.sha256()
        for array, kind in ((self.lengths, "<i8"), (self._ids, "<i4"), (self._learned, "u1")):
            digest.update(array.astype(kind).tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class LoadedExamples:
    train: ExampleSet
    validation: ExampleSet | None
    """None where none was asked for."""
    report: ExampleReport
    style: PromptStyle
    """How most training examples ask, so that a question can be asked alike."""


_Example = tuple[Record, Rendered]


def load_examples(files: Sequence[str | Path], tokenizer: Tokenizer, options: ExampleOptions) -> LoadedExamples:
    """Read, render, split and cut the examples in `files`.

    Raises:
        UserError: an option is out of range, a file cannot be read, there are conversations and the tokenizer has no
            chat template, or nothing is left to train or to validate on.
    """
    check_options(files, options)
    train_files = [read_records(path, options.format) for path in files]
    validation_files = [read_records(path, options.format) for path in options.validation_files]
    problems = [problem for file in train_files + validation_files for problem in file.problems]
    for_training, for_validation = (
        _rendered([record for file in group for record in file.records], tokenizer, options, problems)
        for group in (train_files, validation_files)
    )
    everything = for_training + for_validation
    for_training, for_validation, duplicates = _split(for_training, for_validation, options)
    counts = Counter[str]()
    train, validation = (
        _fitted(group, tokenizer, options.max_length, counts) for group in (for_training, for_validation)
    )
    lost = _lost(problems, counts, duplicates, options)
    if not len(train):
        raise UserError(f"no example to train on is left of {', '.join(map(str, files))}{lost}")
    if options.validates and not len(validation):
        raise UserError(
            "no example to validate on is left: examples that ask the same stay on one side, and a text is one example "
            f"unless lines of --- divide it. Give more examples or other validation_files{lost}"
        )
    side = "train and validation" if options.folds or options.validation_fraction else "train"
    report = ExampleReport(
        files=(*_listed(train_files, side), *_listed(validation_files, "validation")),
        records=len(everything),
        train_examples=len(train),
        validation_examples=len(validation),
        problems=tuple(problems),
        max_length=options.max_length,
        truncated=counts["truncated"],
        dropped=counts["dropped"],
        divided=counts["divided"],
        duplicates=duplicates,
        lengths=quantiles([len(rendered.ids) for _, rendered in everything]),
        tokens=int(train.lengths.sum() + validation.lengths.sum()),
        targets=train.targets + validation.targets,
        notes=tuple(_notes(everything, tokenizer, options)),
    )
    style = Counter(record.style for record, _ in for_training).most_common(1)[0][0]
    return LoadedExamples(train, validation if options.validates else None, report, style)


def _listed(files: Sequence[RecordFile], split: str) -> list[FileReport]:
    return [FileReport(file.path, file.format, split, len(file.records)) for file in files]


def check_options(files: Sequence[str | Path], options: ExampleOptions) -> None:
    """Raises UserError when an option is out of range or contradicts another."""
    if not files:
        raise UserError("name at least one file of examples")
    names = [str(Path(path).resolve()) for path in [*files, *options.validation_files]]
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"{twice[0]} is named twice; a file is for training or for validation, once")
    if options.learn not in get_args(Learn):
        raise UserError(f"learn must be {' or '.join(get_args(Learn))}, not {options.learn!r}")
    if options.max_length < 2:
        raise UserError(f"max_length must be at least 2 tokens, not {options.max_length}")
    if not 0 <= options.validation_fraction < 1:
        raise UserError(f"validation_fraction must be from 0 to below 1, not {options.validation_fraction}")
    if options.folds and (options.folds < 2 or options.fold is None or not 0 <= options.fold < options.folds):
        raise UserError(
            f"folds must be 2 or more (or 0) and fold from 0 to below that, not {options.folds} and {options.fold}"
        )
    if options.fold is not None and not options.folds:
        raise UserError(f"fold {options.fold} means nothing without folds, the number of parts")
    if reserved := _OUR_VARIABLES & options.template_variables.keys():
        raise UserError(f"the template variable {min(reserved)} is set by the program; take it out")
    ways = {
        "validation_files": bool(options.validation_files),
        "validation_fraction": options.validation_fraction > 0,
        "folds": options.folds > 0,
    }
    if sum(ways.values()) > 1:
        raise UserError(f"{' and '.join(name for name, given in ways.items() if given)} exclude each other; give one")


def _rendered(
    records: Sequence[Record], tokenizer: Tokenizer, options: ExampleOptions, problems: list[Problem]
) -> list[_Example]:
    """The records that could be rendered; what was wrong with the others is added to `problems`."""
    found = []
    for start in range(0, len(records), _BATCH):
        batch = records[start : start + _BATCH]
        rendered = render_batch(batch, tokenizer, options.learn, options.template_variables)
        for record, one in zip(batch, rendered, strict=True):
            if isinstance(one, Problem):
                problems.append(one)
            else:
                found.append((record, one))
    return found


def _split(
    for_training: list[_Example], for_validation: list[_Example], options: ExampleOptions
) -> tuple[list[_Example], list[_Example], int]:
    """Training examples, validation examples, and how many of the first were dropped because they are among the second.

    Raises:
        UserError: there are too few for the folds.
    """
    records = [record for record, _ in for_training]
    if for_training and (options.fold is not None or options.validation_fraction):
        chosen = (
            in_fold(records, options.folds, options.fold, options.seed)
            if options.fold is not None
            else held_out(records, options.validation_fraction, options.seed)
        )
        sides: tuple[list[_Example], list[_Example]] = ([], [])
        for example, is_held_out in zip(for_training, chosen, strict=True):
            sides[is_held_out].append(example)
        return *sides, 0  # whoever asks the same is on the same side
    seen = {record.identity for record, _ in for_validation}
    kept = [example for example in for_training if not seen or example[0].identity not in seen]
    return kept, for_validation, len(for_training) - len(kept)


def _fitted(examples: Sequence[_Example], tokenizer: Tokenizer, max_length: int, counts: Counter[str]) -> ExampleSet:
    """The examples of a split, none longer than `max_length`; what was done to them is added to `counts`."""
    kept: list[Rendered] = []
    places: list[str] = []
    for record, rendered in examples:
        parts = [rendered]
        if len(rendered.ids) > max_length:
            if isinstance(record.content, PlainText):
                counts["divided"] += 1
                parts = divide(rendered, max_length)
            else:
                counts["truncated"] += 1
                shorter = cut(rendered, tokenizer, max_length)
                parts = [shorter] if shorter.learned.any() else []
                counts["dropped"] += not parts
        kept += parts
        places += [f"{record.path}:{record.line}"] * len(parts)
    return ExampleSet(kept, places)


def _lost(problems: Sequence[Problem], counts: Counter[str], duplicates: int, options: ExampleOptions) -> str:
    """Where examples went, as the end of a message."""
    ways = []
    if problems:
        ways.append(f"set aside: {len(problems):,}, such as {problems[0]}")
    if counts["dropped"]:
        ways.append(
            f"nothing to learn in the first {options.max_length:,} tokens (raise max_length): {counts['dropped']:,}"
        )
    if duplicates:
        ways.append(f"also in the validation set: {duplicates:,}")
    return f" ({'; '.join(ways)})" if ways else ""


def _notes(examples: Sequence[_Example], tokenizer: Tokenizer, options: ExampleOptions) -> list[str]:
    """What the user should know and perhaps change."""
    found = []
    contents = [record.content for record, _ in examples]
    if any(isinstance(content, ChatText) for content in contents) and not set(MARKS) <= tokenizer.special_ids.keys():
        found.append(
            "the tokenizer has no special tokens of Llama 3, so written-out conversations follow its own chat template"
        )
    template = tokenizer.chat_template or ""
    if (
        any(isinstance(content, Conversation) for content in contents)
        and "strftime_now" in template
        and "date_string" not in options.template_variables
    ):
        found.append(
            "the chat template writes the date of today, so the examples change by day; pin it with the template "
            "variable date_string, such as '26 Jul 2024'"
        )
    ends = set(tokenizer.eos_ids)
    unending = sum(int(rendered.ids[rendered.learned][-1]) not in ends for _, rendered in examples)
    if unending:
        found.append(
            f"records whose last token does not end what a model writes: {unending:,}. They do not teach it to stop; "
            "name that token as an end of text when the tokenizer is imported (eos_token_id in generation_config.json)"
        )
    return found
