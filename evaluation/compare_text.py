"""The comparison of methods in words: a table in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from training.config import RunConfig

if TYPE_CHECKING:
    from evaluation.compare_methods import Row

HEADER = ("method", "trainable", "peak MB", "file MB", "tokens/s", "rate", "validation loss", "right facts")


def describe_comparison(rows: Sequence[Row], config: RunConfig) -> str:
    """The table, with what all methods have in common above it."""
    table = [HEADER, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in table) for column in range(len(HEADER))]
    lines = [_line(cells, widths) for cells in table]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    best = min(rows, key=lambda row: row.validation_loss)
    return (
        f"# Methods of fine-tuning: {config.name}\n\nAll begin with {config.start_from} and see the same examples in "
        "the same order. The learning rate is each method's own.\n\n"
        + "\n".join(lines)
        + f"\n\nLowest validation loss: {best.method}, {best.validation_loss:.4f}.\n"
    )


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.method,
        "" if row.trainable_parameters is None else f"{row.trainable_parameters:,}",
        "" if row.peak_memory_mb is None else f"{row.peak_memory_mb:,.0f}",
        "" if row.adapter_bytes is None else f"{row.adapter_bytes / 1e6:.2f}",
        "" if row.tokens_per_second is None else f"{row.tokens_per_second:,.0f}",
        "" if row.lr is None else f"{row.lr:.3g}",
        f"{row.validation_loss:.4f}",
        "" if row.score is None else f"{row.score:.1%}",
    )


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"
