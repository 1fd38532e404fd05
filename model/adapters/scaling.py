"""IA3: trained factors of what a layer gives or takes (Liu et al. 2022, arXiv 2205.05638)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.adapters.change import Change, SiteAdapter
from model.adapters.config import AdapterConfig
from model.adapters.sites import Site, is_feedforward


class Scaling(SiteAdapter):
    """`y = l * (W x + b)`, or in the feed-forward layer `y = W (l * x) + b`; l begins as ones."""

    def __init__(self, config: AdapterConfig, site: Site) -> None:
        super().__init__()
        self.sizes, self.of_input = site.sizes, is_feedforward(site, config)
        self.ia3_l = nn.Parameter(torch.ones((1, site.inside) if self.of_input else (sum(site.sizes), 1)))

    def before(self, x: Tensor) -> Tensor:
        return (x * self.ia3_l.flatten()).type_as(x) if self.of_input else x

    def after(self, x: Tensor, outputs: list[Tensor], layers: Sequence[nn.Module]) -> list[Tensor]:
        if self.of_input:
            return outputs
        factors = self.ia3_l.flatten().split(self.sizes)
        return [(output * factor).type_as(output) for output, factor in zip(outputs, factors, strict=True)]

    def change(self, layers: Sequence[nn.Module]) -> Change:
        factor = self.ia3_l.detach().clone()
        return Change(columns=factor) if self.of_input else Change(rows=factor, scales_bias=True)

    def is_idle(self, layers: Sequence[nn.Module]) -> bool:
        return bool((self.ia3_l == 1).all())
