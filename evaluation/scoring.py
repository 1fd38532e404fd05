"""What models and counts make of a validation split: how to score any model on it, with a bar and the time it took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress

from evaluation.perplexity import token_nll
from model import Decoder
from model.device import Precision

console = Console(stderr=True, highlight=False)


@dataclass(frozen=True)
class ModelScorer:
    """How models are scored."""

    device: torch.device
    precision: Precision
    batch_tokens: int

    def nll(
        self, name: str, model: Decoder, tokens: np.ndarray, windows: np.ndarray, eos_id: int, history: int = 0
    ) -> np.ndarray:  # (tokens,) float32
        """Nats of every token, as `perplexity.token_nll`, which every process of a group has to call."""
        with timed(name), progress_bar() as progress:
            task = progress.add_task(name, total=len(tokens))
            return token_nll(
                model, tokens, windows, eos_id, self.device, self.precision, self.batch_tokens,
                on_scored=lambda count: progress.advance(task, count), history=history,
            )  # fmt: skip


def progress_bar() -> Progress:
    """A bar on a terminal, nothing elsewhere."""
    return Progress(console=console, transient=True, disable=not console.is_terminal)


@contextmanager
def timed(name: str) -> Iterator[None]:
    """Say on standard error how long a part took."""
    began = time.perf_counter()
    yield
    console.print(f"{name}: {time.perf_counter() - began:.1f} s", markup=False)
