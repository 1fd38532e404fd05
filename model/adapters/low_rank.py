"""LoRA: a low-rank update of a frozen matrix (Hu et al. 2021, arXiv 2106.09685), with DoRA (arXiv 2402.09353)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.adapters.config import AdapterConfig
from model.adapters.sites import Site
from model.slots import Adapter, Embedding, Linear


class LowRank(Adapter):
    """`y = W x + b + scale * B(A(dropout(x)))`, where W may be several layers, one below the other."""

    def __init__(self, config: AdapterConfig, site: Site) -> None:
        """Draws as PEFT does, so equal seeds give equal matrices."""
        super().__init__()
        rank, _, self.scale = config.of_site(site.name)
        inside, outside = cast(Linear, site.layers[0]).in_features, sum(site.sizes)
        self.sizes = site.sizes
        self.lora_A = nn.Linear(inside, rank, bias=False)
        self.lora_B = nn.Linear(rank, outside, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        if config.init == "gaussian":
            nn.init.normal_(self.lora_A.weight, std=1 / rank)
        elif config.init != "random":
            nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))
        if config.init != "random":
            nn.init.zeros_(self.lora_B.weight)
        self.lora_magnitude_vector: nn.Parameter | None = None
        if config.dora:
            weight = torch.cat([layer.dense_weight() for layer in _linears(site.layers)])
            self.lora_magnitude_vector = nn.Parameter(self.row_norms(site.layers, weight).detach().clone())

    def after(self, x: Tensor, outputs: list[Tensor], layers: Sequence[nn.Module]) -> list[Tensor]:
        dropped = self.dropout(x)
        inner = self.lora_A(dropped)
        updates = [F.linear(inner, rows) * self.scale for rows in self.lora_B.weight.split(self.sizes)]
        if self.lora_magnitude_vector is None:
            return [output + update.type_as(output) for output, update in zip(outputs, updates, strict=True)]
        factors = (self.lora_magnitude_vector / self.row_norms(layers)).split(self.sizes)
        changed = []
        for factor, output, update, layer in zip(factors, outputs, updates, _linears(layers), strict=True):
            # As in PEFT only what is added sees the dropout.
            product = layer.plain(dropped) if self.training and self.dropout.p > 0 else output
            without = product if layer.bias is None else product - layer.bias
            changed.append(output + ((factor - 1) * without + factor * update).type_as(output))
        return changed

    @torch.no_grad()
    def row_norms(self, layers: Sequence[nn.Module], weight: Tensor | None = None) -> Tensor:  # (out,)
        """Euclidean norm of every row of W + scale * B A, of which the gradient is not taken."""
        if weight is None:
            weight = torch.cat([layer.dense_weight() for layer in _linears(layers)])
        return (weight + self.delta()).norm(dim=1)

    def delta(self) -> Tensor:  # (out, in)
        """What it adds to the weight."""
        return self.scale * (self.lora_B.weight @ self.lora_A.weight)


class LowRankEmbedding(Adapter):
    """The same of an embedding, where A is (rank, rows) and begins at zero."""

    def __init__(self, config: AdapterConfig, site: Site) -> None:
        super().__init__()
        rank, _, self.scale = config.of_site(site.name)
        embedding = cast(Embedding, site.layers[0])
        self.lora_embedding_A = nn.Parameter(torch.zeros(rank, embedding.num_embeddings))
        self.lora_embedding_B = nn.Parameter(torch.randn(embedding.embedding_dim, rank))

    def after(self, x: Tensor, outputs: list[Tensor], layers: Sequence[nn.Module]) -> list[Tensor]:
        update = F.embedding(x, self.lora_embedding_A.T) @ self.lora_embedding_B.T * self.scale
        return [outputs[0] + update.type_as(outputs[0])]

    def delta(self) -> Tensor:  # (rows, width)
        return self.scale * (self.lora_embedding_B @ self.lora_embedding_A).T


def _linears(layers: Sequence[nn.Module]) -> list[Linear]:
    return [layer for layer in layers if isinstance(layer, Linear)]
