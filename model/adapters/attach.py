"""Putting adapters into a decoder, switching between them, and taking them up into the weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.errors import UserError
from model.adapters.bottleneck import Bottleneck
from model.adapters.change import Change, SiteAdapter
from model.adapters.config import RESERVED, AdapterConfig
from model.adapters.low_rank import LowRank, LowRankEmbedding
from model.adapters.scaling import Scaling
from model.adapters.sites import Site, choose_sites, find_sites, trained_rules
from model.decoder import Decoder
from model.slots import Embedding, Linear, QuantizedWeight, Slot
from model.virtual import Prefix, Prompt, VirtualTokens


def attach(
    model: Decoder, config: AdapterConfig, name: str = "default", prompt_ids: Sequence[int] | None = None
) -> list[Site]:
    """Give `model` a new adapter called `name`, active alone and trained alone.

    All other weights are frozen, those of earlier adapters too, as PEFT does when it makes an adapter the active one.

    Args:
        prompt_ids: the tokens of `config.prompt_text`, when there is one.

    Returns:
        The layers that it changes; none for trained positions before the text.

    Raises:
        UserError: the config is wrong or matches no layer, the name is taken or impossible, or the adapter cannot stand
            beside those that are there. Then `model` is as before.
    """
    config.check()
    if config.method == "none":
        raise UserError("adapter.method is none, so there is nothing to attach; choose lora, ia3, prefix, ...")
    if not re.fullmatch(r"\w+", name) or name in RESERVED or hasattr(nn.ModuleDict, name):
        raise UserError(f"an adapter cannot be called {name!r}; use letters, digits and underscores, and another word")
    present = names(model)
    if name in present:
        raise UserError(f"there is an adapter {name!r} already; choose another name")
    if present and (config.modules_to_save or trained_of_base(model)):
        raise UserError("adapter.modules_to_save changes the base, which other adapters rest on; use one adapter only")
    if (config.prompt_text is None) != (prompt_ids is None):
        raise UserError("adapter.prompt_text and its token ids belong together; give both or neither")
    whole = {key for rule in trained_rules(model, config) for key in rule.ours}
    virtual = _virtual(model, config, name, prompt_ids) if config.method in ("prefix", "prompt") else None
    sites = choose_sites(model, config) if virtual is None else []
    made = [_make(config, site) for site in sites]
    for key, parameter in model.named_parameters():
        parameter.requires_grad = key in whole
    device = model.device
    for site, adapter in zip(sites, made, strict=True):
        site.slot[name] = adapter.to(device).train(model.training)
    if virtual is not None:
        model.virtual = virtual.to(device).train(model.training)
    activate(model, (name,))
    return sites


def _make(config: AdapterConfig, site: Site) -> SiteAdapter:
    if config.method == "ia3":
        return Scaling(config, site)
    if config.method == "bottleneck":
        return Bottleneck(config, site)
    return LowRankEmbedding(config, site) if isinstance(site.layers[0], Embedding) else LowRank(config, site)


@torch.no_grad()
def _virtual(model: Decoder, config: AdapterConfig, name: str, ids: Sequence[int] | None) -> VirtualTokens:
    if model.virtual is not None:
        raise UserError(f"adapter {model.virtual.name!r} stands before the text already, and only one can; remove it")
    if config.virtual_tokens >= model.config.context_length:
        raise UserError(
            f"adapter.virtual_tokens: {config.virtual_tokens} leave no room for a text in a context of "
            f"{model.config.context_length}; take fewer"
        )
    made = (Prefix if config.method == "prefix" else Prompt)(model.config, config.virtual_tokens)
    if ids is not None:
        if not ids or not all(0 <= each < model.config.vocab_size for each in ids):
            raise UserError("adapter.prompt_text: its token ids are none, or not of this model's vocabulary")
        repeated = (list(ids) * (made.count // len(ids) + 1))[: made.count]
        made.prompt_embeddings.copy_(model.embedding.plain(torch.tensor(repeated, device=model.device)))
    made.name = name
    return made


def names(model: Decoder) -> list[str]:
    """All adapters that `model` has."""
    found = dict.fromkeys(name for site in find_sites(model) for name in site.slot)
    return [*found] if model.virtual is None else [*found, model.virtual.name]


def activate(model: Decoder, chosen: Sequence[str]) -> None:
    """Apply these adapters and no others; which of them are trained is another matter, and does not change.

    Raises:
        UserError: there is no such adapter, or one that changed the base itself would be switched off.
    """
    missing = [name for name in chosen if name not in names(model)]
    if missing:
        raise _unknown(model, missing[0])
    if not chosen and names(model) and trained_of_base(model):
        raise UserError("an adapter with modules_to_save cannot be switched off: it changed the base; load that again")
    _apply([site.slot for site in find_sites(model)], model.virtual, chosen)


def _apply(slots: Sequence[Slot], virtual: VirtualTokens | None, chosen: Sequence[str]) -> None:
    for slot in slots:
        slot.active = tuple(name for name in chosen if name in slot)
    if virtual is not None:
        virtual.active = virtual.name in chosen


class Switch:
    """Changes which adapter is active as often as every pass, without looking for the sites each time."""

    def __init__(self, model: Decoder) -> None:
        self.model, self.found = model, tuple(active_names(model))
        self._slots = [site.slot for site in find_sites(model)]
        self._now = self.found

    @property
    def adapted(self) -> bool:
        """Whether an adapter is active."""
        return bool(self._now)

    def __call__(self, name: str | None) -> None:
        """Apply the adapter `name` alone; with None those that were active at first."""
        chosen = self.found if name is None else (name,)
        if chosen != self._now:
            self._now = chosen
            _apply(self._slots, self.model.virtual, chosen)


def active_names(model: Decoder) -> list[str]:
    """The adapters that are applied, in their order."""
    found = dict.fromkeys(name for site in find_sites(model) for name in site.slot.active)
    virtual = model.before_text
    return [*found] if virtual is None else [*found, virtual.name]


def adapters(model: Decoder, name: str) -> Iterator[tuple[Site, SiteAdapter]]:
    """Every site that the adapter `name` changes, and how; none for trained positions before the text."""
    for site in find_sites(model):
        if name in site.slot:
            adapter = site.slot[name]
            assert isinstance(adapter, SiteAdapter)
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


def trained_of_base(model: Decoder) -> list[str]:
    """The parameters of the base itself that are trained."""
    return [key for key, value in base_parameters(model).items() if value.requires_grad]


def base_parameters(model: Decoder) -> dict[str, nn.Parameter]:
    """All parameters that belong to no adapter."""
    parameters = model.named_parameters()
    return {key: value for key, value in parameters if ".slot." not in key and not key.startswith("virtual.")}


def remove(model: Decoder, name: str = "default") -> None:
    """Take the adapter out; modules of the base that were trained with it stay as they are.

    Raises UserError when there is no such adapter.
    """
    if name not in names(model):
        raise _unknown(model, name)
    if model.virtual is not None and model.virtual.name == name:
        model.virtual = None
    for site, _ in adapters(model, name):
        _take_out(site, name)


@dataclass(frozen=True)
class Merged:
    """What `unmerge` needs. It holds the adapter and, of a quantized base, the bits; no second copy of the weights."""

    name: str
    parts: tuple[_Part, ...]


@dataclass(frozen=True)
class _Part:
    site: Site
    adapter: SiteAdapter
    change: Change
    quantized: tuple[QuantizedWeight | None, ...]
    active: bool


@torch.no_grad()
def merge(model: Decoder, name: str = "default", dequantize: bool = False) -> Merged:
    """Add the adapter to the weights that it changes, in fp32, and remove it.

    Args:
        dequantize: a quantized weight becomes the fp32 weight that its bits stand for, with the update. The result
            differs from merging into the weights that were quantized: it is the model that was trained.

    Raises:
        UserError: no weight could do the same as the adapter, a weight is quantized and `dequantize` is off, other
            active adapters depend on the same weights, or one would no longer be finite; then none is changed.
    """
    if name not in names(model):
        raise _unknown(model, name)
    if model.virtual is not None and model.virtual.name == name:
        raise UserError(f"adapter {name!r} cannot be merged: positions before the text are no change of a weight")
    parts = tuple(_part(model, site, adapter, name) for site, adapter in adapters(model, name))
    if not dequantize and any(bits is not None for part in parts for bits in part.quantized):
        raise UserError(
            "an adapter cannot be merged into four bits; merge it into the dequantized base (`dequantize`), or load "
            "the adapter on the original base and merge it there"
        )
    for check in (True, False):  # twice rather than with a second copy of all weights
        for part in parts:
            for layer, weight in zip(part.site.layers, _changed(part, part.change.apply), strict=True):
                if check and not weight.isfinite().all():
                    raise UserError(f"{part.site.name} is not finite with adapter {name!r}; it has diverged")
                if not check:
                    _put(layer, weight)
    for part in parts:
        _scale_bias(part, undo=False)
        _take_out(part.site, name)
    return Merged(name, parts)


@torch.no_grad()
def unmerge(model: Decoder, kept: Merged) -> None:
    """Take back what `merge` did: the weights are as before but for fp32 rounding, and the adapter is there again.

    Raises:
        UserError: another adapter has the name by now, or a factor of the adapter is zero, which nothing undoes.
    """
    if kept.name in names(model):
        raise UserError(f"there is an adapter {kept.name!r} again; remove it before unmerging another of that name")
    stuck = next((part for part in kept.parts if not part.change.invertible and None in part.quantized), None)
    if stuck is not None:
        raise UserError(f"{stuck.site.name} was multiplied by zero, which cannot be taken back; load the base again")
    for part in kept.parts:
        _scale_bias(part, undo=True)
        for layer, bits, weight in zip(part.site.layers, part.quantized, _changed(part, part.change.undo), strict=True):
            if bits is None:
                layer.weight.copy_(weight)
            else:
                layer.keep_in(bits)
        part.site.slot[kept.name] = part.adapter
        if part.active:
            part.site.slot.active += (kept.name,)


def _part(model: Decoder, site: Site, adapter: SiteAdapter, name: str) -> _Part:
    change = adapter.change(site.layers)
    if change is None:
        raise UserError(f"adapter {name!r} cannot be merged: it is no linear change of the weight of {site.name}")
    if site.ours == ("embedding",) and model.head is None:
        raise UserError(f"adapter {name!r} cannot be merged: {site.name} is the head too, which it does not change")
    others = [site.slot[other] for other in site.slot.active if other != name]
    if not all(isinstance(other, SiteAdapter) and other.additive for other in (*others, *[adapter] * bool(others))):
        raise UserError(
            f"adapter {name!r} cannot be merged beside other active adapters of {site.name} of another kind; "
            "switch those off first"
        )
    bits = tuple(layer.quantized for layer in site.layers)
    return _Part(site, adapter, change, bits, name in site.slot.active)


def _changed(part: _Part, how: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
    """The weight of each layer of the site after `how`, fp32."""
    dense = [layer.dense_weight() for layer in part.site.layers]
    return how(torch.cat(dense)).split([len(weight) for weight in dense])


def _put(layer: Linear | Embedding, weight: Tensor) -> None:
    if layer.quantized is not None:
        layer.quantized = None
        layer.weight = nn.Parameter(weight.clone(), requires_grad=False)
    else:
        layer.weight.copy_(weight)


def _scale_bias(part: _Part, undo: bool) -> None:
    if not part.change.scales_bias or part.change.rows is None:
        return
    factors = part.change.rows.flatten().split(part.site.sizes)
    for linear, factor in zip(part.site.linears, factors, strict=True):
        if linear.bias is not None:
            linear.bias.copy_(linear.bias / factor if undo else linear.bias * factor)


def _unknown(model: Decoder, name: str) -> UserError:
    return UserError(f"there is no adapter {name!r}; there are {', '.join(names(model)) or 'none'}")


def _take_out(site: Site, name: str) -> None:
    del site.slot[name]
    site.slot.active = tuple(other for other in site.slot.active if other != name)
