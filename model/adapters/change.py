"""What adapters of single layers have in common, and what one does to a weight that it is merged into."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.slots import Adapter


@dataclass(frozen=True)
class Change:
    """A weight W (out, in) becomes `rows * (W + update) * columns`, and where it has rows of its own, a bias too."""

    update: Callable[[], Tensor] | None = None
    """Worked out when it is needed, because it is as large as the weight; (out, in)."""
    rows: Tensor | None = None  # (out, 1)
    columns: Tensor | None = None  # (1, in)
    scales_bias: bool = False

    def apply(self, weight: Tensor) -> Tensor:
        """`weight` in fp32, changed."""
        if self.update is not None:
            weight = weight + self.update().float()
        for factor in (self.rows, self.columns):
            weight = weight if factor is None else weight * factor
        return weight

    def undo(self, weight: Tensor) -> Tensor:
        """What `apply` was given."""
        for factor in (self.rows, self.columns):
            weight = weight if factor is None else weight / factor
        return weight if self.update is None else weight - self.update().float()

    @property
    def invertible(self) -> bool:
        return all(factor is None or bool(factor.all()) for factor in (self.rows, self.columns))


class SiteAdapter(Adapter, ABC):
    """A change of one site of a decoder (`sites.py`)."""

    @property
    def additive(self) -> bool:
        """Whether it only adds to the weight, so that several of them may be merged one after the other."""
        return False

    def tensors(self) -> dict[str, Tensor]:
        """What is saved of it, by the end of the name in the file."""
        return {key: value.detach() for key, value in self.state_dict().items()}

    def change(self, layers: Sequence[nn.Module]) -> Change | None:
        """What merging it does to the weight of `layers`; None when no weight could do the same."""
        return None

    @abstractmethod
    def is_idle(self, layers: Sequence[nn.Module]) -> bool:
        """Whether it changes nothing, as before any training."""


def in_dtype_of(x: Tensor, weight: Tensor) -> Tensor:
    """`x` as a product with `weight` needs it; autocast sees to that by itself."""
    return x if torch.is_autocast_enabled(x.device.type) else x.to(weight.dtype)
