"""Which family of Hugging Face models an architecture belongs to, and what its tensors are called there.

A family is a module (`gpt2.py`, `llama.py`) with one object: from their config to ours, back, and a list of rules, one
for each of their tensors. The same rules serve both directions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from common.errors import UserError
from model.config import ModelConfig

# What no stock family has.
WITHOUT_OUR_RECIPE: dict[str, Any] = {
    "attention_scale": None,
    "qk_norm": False,
    "embedding_norm": False,
    "residual_scalars": False,
    "logit_softcap": None,
    "value_embeddings": 0,
}


@dataclass(frozen=True)
class TensorRule:
    """One of their tensors, made of some of ours."""

    theirs: str
    """Its name, without the prefix that whole models put before it."""
    shape: tuple[int, ...]
    """Its shape."""
    ours: tuple[str, ...]
    """Names of our parameters that it holds, one after the other along the first axis of ours."""
    rows: tuple[int, ...]
    """Size of each along that axis."""
    transposed: bool = False
    """Theirs is (in, out), where a linear layer of ours is (out, in)."""

    def split(self, tensor: Tensor) -> dict[str, Tensor]:
        """Our tensors from theirs."""
        tensor = tensor.T if self.transposed else tensor
        return dict(zip(self.ours, tensor.split(self.rows), strict=True))

    def join(self, tensors: Mapping[str, Tensor | None], dtype: torch.dtype) -> Tensor:
        """Their tensor from ours; one that we do not have, such as a bias that is off, is zero."""
        rest = self.shape[::-1][1:] if self.transposed else self.shape[1:]
        parts = []
        for name, rows in zip(self.ours, self.rows, strict=True):
            tensor = tensors[name]
            parts.append(torch.zeros(rows, *rest, dtype=dtype) if tensor is None else tensor)
        joined = torch.cat(parts) if len(parts) > 1 else parts[0]
        return joined.T.contiguous() if self.transposed else joined


@dataclass(frozen=True)
class Family:
    """How one kind of model is stored."""

    architectures: Mapping[str, str]
    """`model_type` in config.json to the name of the class that transformers loads."""
    prefix: str
    """What stands before the names of all tensors but the head's in a whole model."""
    ignored: tuple[str, ...]
    """Endings of tensors that older versions stored, and that can be worked out."""
    read_config: Callable[[Fields], ModelConfig]
    """Ours from their config.json. Raises UserError for what this decoder cannot express."""
    write_config: Callable[[ModelConfig], dict[str, Any]]
    """Their config.json, without the fields of the tokenizer."""
    misfit: Callable[[ModelConfig], str | None]
    """Why our config is not of this family; None when it is."""
    rules: Callable[[ModelConfig], list[TensorRule]]
    """Their tensors, the head among them only when it is untied."""


class Fields:
    """A config.json of theirs, read field by field, so that every complaint names its field."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values, self.where = values, where

    def integer(self, name: str, default: int | None = None) -> int:
        """A whole number of at least 1. Raises UserError when the field is something else, or missing and needed."""
        value = self.values.get(name)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self.error(name, "must be a whole number of at least 1")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number. Raises UserError when the field is something else, or missing and needed."""
        value = self.values.get(name)
        value = default if value is None else value
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not abs(value) < 1e300:
            raise self.error(name, "must be a number")
        return float(value)

    def flag(self, name: str, default: bool) -> bool:
        value = self.values.get(name)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise self.error(name, "must be true or false")
        return value

    def only(self, name: str, *fine: Any) -> None:
        """Raises UserError unless the field is missing or has one of the values that this decoder can express."""
        if name in self.values and self.values[name] not in fine:
            raise self.error(name, f"cannot be expressed by this decoder, only {' or '.join(map(repr, fine))} can")

    def error(self, name: str, problem: str) -> UserError:
        found = repr(self.values[name]) if name in self.values else "missing"
        return UserError(f"{self.where}: {name} is {found}; it {problem}")


def differences(config: ModelConfig, wanted: Mapping[str, Any]) -> str | None:
    """The fields of `config` that are not as `wanted`, as a phrase; None when all are."""
    found = [f"model.{name} is {getattr(config, name)!r}, not {value!r}" for name, value in wanted.items()]
    different = [
        text for text, (name, value) in zip(found, wanted.items(), strict=True) if getattr(config, name) != value
    ]
    return "; ".join(different) or None
