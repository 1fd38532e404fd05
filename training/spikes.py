"""Steps that are not taken: a loss or gradient norm far above what it has been lately, as in OLMo's SkipStep."""

from __future__ import annotations

import math
import statistics
from collections import deque
from typing import Any

WINDOW = 128  # steps that a new one is compared with
# Steps skipped one after the other, at most. What is as far off after them is no bad batch: it is taken, or training
# has diverged, where it is not finite.
PATIENCE = 10


class SpikeGuard:
    """Watches loss and gradient norm, which are the same on all processes, so that all decide alike."""

    def __init__(self, threshold: float | None) -> None:
        """`threshold` in standard deviations above the mean of the last `WINDOW` steps; None never skips a step."""
        self.threshold = threshold
        self.recent: deque[tuple[float, float]] = deque(maxlen=WINDOW)
        self.skipped = 0  # steps skipped one after the other

    def take_note(self, loss: float, grad_norm: float) -> bool:
        """Take note of a step; returns whether to skip it. What is not finite is skipped too, within `PATIENCE`."""
        if self.threshold is None:
            return False
        refused = not all(map(math.isfinite, (loss, grad_norm)))
        if len(self.recent) == WINDOW and not refused:
            refused = any(
                value > statistics.fmean(past) + self.threshold * statistics.pstdev(past)
                for value, past in zip((loss, grad_norm), zip(*self.recent, strict=True), strict=True)
            )
        if math.isfinite(loss) and math.isfinite(grad_norm):
            self.recent.append((loss, grad_norm))  # refused ones too: what has changed for good is no spike
        self.skipped = self.skipped + 1 if refused else 0
        return refused and self.skipped <= PATIENCE

    def state(self) -> dict[str, Any]:
        """For JSON; floats survive it exactly."""
        return {"recent": [list(pair) for pair in self.recent], "skipped": self.skipped}

    def restore(self, state: dict[str, Any]) -> None:
        self.recent.clear()
        self.recent.extend((loss, grad_norm) for loss, grad_norm in state["recent"])
        self.skipped = state["skipped"]
