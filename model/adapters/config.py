"""Which small part of a model is trained, and how it is attached."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from common.errors import UserError

RESERVED = {"lora", "active"}  # PEFT strips the first from its keys, the second is an attribute of a slot


@dataclass(frozen=True)
class AdapterConfig:
    """LoRA (Hu et al. 2021, arXiv 2106.09685): low-rank updates of chosen layers."""

    method: Literal["none", "lora"] = "none"
    """What is trained; none trains the whole model."""
    rank: int = 16
    """Rank of the update."""
    alpha: float = 32.0
    """The update is scaled by alpha / rank."""
    dropout: float = 0.0
    """Dropout on the input of the update."""
    targets: tuple[str, ...] = ("all-linear",)
    """Layers, by the end of their Hugging Face name such as "c_attn" or "mlp.c_proj"; "all-linear" for all of them."""
    target_pattern: str | None = None
    """A regular expression that the whole name must match, instead of `targets`."""
    exclude: tuple[str, ...] = ()
    """Ends of names that are left alone."""
    blocks: tuple[int, ...] = ()
    """Numbers of the only blocks that are adapted; all when empty."""
    rank_pattern: dict[str, int] = field(default_factory=dict)
    """Other ranks for layers whose name ends with a match of the key."""
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    """Other alphas likewise."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank) instead (arXiv 2312.03732)."""
    dora: bool = False
    """Train magnitudes apart from directions (arXiv 2402.09353)."""
    lr_ratio: float = 1.0
    """LoRA+ (arXiv 2402.12354): learning rate of B over that of A; 16 is its authors' choice."""
    init: Literal["kaiming", "gaussian", "random"] = "kaiming"
    """How A begins; B is zero, so that the update is nothing at first, but with "random"."""

    def check(self) -> None:
        """Raises UserError for a value out of range, or values that do not go together."""
        for name in ("rank", "alpha"):
            if getattr(self, name) <= 0:
                raise UserError(f"adapter.{name} must be positive, not {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"adapter.dropout must be at least 0 and below 1, not {self.dropout}")
        for field_name in ("rank_pattern", "alpha_pattern"):
            for key, value in getattr(self, field_name).items():
                check_pattern(f"adapter.{field_name}", key)
                if value <= 0:
                    raise UserError(f"adapter.{field_name}: {key!r} must be positive, not {value}")
        if self.target_pattern is not None:
            check_pattern("adapter.target_pattern", self.target_pattern)

    def of_site(self, name: str) -> tuple[int, float, float]:
        """Rank, alpha and scale of the update of the layer called `name`."""
        rank, alpha = _first(self.rank_pattern, name, self.rank), _first(self.alpha_pattern, name, self.alpha)
        return int(rank), alpha, alpha / (rank**0.5 if self.rslora else rank)


def check_pattern(where: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise UserError(f"{where}: {pattern!r} is no regular expression: {error}") from error


def _first(patterns: dict[str, int] | dict[str, float], name: str, otherwise: float) -> float:
    found = (value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", name))
    return next(found, otherwise)
