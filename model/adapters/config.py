"""Which small part of a model is trained, and how it is attached."""

from __future__ import annotations

import math
import re
from dataclasses import MISSING, dataclass, field, fields
from typing import Literal

from common.errors import UserError

RESERVED = {"lora", "active"}  # PEFT strips the first from its keys, the second is an attribute of a slot
Method = Literal["none", "lora", "ia3", "prefix", "prompt", "bottleneck"]
WHERE = ("targets", "target_pattern", "exclude", "blocks", "modules_to_save")
OF_LORA = ("rank", "alpha", "dropout", "rank_pattern", "alpha_pattern", "rslora", "dora", "init", "lr_ratio")
# The fields that a method reads; any other must be left alone.
READS: dict[Method, tuple[str, ...]] = {
    "none": (),
    "lora": (*WHERE, *OF_LORA),
    "ia3": (*WHERE, "feedforward"),
    "prefix": ("virtual_tokens", "modules_to_save"),
    "prompt": ("virtual_tokens", "prompt_text", "modules_to_save"),
    "bottleneck": (*WHERE, "bottleneck_size"),
}


@dataclass(frozen=True)
class AdapterConfig:
    """The few weights that a fine-tune trains while the base stays as it is.

    Without targets lora changes all linear layers, ia3 keys, values and the last layer of the feed-forward network, and
    bottleneck the last layers of attention and of the feed-forward network.
    """

    method: Method = "none"
    """lora: arXiv 2106.09685; ia3: 2205.05638; prefix: 2101.00190; prompt: 2104.08691; bottleneck: 1902.00751."""
    targets: tuple[str, ...] = ()
    """Layers, by the end of their Hugging Face name such as "c_attn"; "all-linear"; when empty, the method's own."""
    target_pattern: str | None = None
    """A regular expression that the whole name must match, instead of `targets`."""
    exclude: tuple[str, ...] = ()
    """Ends of names that are left alone."""
    blocks: tuple[int, ...] = ()
    """Numbers of the only blocks that are adapted; all when empty."""
    modules_to_save: tuple[str, ...] = ()
    """Modules of the base that are trained themselves and saved whole, by the end of their name: "wte", "lm_head"."""
    rank: int = 16
    """lora: rank of the update."""
    alpha: float = 32.0
    """lora: the update is scaled by alpha / rank."""
    dropout: float = 0.0
    """lora: dropout on the input of the update."""
    rank_pattern: dict[str, int] = field(default_factory=dict)
    """lora: other ranks for layers whose name ends with a match of the key."""
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    """lora: other alphas likewise."""
    rslora: bool = False
    """lora: scale by alpha / sqrt(rank) instead (arXiv 2312.03732)."""
    dora: bool = False
    """lora: train magnitudes apart from directions (arXiv 2402.09353)."""
    init: Literal["kaiming", "gaussian", "random", "pissa"] = "kaiming"
    """lora: how A begins; B is zero but with "random"; "pissa": both the main part of the weight (arXiv 2404.02948)."""
    lr_ratio: float = 1.0
    """lora: learning rate of B over that of A (LoRA+, arXiv 2402.12354)."""
    feedforward: tuple[str, ...] | None = None
    """ia3: ends of the names of the targets whose input is scaled; the feed-forward layer's last when not set."""
    virtual_tokens: int = 20
    """prefix, prompt: trained positions before every text."""
    prompt_text: str | None = None
    """prompt: begin as the embeddings of this text, repeated or cut to the number of positions."""
    bottleneck_size: int = 64
    """bottleneck: inner width."""

    @property
    def positions(self) -> int:
        """Of the model's context, how many it takes before every text."""
        return self.virtual_tokens if self.method in ("prefix", "prompt") else 0

    def check(self) -> None:
        """Raises UserError for a value out of range, or values that do not go together."""
        for each in fields(self):
            default = each.default if each.default_factory is MISSING else each.default_factory()
            if each.name != "method" and each.name not in READS[self.method] and getattr(self, each.name) != default:
                flag = f"--adapter.{each.name.replace('_', '-')}"
                back = f" ({flag} {default})" if isinstance(default, int | float) else ""
                raise UserError(f"adapter.{each.name} does nothing with method {self.method}; unset it{back}")
        for name in ("rank", "alpha", "lr_ratio", "virtual_tokens", "bottleneck_size"):
            if not 0 < getattr(self, name) < math.inf:
                raise UserError(f"adapter.{name} must be positive, not {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"adapter.dropout must be at least 0 and below 1, not {self.dropout}")
        for field_name in ("rank_pattern", "alpha_pattern"):
            for key, value in getattr(self, field_name).items():
                _check_pattern(f"adapter.{field_name}", key, _whole_name(key))
                if not 0 < value < math.inf:
                    raise UserError(f"adapter.{field_name}: {key!r} must be positive, not {value}")
        if self.target_pattern is not None:
            _check_pattern("adapter.target_pattern", self.target_pattern, self.target_pattern)
            if self.targets:
                raise UserError("adapter.targets and adapter.target_pattern exclude each other; unset one of them")
        if self.init == "pissa" and self.dora:
            raise UserError("adapter.init pissa and adapter.dora do not go together; unset one of them")
        if self.prompt_text is not None and not self.prompt_text:
            raise UserError("adapter.prompt_text is empty; give a text, or unset it")

    @property
    def patterns(self) -> list[str]:
        """The regular expressions that names of layers are compared with."""
        keys = map(_whole_name, dict.fromkeys([*self.rank_pattern, *self.alpha_pattern]))
        return [*keys] if self.target_pattern is None else [self.target_pattern, *keys]

    def of_site(self, name: str) -> tuple[int, float, float]:
        """Rank, alpha and scale of the update of the layer called `name`."""
        rank, alpha = _first(self.rank_pattern, name, self.rank), _first(self.alpha_pattern, name, self.alpha)
        return int(rank), alpha, alpha / (rank**0.5 if self.rslora else rank)


def _check_pattern(where: str, written: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise UserError(f"{where}: {written[:200]!r} is no regular expression: {error}") from error


def _whole_name(ending: str) -> str:
    return rf"(.*\.)?({ending})$"


def _first(patterns: dict[str, int] | dict[str, float], name: str, otherwise: float) -> float:
    found = (value for key, value in patterns.items() if re.match(_whole_name(key), name))
    return next(found, otherwise)
