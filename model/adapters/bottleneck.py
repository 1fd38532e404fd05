"""Bottleneck adapters: a small network behind a layer (Houlsby et al. 2019, arXiv 1902.00751)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.adapters.change import SiteAdapter, in_dtype_of
from model.adapters.config import AdapterConfig
from model.adapters.sites import Site


class Bottleneck(SiteAdapter):
    """`y + up(gelu(down(y)))` of what a layer gives; `up` begins at zero, so that it is nothing at first."""

    def __init__(self, config: AdapterConfig, site: Site) -> None:
        super().__init__()
        self.sizes = site.sizes
        self.down = nn.Linear(sum(site.sizes), config.bottleneck_size)
        self.up = nn.Linear(config.bottleneck_size, sum(site.sizes))
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def after(self, x: Tensor, outputs: list[Tensor], layers: Sequence[nn.Module]) -> list[Tensor]:
        output = torch.cat(outputs, dim=-1) if len(outputs) > 1 else outputs[0]
        update = self.up(F.gelu(self.down(in_dtype_of(output, self.down.weight))))
        return list((output + update.type_as(output)).split(self.sizes, dim=-1))

    def is_idle(self, layers: Sequence[nn.Module]) -> bool:
        return not self.up.weight.any() and not self.up.bias.any()
