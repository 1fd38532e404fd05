"""How much of the budget is used, and the learning rate that follows from it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from common.errors import UserError
from training.config import BudgetConfig, OptimizerConfig, ScheduleConfig


@dataclass
class Progress:
    """How far a run has come; saved with every checkpoint."""

    step: int = 0
    tokens: int = 0
    windows: int = 0  # training windows consumed, over all epochs and processes
    seconds: float = 0.0  # wall time of training, over all resumptions

    def after(self, tokens: int, windows: int) -> Progress:
        """Where one more optimizer step over so many tokens leads, the time aside."""
        return Progress(self.step + 1, self.tokens + tokens, self.windows + windows, self.seconds)

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def check_budget(budget: BudgetConfig) -> None:
    """Raises UserError when there is no budget at all."""
    if not any(asdict(budget).values()):
        raise UserError(
            "the run has no budget; set one of --budget.tokens, --budget.steps, --budget.epochs, --budget.minutes"
        )


def fraction_used(budget: BudgetConfig, progress: Progress, windows_per_epoch: int) -> float:
    """The used fraction of whichever budget is closest to its end; 1 and more mean that the run is over."""
    fractions = []
    if budget.tokens is not None:
        fractions.append(progress.tokens / budget.tokens)
    if budget.steps is not None:
        fractions.append(progress.step / budget.steps)
    if budget.epochs is not None:
        fractions.append(progress.windows / (budget.epochs * windows_per_epoch))
    if budget.minutes is not None:
        fractions.append(progress.seconds / (60 * budget.minutes))
    return max(fractions)


def learning_rate_factor(schedule: ScheduleConfig, fraction: float) -> float:
    """Factor on the peak learning rate when `fraction` of the budget is used.

    The tokens of the step about to be taken are included, its time, which nobody knows yet, is not: with a budget in
    minutes alone the rate of the first step is 0, where there is a warm-up and no time was spent on compiling.
    """
    fraction = min(fraction, 1.0)
    if fraction < schedule.warmup:
        return fraction / schedule.warmup
    if schedule.kind == "cosine":
        position = (fraction - schedule.warmup) / max(1e-9, 1 - schedule.warmup)
        return schedule.final + (1 - schedule.final) * 0.5 * (1 + math.cos(math.pi * position))
    if not schedule.cooldown:
        return 1.0
    left = (1 - fraction) / schedule.cooldown
    return min(1.0, schedule.final + (1 - schedule.final) * left)


def momentum_at(optimizer: OptimizerConfig, fraction: float) -> float:
    """Muon's momentum when `fraction` of the budget is used: a linear rise, then constant."""
    position = min(1.0, fraction / optimizer.momentum_warmup) if optimizer.momentum_warmup else 1.0
    return optimizer.momentum_start + (optimizer.momentum - optimizer.momentum_start) * position
