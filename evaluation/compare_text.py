"""The comparison of methods in words: a table in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from evaluation.compare_runs import Row
from evaluation.fine_tuning_text import markdown_table
from training.config import RunConfig

HEADER = ("method", "trainable", "peak MB", "file MB", "tokens/s", "rate", "validation loss", "right facts")


def describe_comparison(rows: Sequence[Row], config: RunConfig) -> str:
    """The table, with what all methods have in common above it, and below it what the rates brought."""
    lines = [f"# Methods of fine-tuning: {config.name}", ""]
    lines += [f"All begin with {config.start_from} and see the same examples in the same order."]
    asked = next((row.asked for row in rows if row.asked is not None), None)
    if asked is not None:
        lines += [f"Right facts are of {asked:,} held-out questions."]
    lines += ["", *markdown_table([HEADER, *(_cells(row) for row in rows)]), ""]
    losses = {row.method: row.validation_loss for row in rows if row.validation_loss is not None}
    best = min(losses, key=lambda method: losses[method])
    lines += [f"Lowest validation loss: {best}, {losses[best]:.4f}."]
    tried = [row for row in rows if len(row.tried) > 1]
    if tried:
        lines += ["", "Lowest validation loss by learning rate:", ""]
        lines += [
            f"- {row.method}: " + ", ".join(f"{lr}: {_loss(loss)}" for lr, loss in row.tried.items()) for row in tried
        ]
    return "\n".join(lines) + "\n"


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.method,
        "" if row.trainable_parameters is None else f"{row.trainable_parameters:,}",
        "" if row.peak_memory_mb is None else f"{row.peak_memory_mb:,.0f}",
        ""
        if row.file_bytes is None
        else f"{row.file_bytes / 1e6:,.3g}"
        if row.file_bytes < 1e8
        else f"{row.file_bytes / 1e6:,.0f}",
        "" if row.tokens_per_second is None else f"{row.tokens_per_second:,.0f}",
        "" if row.lr is None else f"{row.lr:.12g}",
        _loss(row.validation_loss),
        "" if row.score is None else f"{row.score:.1%}",
    )


def _loss(loss: float | None) -> str:
    return "diverged" if loss is None else f"{loss:.4f}"
