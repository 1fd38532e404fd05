"""What a person sees while a run trains: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from training.plan import format_duration


class ProgressDisplay:
    """Shows the newest metrics; every logged step is a plain line when standard error is not a terminal."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bar = Progress(
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%  {task.description}", markup=False),
            console=console,
        )
        self._task = self._bar.add_task("starting", total=1.0)
        if console.is_terminal:
            self._bar.start()

    def update(self, row: dict[str, Any], fraction: float, seconds_left: float) -> None:
        """Show one logged step, `fraction` of the budget being used."""
        loss = math.nan if row["train/loss"] is None else row["train/loss"]
        text = (
            f"step {row['step']:>6}  loss {loss:.4f}  lr {row['lr']:.2e}  "
            f"{row['tokens_per_second']:>8,.0f} tokens/s  ETA {format_duration(max(0.0, seconds_left))}"
        )
        if self.console.is_terminal:
            self._bar.update(self._task, completed=min(1.0, fraction), description=text)
        else:
            self.console.print(f"{fraction:>4.0%}  {text}", soft_wrap=True)
        if "val/loss" in row:
            self.console.print(
                f"      step {row['step']:>6}  validation loss {row['val/loss']:.4f}  perplexity "
                f"{row['val/perplexity']:.2f}  bits per byte {row['val/bits_per_byte']:.4f}",
                soft_wrap=True,
            )

    def note(self, text: str) -> None:
        self.console.print(text, soft_wrap=True)

    def close(self) -> None:
        self._bar.stop()
