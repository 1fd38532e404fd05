"""A fine-tuned run and the model that it began with, given the same to write."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from common.errors import UserError
from common.runs import Run
from data_pipeline.tokenizer import Tokenizer
from inference import load_run, read_config
from inference.loading import load_base
from model import Decoder
from model.device import DeviceName

T = TypeVar("T")
NOT_ASKED = "not asked for"


@dataclass(frozen=True, kw_only=True)
class BothOptions:
    """Of commands that compare the two on held-out texts."""

    limit: int | None = None
    """Ask for at most so many, drawn from all of them, always the same ones."""
    max_new_tokens: int = 64
    """Cut what a model writes after this many tokens."""
    base: bool = True
    """Ask the model that the run began with as well."""
    checkpoint: str = "best"
    """Of the run: "best" (lowest validation loss), "last", or a step."""
    device: DeviceName = "auto"
    """Where to compute."""

    def __post_init__(self) -> None:
        for name, value in (("limit", self.limit), ("max-new-tokens", self.max_new_tokens)):
            if value is not None and value < 1:
                raise UserError(f"--{name} {value} is too small: it must be at least 1")


@dataclass(frozen=True)
class Both(Generic[T]):
    """What both wrote."""

    tuned: T
    base: T | None
    record: dict[str, Any]
    """Which models these are, for the file of results; with `without_base` the reason why there is no base."""


def write_with_both(run: Run, options: BothOptions, write: Callable[[Decoder, Tokenizer], T]) -> Both[T]:
    """`write` by the run's model, then by its base where that is wanted and there is one.

    Raises:
        UserError: the run cannot be loaded, or as `write` does for its model.
    """
    loaded = load_run(run, options.checkpoint, options.device)
    tuned = write(loaded.model, loaded.tokenizer)
    tokenizer, step = loaded.tokenizer, loaded.checkpoint.step
    del loaded  # two models at once may not fit
    base, without = None, NOT_ASKED
    if options.base:
        try:
            base = write(load_base(run, options.device), tokenizer)
        except UserError as error:
            without = str(error)
    record = {
        "run": run.name,
        "checkpoint_step": step,
        "base": None if base is None else read_config(run).get("start_from"),
        "without_base": without if base is None else None,
    }
    return Both(tuned, base, record)
