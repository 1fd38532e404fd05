"""LoRA: a low-rank update of a frozen matrix (Hu et al. 2021, arXiv 2106.09685), with DoRA (arXiv 2402.09353)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.adapters.change import Change, SiteAdapter, in_dtype_of
from model.adapters.config import AdapterConfig
from model.adapters.sites import Site
from model.slots import Linear

ZERO = 1e-14  # of the squared norm of B A over those of A and B: rounding of a product that is zero


class LowRank(SiteAdapter):
    """`y = W x + b + scale * B(A(dropout(x)))`, where W may be several layers, one below the other.

    With PiSSA (Meng et al. 2024, arXiv 2404.02948) A and B begin as the principal part of W, which is then subtracted:
    by a second, frozen pair, so that the base never changes.
    """

    start_A: Tensor | None
    start_B: Tensor | None

    def __init__(self, config: AdapterConfig, site: Site) -> None:
        """Draws as PEFT does, so equal seeds give equal matrices."""
        super().__init__()
        rank, _, self.scale = config.of_site(site.name)
        self.sizes = site.sizes
        self.lora_A = nn.Linear(site.inside, rank, bias=False)
        self.lora_B = nn.Linear(rank, sum(site.sizes), bias=False)
        self.dropout = nn.Dropout(config.dropout)
        if config.init == "gaussian":
            nn.init.normal_(self.lora_A.weight, std=1 / rank)
        elif config.init == "kaiming":
            nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))
        if config.init in ("kaiming", "gaussian"):
            nn.init.zeros_(self.lora_B.weight)
        self.register_buffer("start_A", None)
        self.register_buffer("start_B", None)
        if config.init == "pissa":
            self._begin_as_principal_part(_dense(site.layers))
        self.lora_magnitude_vector: nn.Parameter | None = None
        if config.dora:
            self.lora_magnitude_vector = nn.Parameter(self.row_norms(site.layers))

    @torch.no_grad()
    def _begin_as_principal_part(self, weight: Tensor) -> None:
        """The largest singular values of the weight and their vectors, shared equally between A and B."""
        rank = len(self.lora_A.weight)
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        root = (values[:rank] / self.scale).sqrt()
        # A rank above that of the weight leaves rows that stay zero.
        self.lora_A.weight.zero_()[: len(root)] = root[:, None] * right[:rank]
        self.lora_B.weight.zero_()[:, : len(root)] = left[:, :rank] * root
        self.start_A, self.start_B = self.lora_A.weight.clone(), self.lora_B.weight.clone()

    def factors(self) -> tuple[Tensor, Tensor]:  # (rank, in), (out, rank), of twice the rank with PiSSA
        """What the update is the product of, the frozen pair included."""
        if self.start_A is None or self.start_B is None:
            return self.lora_A.weight, self.lora_B.weight
        return torch.cat((self.lora_A.weight, -self.start_A)), torch.cat((self.lora_B.weight, self.start_B), dim=1)

    def after(self, x: Tensor, outputs: list[Tensor], layers: Sequence[nn.Module]) -> list[Tensor]:
        dropped = self.dropout(in_dtype_of(x, self.lora_A.weight))
        inner = self.lora_A(dropped)
        if self.start_A is not None:  # a part of the base, which sees no dropout
            inner = torch.cat((inner, F.linear(in_dtype_of(x, self.start_A), -self.start_A)), dim=-1)
        inner = inner * self.scale  # here it is smallest
        parts = self.factors()[1].split(self.sizes)
        if self.lora_magnitude_vector is None:
            return [_add_product(output, inner, rows) for output, rows in zip(outputs, parts, strict=True)]
        factors = (self.lora_magnitude_vector / self.row_norms(layers)).split(self.sizes)
        changed = []
        for factor, output, rows, layer in zip(factors, outputs, parts, _linears(layers), strict=True):
            if self.training and self.dropout.p > 0:  # as in PEFT only what is added sees the dropout
                product = layer.plain(dropped.type_as(x))
                product = product if layer.bias is None else product - layer.bias
                changed.append(output + ((factor - 1) * product + factor * F.linear(inner, rows)).type_as(output))
                continue
            result = factor * _add_product(output, inner, rows)
            if layer.bias is not None:
                result = result + (1 - factor) * layer.bias  # which is not scaled
            changed.append(result.type_as(output))
        return changed

    @torch.no_grad()
    def row_norms(self, layers: Sequence[nn.Module]) -> Tensor:  # (out,)
        """Euclidean norm of every row of W + scale * B A, of which the gradient is not taken; the sum is not formed."""
        weight, (first, second) = _dense(layers), self.factors()
        first, second = first.to(weight.device), second.to(weight.device)
        squares = torch.linalg.vector_norm(weight, dim=1).square()
        mixed = ((weight @ first.T) * second).sum(dim=1)
        updates = ((second @ (first @ first.T)) * second).sum(dim=1)
        return (squares + 2 * self.scale * mixed + self.scale**2 * updates).clamp(min=0).sqrt()

    def delta(self) -> Tensor:  # (out, in)
        """What it adds to the weight."""
        first, second = self.factors()
        return self.scale * (second @ first)

    @property
    def additive(self) -> bool:
        return self.lora_magnitude_vector is None

    @torch.no_grad()
    def tensors(self) -> dict[str, Tensor]:
        """With PiSSA a plain LoRA of twice the rank."""
        first, second = self.factors()
        found = {"lora_A.weight": first.detach(), "lora_B.weight": second.detach()}
        if self.lora_magnitude_vector is not None:
            found["lora_magnitude_vector"] = self.lora_magnitude_vector.detach()
        return found

    def change(self, layers: Sequence[nn.Module]) -> Change:
        if self.lora_magnitude_vector is None:
            return Change(self.delta)
        return Change(self.delta, rows=(self.lora_magnitude_vector / self.row_norms(layers))[:, None])

    @torch.no_grad()
    def is_idle(self, layers: Sequence[nn.Module]) -> bool:
        first, second = self.factors()
        idle = _product_is_zero(second, first)
        if idle and self.lora_magnitude_vector is not None:
            idle = torch.allclose(self.lora_magnitude_vector, self.row_norms(layers), rtol=1e-5)
        return idle


class LowRankEmbedding(SiteAdapter):
    """The same of an embedding, where A is (rank, rows) and begins at zero."""

    def __init__(self, config: AdapterConfig, site: Site) -> None:
        """Draws as PEFT does."""
        super().__init__()
        rank, _, self.scale = config.of_site(site.name)
        self.lora_embedding_A = nn.Parameter(torch.randn(rank, site.inside))
        self.lora_embedding_B = nn.Parameter(torch.randn(sum(site.sizes), rank))
        if config.init != "random":
            nn.init.zeros_(self.lora_embedding_A)
            nn.init.normal_(self.lora_embedding_B)

    def after(self, x: Tensor, outputs: list[Tensor], layers: Sequence[nn.Module]) -> list[Tensor]:
        update = F.embedding(x, self.lora_embedding_A.T) @ self.lora_embedding_B.T * self.scale
        return [outputs[0] + update.type_as(outputs[0])]

    @property
    def additive(self) -> bool:
        return True

    def delta(self) -> Tensor:  # (rows, width)
        return self.scale * (self.lora_embedding_B @ self.lora_embedding_A).T

    def change(self, layers: Sequence[nn.Module]) -> Change:
        return Change(self.delta)

    @torch.no_grad()
    def is_idle(self, layers: Sequence[nn.Module]) -> bool:
        return _product_is_zero(self.lora_embedding_B, self.lora_embedding_A)


def _add_product(output: Tensor, inner: Tensor, rows: Tensor) -> Tensor:
    """`output` (..., out) plus `inner` (..., rank) times the transpose of `rows` (out, rank), in one pass over it."""
    if output.dtype != inner.dtype and not torch.is_autocast_enabled(output.device.type):
        return output + F.linear(inner, rows).type_as(output)
    return torch.addmm(output.flatten(0, -2), inner.flatten(0, -2), rows.T).view_as(output).type_as(output)


def _product_is_zero(second: Tensor, first: Tensor) -> bool:
    """Whether `second @ first` (out, rank) @ (rank, in) is zero, found without working it out."""
    second, first = second.double(), first.double()
    inner, outer = second.T @ second, first @ first.T
    return float((inner * outer).sum()) <= ZERO * float(inner.trace() * outer.trace())


def _dense(layers: Sequence[nn.Module]) -> Tensor:  # (out, in) fp32
    weights = [layer.dense_weight().float() for layer in _linears(layers)]
    return torch.cat(weights) if len(weights) > 1 else weights[0]


def _linears(layers: Sequence[nn.Module]) -> list[Linear]:
    return [layer for layer in layers if isinstance(layer, Linear)]
