"""Places in the decoder where adapters change what a layer does (`model/adapters` fills them)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.frozen import linear


class Adapter(nn.Module):
    """A small trained change of one layer, or of several layers with the same input as if they were one."""

    def before(self, x: Tensor) -> Tensor:
        """What the layers are given instead of `x`."""
        return x

    def after(self, x: Tensor, outputs: list[Tensor], layers: Sequence[nn.Module]) -> list[Tensor]:
        """What comes out instead of `outputs`, one a layer; `x` is the input before any adapter."""
        return outputs


class QuantizedWeight(nn.Module, ABC):
    """A frozen matrix (out, in) in fewer bits (`model/nf4_weight.py`, `model/quantization.py`)."""

    shape: torch.Size

    @abstractmethod
    def take(self, weight: Tensor) -> None:
        """Keep `weight`, of this shape, in fewer bits. Raises UserError when it is not finite."""

    @abstractmethod
    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """`x` (..., in) times the transpose of what the bits stand for, plus `bias`."""

    @abstractmethod
    def dequantized(self, dtype: torch.dtype) -> Tensor:
        """What the bits stand for, (out, in)."""

    def rows(self, ids: Tensor) -> Tensor:
        """What the bits of these rows stand for: `ids` (...) int64 -> (..., in) fp32."""
        return self.dequantized(torch.float32)[ids]


class Slot(nn.ModuleDict):
    """Adapters by name, of which the `active` ones are applied, in their order."""

    active: tuple[str, ...] = ()

    def run(self, x: Tensor, layers: Sequence[Linear | Embedding]) -> list[Tensor]:
        """The outputs of `layers` for their common input `x`."""
        adapters = [adapter for name in self.active if isinstance(adapter := self[name], Adapter)]
        changed = x
        for adapter in adapters:
            changed = adapter.before(changed)
        outputs = [layer.plain(changed) for layer in layers]
        for adapter in adapters:
            outputs = adapter.after(x, outputs, layers)
        return outputs


class Quantizable(nn.Module):
    """A layer whose frozen weight may be kept in few bits (`quantized`, and then no `weight`)."""

    weight: Tensor
    quantized: QuantizedWeight | None

    def keep_in(self, quantized: QuantizedWeight) -> None:
        """From now on the weight is what `quantized` holds."""
        self.register_parameter("weight", None)
        self.quantized = quantized

    def dense_weight(self) -> Tensor:  # (out, in)
        """The weight itself, or what its bits stand for, in fp32."""
        return self.weight.float() if self.quantized is None else self.quantized.dequantized(torch.float32)


class Linear(nn.Linear, Quantizable):
    """A linear layer with a slot."""

    def __init__(self, in_features: int, out_features: int, bias: bool) -> None:
        super().__init__(in_features, out_features, bias=bias)
        self.slot = Slot()
        self.register_module("quantized", None)

    def forward(self, x: Tensor) -> Tensor:  # (..., in_features) -> (..., out_features)
        return self.slot.run(x, (self,))[0] if self.slot.active else self.plain(x)

    def plain(self, x: Tensor) -> Tensor:
        """As without adapters."""
        if self.quantized is not None:
            return self.quantized.linear(x, self.bias)
        return linear(x, self.weight, self.bias)


class Embedding(nn.Embedding, Quantizable):
    """An embedding with a slot."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__(rows, width)
        self.slot = Slot()
        self.register_module("quantized", None)

    def forward(self, ids: Tensor) -> Tensor:  # (batch, time) -> (batch, time, width)
        return self.slot.run(ids, (self,))[0] if self.slot.active else self.plain(ids)

    def product(self, x: Tensor) -> Tensor:  # (..., width) -> (..., rows)
        """As the output head that it is when tied."""
        return linear(x, self.weight) if self.quantized is None else self.quantized.linear(x, None)

    def plain(self, ids: Tensor) -> Tensor:
        if self.quantized is not None:
            return self.quantized.rows(ids)
        rows = F.embedding(ids, self.weight)
        return rows if self.weight.requires_grad else rows.float()  # a frozen one may be stored in half precision
