"""The layers of a decoder under the names that Hugging Face, and so PEFT, gives them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from torch import nn

from common.errors import UserError
from model.adapters.config import AdapterConfig, Method
from model.convert.families import TensorRule
from model.convert.registry import family_of_ours
from model.decoder import Decoder
from model.layers import Attention, Norm
from model.slots import Embedding, Linear, Slot

# Our names of what a method changes when it is not told, as PEFT has it for GPT-2 and Llama, and Houlsby et al. A site
# of several layers is taken whole: IA3 of GPT-2's c_attn scales the queries too.
OWN_TARGETS: dict[Method, tuple[str, ...]] = {
    "ia3": ("attention.key", "attention.value", "mlp.down"),
    "bottleneck": ("attention.output", "mlp.down"),
}


@dataclass(frozen=True)
class Site:
    """One layer of theirs, made of one or several of ours, with the slot that they share."""

    name: str
    """Such as `transformer.h.0.attn.c_attn`."""
    ours: tuple[str, ...]
    """Our names of the layers."""
    layers: tuple[Linear | Embedding, ...]
    slot: Slot
    block: int | None
    transposed: bool
    """Whether theirs stores its weight as (in, out)."""

    @property
    def sizes(self) -> list[int]:
        """Outputs of each of our layers."""
        return [layer.out_features if isinstance(layer, Linear) else layer.embedding_dim for layer in self.layers]

    @property
    def inside(self) -> int:
        """Inputs; of an embedding its rows."""
        first = self.layers[0]
        return first.in_features if isinstance(first, Linear) else first.num_embeddings

    @property
    def linears(self) -> list[Linear]:
        """The layers, where they are not an embedding."""
        return [layer for layer in self.layers if isinstance(layer, Linear)]


def tensor_rules(model: Decoder) -> list[TensorRule]:
    """How all tensors of the base are stored, under the whole names that a model of theirs gives them."""
    family = family_of_ours(model.config)
    if family is not None:
        return [
            replace(rule, theirs=rule.theirs if rule.ours[0] == "head.weight" else family.prefix + rule.theirs)
            for rule in family.rules(model.config)
        ]
    return [
        TensorRule(f"decoder.{name}.{key}", tuple(parameter.shape), (f"{name}.{key}",), (len(parameter),))
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, nn.Embedding, Norm)) and not _in_adapter(name)
        for key, parameter in module.named_parameters(recurse=False)
    ]


def find_sites(model: Decoder) -> list[Site]:
    """Every layer that an adapter could change, in the order of their model's modules; the output head is none."""
    if family_of_ours(model.config) is None:
        # From the modules, since a quantized layer has no parameter for a weight.
        return [
            Site(f"decoder.{name}", (name,), (module,), module.slot, _block(name), False)
            for name, module in model.named_modules()
            if isinstance(module, (Linear, Embedding)) and name not in ("position_embedding", "head")
        ]
    found = []
    for rule in tensor_rules(model):
        ours = tuple(name.removesuffix(".weight") for name in rule.ours)
        if not rule.theirs.endswith(".weight") or ours[0] in ("head", "position_embedding"):
            continue
        modules = [model.get_submodule(name) for name in ours]
        layers = tuple(module for module in modules if isinstance(module, (Linear, Embedding)))
        if layers:
            name = rule.theirs.removesuffix(".weight")
            found.append(Site(name, ours, layers, _slot(model, ours, layers), _block(ours[0]), rule.transposed))
    return found


