"""Weights in files, whatever wrote them, and those of a Hugging Face directory or its hub."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.errors import UserError
from common.files import read_json
from common.hub import local_model
from model.config import ModelConfig
from model.convert.families import Family, TensorRule
from model.convert.registry import read_theirs
from model.tensor_files import TensorFiles, some

Layout = tuple[tuple[int, ...], torch.dtype]


@dataclass(frozen=True)
class Source:
    """An architecture and its weights, in files."""

    path: Path
    config: ModelConfig
    files: TensorFiles
    rules: dict[str, TensorRule] = field(default_factory=dict)
    """By the name of the tensor in `files`, how it becomes ours; empty when the files hold ours."""

    @property
    def is_theirs(self) -> bool:
        """Whether it is a directory of Hugging Face."""
        return bool(self.rules)

    def layouts(self) -> dict[str, Layout]:
        """Of files with tensors of theirs: shape and dtype of every tensor of ours, in the order of `tensors`."""
        found: dict[str, Layout] = {}
        for stored, rule in self.rules.items():
            dtype = self.files.layout(stored)[1]
            rest = rule.shape[:-1] if rule.transposed else rule.shape[1:]
            found |= {name: ((rows, *rest), dtype) for name, rows in zip(rule.ours, rule.rows, strict=True)}
        return found

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor of ours, one at a time, in the dtype that it is stored in."""
        if not self.is_theirs:
            for name in self.files.files:
                yield name, self.files.read(name)
        for stored, rule in self.rules.items():
            yield from rule.split(self.files.read(stored)).items()


def open_theirs(place: str | Path) -> Source:
    """A Hugging Face directory, or a model of its hub (`hf://ORG/NAME`), with every name and shape checked.

    Raises:
        UserError: it is damaged, or a model that this decoder cannot express.
    """
    directory = local_model(place)
    family, config = read_theirs(read_config_file(directory / "config.json"), directory / "config.json")
    files = TensorFiles.of_directory(directory)
    return Source(directory, config, files, _match(family, config, files, directory))


def read_config_file(path: Path) -> dict[str, Any]:
    """A config.json. Raises UserError when it is missing, damaged or no object."""
    try:
        values = read_json(path)
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; it says what the weights beside it are") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} is no JSON object")
    return values


def _match(family: Family, config: ModelConfig, files: TensorFiles, where: Path) -> dict[str, TensorRule]:
    """The stored tensors with their rules. Raises UserError when one is missing, extra or of a wrong shape."""
    stored = {name.removeprefix(family.prefix): name for name in files.files}
    twice = set(files.files) - set(stored.values())
    if twice:
        raise UserError(f"{where} has {some(twice)} with and without the prefix {family.prefix!r}")
    if config.layers > len(stored):  # before a list of rules is made for a mere number
        raise UserError(f"{where}: config.json asks for {config.layers} layers, but there are {len(stored)} tensors")
    rules: dict[str, TensorRule] = {}
    missing = []
    for rule in family.rules(config):
        name = stored.pop(rule.theirs, None)
        if name is None:
            missing.append(rule.theirs)
            continue
        shape = files.layout(name)[0]
        if shape != rule.shape:
            raise UserError(f"{where}: {name} has shape {shape}; config.json makes it {rule.shape}")
        rules[name] = rule
    if missing:
        raise UserError(f"{where} lacks {some(missing)}, which config.json asks for")
    head = stored.pop("lm_head.weight", None) if config.tied else None
    if head is not None:
        first = next(name for name, rule in rules.items() if rule.ours == ("embedding.weight",))
        if not torch.equal(files.read(head), files.read(first)):
            raise UserError(f"{where}: {head} differs from {first}, but config.json has tie_word_embeddings")
    extra = [name for name in stored.values() if not name.endswith(family.ignored)]
    if extra:
        raise UserError(f"{where} has {some(extra)}, which this decoder has no place for")
    return rules
