"""The hand-written functions against PyTorch's own: python -m benchmarks.functions [--rounds N] [--json FILE].

Forward and backward together, bf16 (autocast for the loss), each shape's variants in alternation.
"""

from common.threads import bind_threads, keep_freed_memory

bind_threads()
keep_freed_memory()

import time  # noqa: E402
from collections.abc import Callable, Sequence  # noqa: E402
from dataclasses import dataclass  # noqa: E402

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
import tyro  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.table import Measurement, alternate, report  # noqa: E402
from common.cli import run_command  # noqa: E402
from model.functions import causal_attention, linear_cross_entropy  # noqa: E402

ATTENTION_SHAPES = ((16, 2, 128, 128), (8, 2, 256, 128), (4, 8, 512, 64), (4, 4, 1024, 128))  # batch, heads, time, dim
LOSS_SHAPES = ((2048, 8_192, 256, 15.0), (2048, 8_192, 256, None), (2048, 32_768, 512, 15.0), (2048, 32_768, 512, None))


@dataclass(frozen=True)
class FunctionsCommand:
    """Time attention and loss at fixed shapes like those of the project's configs."""

    rounds: int = 7
    """Rounds after one that warms up."""
    json: str | None = None
    """Also write the figures to FILE_attention_0.json, FILE_loss_0.json and so on, this being FILE."""


def timed(function: Callable[[], Tensor], outer: Tensor | None, leaves: Sequence[Tensor]) -> Measurement:
    """Milliseconds of a forward and a backward pass."""
    started = time.perf_counter()
    result = function()
    between = time.perf_counter()
    result.backward(outer)
    ended = time.perf_counter()
    for leaf in leaves:
        leaf.grad = None
    return {"forward ms": 1e3 * (between - started), "total ms": 1e3 * (ended - started)}


def attention_pair(batch: int, heads: int, length: int, dim: int) -> dict[str, Callable[[], Measurement]]:
    # As they come out of the projections: heads behind time in memory.
    leaves = [torch.randn(batch, length, heads, dim).bfloat16().requires_grad_() for _ in range(3)]
    outer = torch.randn(batch, heads, length, dim).bfloat16()
    query, key, value = (leaf.transpose(1, 2) for leaf in leaves)
    scale = dim**-0.5
    return {
        "PyTorch's": lambda: timed(
            lambda: F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale), outer, leaves
        ),
        "ours": lambda: timed(lambda: causal_attention(query, key, value, scale), outer, leaves),
    }


def loss_pair(positions: int, vocab: int, width: int, softcap: float | None) -> dict[str, Callable[[], Measurement]]:
    hidden = torch.randn(positions, width, requires_grad=True)
    weight = (torch.randn(vocab, width) * 3 * width**-0.5).requires_grad_()  # logits as those of a trained model
    targets = torch.randint(0, vocab, (positions,))

    def plain() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = (hidden @ weight.mT).float()
            capped = logits if softcap is None else softcap * torch.tanh(logits / softcap)
            return F.cross_entropy(capped, targets, reduction="sum")

    def ours() -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return linear_cross_entropy(hidden, weight, targets, softcap)

    return {
        "PyTorch's": lambda: timed(plain, None, [hidden, weight]),
        "ours": lambda: timed(ours, None, [hidden, weight]),
    }


def main(argv: Sequence[str]) -> None:
    command = tyro.cli(FunctionsCommand, args=argv, prog="python -m benchmarks.functions")
    torch.manual_seed(0)
    cases = {
        "attention": [
            (f"batch {b}, heads {h}, time {t}, head_dim {d}", attention_pair(b, h, t, d))
            for b, h, t, d in ATTENTION_SHAPES
        ],
        "loss": [
            (f"{n} positions, vocab {v}, width {w}, soft-cap {c}", loss_pair(n, v, w, c)) for n, v, w, c in LOSS_SHAPES
        ],
    }
    for kind, shapes in cases.items():
        for number, (title, variants) in enumerate(shapes):
            file = f"{command.json}_{kind}_{number}.json" if command.json else None
            report(f"{kind}: {title}", alternate(variants, command.rounds), "total ms", file)


if __name__ == "__main__":
    run_command(main)
