"""Putting adapters into a decoder, switching between them, and taking them up into the weights."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from common.errors import UserError
from model.adapters.config import RESERVED, AdapterConfig
from model.adapters.low_rank import LowRank, LowRankEmbedding
from model.adapters.sites import Site, choose_sites, find_sites
from model.decoder import Decoder
from model.slots import Adapter, Embedding, Linear


def attach(model: Decoder, config: AdapterConfig, name: str = "default") -> list[Site]:
    """Give `model` a new LoRA adapter called `name`, active alone, with every weight that is no adapter's frozen.

    Raises:
        UserError: the adapter matches no layer, or the name is taken or impossible.
    """
    config.check()
    if not re.fullmatch(r"\w+", name) or name in RESERVED or hasattr(nn.ModuleDict, name):
        raise UserError(f"an adapter cannot be called {name!r}; use letters, digits and underscores, and another word")
    if name in names(model):
        raise UserError(f"there is an adapter {name!r} already; choose another name")
    sites = choose_sites(model, config)
    for key, parameter in model.named_parameters():
        if ".slot." not in key:
            parameter.requires_grad = False
    for site in sites:
        kind = LowRankEmbedding if isinstance(site.layers[0], Embedding) else LowRank
        site.slot[name] = kind(config, site)
    activate(model, (name,))
    return sites


def names(model: Decoder) -> list[str]:
    """All adapters that `model` has."""
    return list(dict.fromkeys(name for site in find_sites(model) for name in site.slot))


def activate(model: Decoder, chosen: Sequence[str]) -> None:
    """Apply these adapters and no others; which of them are trained is another matter, and does not change.

    Raises UserError when there is no such adapter.
    """
    missing = [name for name in chosen if name not in names(model)]
    if missing:
        raise UserError(f"there is no adapter {missing[0]!r}; there are {', '.join(names(model)) or 'none'}")
    for site in find_sites(model):
        site.slot.active = tuple(name for name in chosen if name in site.slot)


def adapters(model: Decoder, name: str) -> Iterator[tuple[Site, Adapter]]:
    """Every site that the adapter `name` changes, and how."""
    for site in find_sites(model):
        if name in site.slot:
            adapter = site.slot[name]
            assert isinstance(adapter, Adapter)
            yield site, adapter


def trained_state(model: Decoder) -> dict[str, Tensor]:
    """What training changes or draws, by its name in `state_dict`: all of a model without adapters, else these, with
    the parameters of the base that are trained beside them."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name in trained or ".slot." in name or name.startswith("virtual.")
    }


@torch.no_grad()
def merge(model: Decoder, name: str = "default") -> None:
    """Add the adapter to the weights that it changes, in fp32, and remove it.

    Raises:
        UserError: a weight would no longer be finite, or is quantized; then none is changed.
    """
    found = list(adapters(model, name))
    if not found:
        raise UserError(f"there is no adapter {name!r}; there are {', '.join(names(model)) or 'none'}")
    if any(isinstance(layer, Linear) and layer.quantized is not None for site, _ in found for layer in site.layers):
        raise UserError("an adapter cannot be merged into four bits; merge it into the weights as they were before")
    for check in (True, False):  # twice rather than with a second copy of all weights
        for site, adapter in found:
            for layer, weight in zip(site.layers, _merged(site, adapter), strict=True):
                if check and not weight.isfinite().all():
                    raise UserError(f"{site.name} is not finite with adapter {name!r}; it has diverged")
                if not check:
                    layer.weight.copy_(weight)
    for site, _ in found:
        del site.slot[name]
        site.slot.active = tuple(other for other in site.slot.active if other != name)


def _merged(site: Site, adapter: Adapter) -> tuple[Tensor, ...]:
    """The weight of each layer of `site` with the adapter, fp32."""
    assert isinstance(adapter, (LowRank, LowRankEmbedding))
    weight = torch.cat([layer.weight.float() for layer in site.layers]) + adapter.delta().float()
    if isinstance(adapter, LowRank) and adapter.lora_magnitude_vector is not None:
        weight *= (adapter.lora_magnitude_vector / adapter.row_norms(site.layers))[:, None]
    return weight.split([len(layer.weight) for layer in site.layers])
