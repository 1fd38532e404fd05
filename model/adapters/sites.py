"""The layers of a decoder under the names that Hugging Face, and so PEFT, gives them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from common.errors import UserError
from model.adapters.config import AdapterConfig
from model.convert.registry import family_of_ours
from model.decoder import Decoder
from model.layers import Attention
from model.slots import Embedding, Linear, Slot


@dataclass(frozen=True)
class Site:
    """One layer of theirs, made of one or several of ours, with the slot that they share."""

    name: str
    """Such as `transformer.h.0.attn.c_attn`."""
    layers: tuple[Linear | Embedding, ...]
    slot: Slot
    block: int | None
    transposed: bool
    """Whether theirs stores its weight as (in, out)."""

    @property
    def sizes(self) -> list[int]:
        """Outputs of each of our layers."""
        return [layer.out_features if isinstance(layer, Linear) else layer.embedding_dim for layer in self.layers]


def find_sites(model: Decoder) -> list[Site]:
    """Every layer that an adapter could change, in the order of their model's modules; the output head is none."""
    family = family_of_ours(model.config)
    if family is None:
        return [
            Site(f"decoder.{name}", (module,), module.slot, _block(name), False)
            for name, module in model.named_modules()
            if isinstance(module, (Linear, Embedding)) and name != "position_embedding"
        ]
    found = []
    for rule in family.rules(model.config):
        ours = [name.removesuffix(".weight") for name in rule.ours]
        if not rule.theirs.endswith(".weight") or ours[0] in ("head", "position_embedding"):
            continue
        modules = [model.get_submodule(name) for name in ours]
        layers = tuple(module for module in modules if isinstance(module, (Linear, Embedding)))
        if layers:
            name = family.prefix + rule.theirs.removesuffix(".weight")
            found.append(Site(name, layers, _slot(model, ours, layers), _block(ours[0]), rule.transposed))
    return found


def choose_sites(model: Decoder, config: AdapterConfig) -> list[Site]:
    """The sites that `config` adapts, matched as PEFT matches them. Raises UserError when a name matches none."""
    sites = find_sites(model)
    if config.target_pattern is not None:
        chosen = [site for site in sites if re.fullmatch(config.target_pattern, site.name)]
    else:
        for target in config.targets:
            if target != "all-linear" and not any(_ends(site.name, target) for site in sites):
                raise UserError(
                    f"adapter.targets: no layer is called {target!r}; there are {', '.join(_endings(sites))}"
                )
        every = "all-linear" in config.targets
        chosen = [
            site
            for site in sites
            if (every and isinstance(site.layers[0], Linear)) or any(_ends(site.name, name) for name in config.targets)
        ]
    chosen = [site for site in chosen if not any(_ends(site.name, name) for name in config.exclude)]
    if config.blocks:
        chosen = [site for site in chosen if site.block in config.blocks]
    if not chosen:
        raise UserError(f"the adapter matches no layer; there are {', '.join(_endings(sites))}")
    return chosen


def _slot(model: Decoder, ours: Sequence[str], layers: tuple[nn.Module, ...]) -> Slot:
    owner = layers[0] if len(layers) == 1 else model.get_submodule(ours[0].rpartition(".")[0])
    assert isinstance(owner, (Linear, Embedding, Attention))
    return owner.slot


def _block(name: str) -> int | None:
    return int(name.split(".")[1]) if name.startswith("blocks.") else None


def _ends(name: str, ending: str) -> bool:
    return name == ending or name.endswith(f".{ending}")


def _endings(sites: Sequence[Site]) -> list[str]:
    return list(dict.fromkeys(".".join(site.name.split(".")[-2:]) for site in sites))