def choose_sites(model: Decoder, config: AdapterConfig) -> list[Site]:
    """The sites that `config` adapts, matched as PEFT matches them; what is trained itself is none.

    Raises:
        UserError: a name or a block is not there, nothing is left, or the method cannot change an embedding.
    """
    sites = find_sites(model)
    own = OWN_TARGETS.get(config.method)
    if config.target_pattern is not None:
        chosen = [site for site in sites if re.fullmatch(config.target_pattern, site.name)]
    elif not config.targets and own is not None:
        chosen = [site for site in sites if any(name.endswith(own) for name in site.ours)]
    else:
        chosen = _named(sites, config.targets or ("all-linear",))
    absent = [number for number in config.blocks if number not in range(model.config.layers)]
    if absent:
        raise UserError(f"adapter.blocks: there is no block {absent[0]}; they go from 0 to {model.config.layers - 1}")
    whole = {name for rule in trained_rules(model, config) for name in rule.ours}
    chosen = [
        site
        for site in chosen
        if not any(_ends(site.name, name) for name in config.exclude)
        and (not config.blocks or site.block in config.blocks)
        and f"{site.ours[0]}.weight" not in whole
    ]
    if not chosen:
        raise UserError(f"the adapter matches no layer; there are {', '.join(_endings(site.name for site in sites))}")
    for name in config.feedforward or ():
        if not any(_ends(site.name, name) for site in chosen):
            raise UserError(f"adapter.feedforward: {name!r} ends the name of no target; name one of the targets")
    embedded = next((site.name for site in chosen if isinstance(site.layers[0], Embedding)), None)
    if embedded is not None and (config.method != "lora" or config.dora or config.init == "pissa"):
        kind = "dora" if config.dora else config.init if config.init == "pissa" else config.method
        raise UserError(f"{kind} cannot change the embedding {embedded}; leave it out of the targets")
    return chosen


def is_feedforward(site: Site, config: AdapterConfig) -> bool:
    """Whether IA3 scales the input of `site` rather than its output."""
    if config.feedforward is None:
        return site.ours[0].endswith("mlp.down")
    return any(_ends(site.name, name) for name in config.feedforward)


def trained_rules(model: Decoder, config: AdapterConfig) -> list[TensorRule]:
    """The tensors of `modules_to_save`; as in PEFT "norm" ends "input_layernorm" too.

    Raises:
        UserError: there is no such module, it is a head tied to the embedding, or it is quantized.
    """
    rules = tensor_rules(model) if config.modules_to_save else []
    modules = [rule.theirs.rpartition(".")[0] for rule in rules]
    embedding = next((rule.theirs for rule in rules if rule.ours == ("embedding.weight",)), "").removesuffix(".weight")
    for ending in config.modules_to_save:
        if not any(module.endswith(ending) for module in modules):
            if model.head is None and ending in ("head", "lm_head"):
                last = embedding.split(".")[-1]
                raise UserError(f"adapter.modules_to_save: the head is tied to the embedding; name {last!r} instead")
            raise UserError(
                f"adapter.modules_to_save: no module is called {ending!r}; there are {', '.join(_endings(modules))}"
            )
    found = [
        rule for rule, module in zip(rules, modules, strict=True) if module.endswith(tuple(config.modules_to_save))
    ]
    for rule in found:
        for name in rule.ours:
            layer = model.get_submodule(name.rpartition(".")[0])
            if isinstance(layer, Linear) and layer.quantized is not None:
                raise UserError(
                    f"adapter.modules_to_save: {rule.theirs} is quantized, so it is not trained; leave it out"
                )
    return found


def _named(sites: Sequence[Site], targets: Sequence[str]) -> list[Site]:
    for target in targets:
        if target != "all-linear" and not any(_ends(site.name, target) for site in sites):
            there = ", ".join(_endings(site.name for site in sites))
            raise UserError(f"adapter.targets: no layer is called {target!r}; there are {there}")
    every = "all-linear" in targets
    return [
        site
        for site in sites
        if (every and isinstance(site.layers[0], Linear)) or any(_ends(site.name, name) for name in targets)
    ]


def _slot(model: Decoder, ours: Sequence[str], layers: tuple[nn.Module, ...]) -> Slot:
    owner = layers[0] if len(layers) == 1 else model.get_submodule(ours[0].rpartition(".")[0])
    assert isinstance(owner, (Linear, Embedding, Attention))
    return owner.slot


def _block(name: str) -> int | None:
    return int(name.split(".")[1]) if name.startswith("blocks.") else None


def _in_adapter(name: str) -> bool:
    return ".slot." in f"{name}." or name.startswith("virtual")


def _ends(name: str, ending: str) -> bool:
    return name == ending or name.endswith(f".{ending}")


def _endings(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(".".join(name.split(".")[-2:]) for name in names))
