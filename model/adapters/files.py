"""Adapters as PEFT stores them: `adapter_config.json`, `adapter_model.safetensors` and a model card."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from common.errors import UserError
from common.files import atomic_write, read_json, write_json
from model.adapters.attach import activate, active_names, adapters, attach, names, remove
from model.adapters.base_model import base_model
from model.adapters.card import model_card
from model.adapters.config import AdapterConfig
from model.adapters.fingerprint import base_fingerprint, compare_bases
from model.adapters.patterns import try_patterns
from model.adapters.peft_config import check_fits, from_peft, to_peft
from model.adapters.sites import choose_sites, find_sites, trained_rules
from model.convert.families import TensorRule
from model.convert.output import new_directory
from model.convert.registry import family_of_ours
from model.decoder import Decoder
from model.slots import Embedding
from model.tensor_files import TensorFiles, read_metadata, some

CONFIG, WEIGHTS, CARD = "adapter_config.json", "adapter_model.safetensors", "README.md"
HEAD = "lm_head"  # in whole models of all families
FINGERPRINT = "base_fingerprint"  # in the metadata of the weights
LARGEST = 2**20  # bytes of a config; patterns for every layer of a large model take a tenth


def save_adapter(model: Decoder, config: AdapterConfig, directory: Path, base: str, name: str = "default") -> None:
    """Write the adapter `name` as a new `directory`, from which `PeftModel.from_pretrained` loads it.

    PiSSA is written as a plain LoRA of twice the rank, for the base as it is. A whole embedding that is the head too is
    written as both, because PEFT would leave the head as it was. PEFT has no bottleneck adapters; their
    files have the same names and the `peft_type` BOTTLENECK, and only this project loads them.

    Args:
        base: where the base came from: a run, a Hugging Face directory, or hf://ORG/NAME. Of a run the directory is
            written that the card says how to export it to.

    Raises:
        UserError: there is no such adapter, `directory` holds something already, or could not be written.
    """
    if name not in names(model):
        raise UserError(f"there is no adapter {name!r} to be saved; there are {', '.join(names(model)) or 'none'}")
    found, rules = list(adapters(model, name)), trained_rules(model, config)
    tensors = {
        f"{_prefix(config)}{site.name}.{key}": value
        for site, adapter in found
        for key, value in adapter.tensors().items()
    }
    if model.virtual is not None and model.virtual.name == name:
        tensors = {key: value.detach() for key, value in model.virtual.state_dict().items()}
    parameters: dict[str, Tensor | None] = {key: value.detach() for key, value in model.named_parameters()}
    for rule in rules:
        if rule.ours[0] in parameters:
            tensors[_prefix(config) + rule.theirs] = rule.join(parameters, torch.float32)
    named = base_model(base, model.config)
    values = to_peft(config, named, model.config, found)
    if model.head is None and "embedding.weight" in _trained(rules) and family_of_ours(model.config) is not None:
        tensors[f"{_prefix(config)}{HEAD}.weight"] = model.embedding.weight.detach().float().clone()
        values["modules_to_save"].append(HEAD)
    metadata = {"format": "pt", FINGERPRINT: base_fingerprint(model, _trained(rules))}
    card = model_card(config, named, len(found), sum(value.numel() for value in tensors.values()))
    with new_directory(directory) as path:
        save_file({key: value.cpu().contiguous() for key, value in tensors.items()}, path / WEIGHTS, metadata=metadata)
        write_json(path / CONFIG, values)
        with atomic_write(path / CARD) as file:
            file.write(card)


@torch.no_grad()
def load_adapter(model: Decoder, directory: Path, name: str = "default") -> AdapterConfig:
    """Attach the adapter that PEFT or `save_adapter` wrote; says so on standard error when only one of the base now and
    the base in training is quantized, so that they could not be compared in full.

    Raises:
        UserError: a file is missing or damaged, the adapter is of a kind that is not known here, belongs to another
            base, or changes nothing. Then `model` is as before.
    """
    where, path = directory / CONFIG, directory / WEIGHTS
    values = _read_values(where)
    config = from_peft(values, str(where))
    check_fits(values, config.method, model.config, str(where))
    if model.head is None:  # what trains the embedding trains it too
        config = replace(config, modules_to_save=tuple(each for each in config.modules_to_save if each != HEAD))
    try_patterns(config.patterns, [site.name for site in find_sites(model)], str(where))
    files, rules = TensorFiles.of_file(path), trained_rules(model, config)
    _check_sizes(model, config, files, path)
    _check_base(model, path, rules)
    _check_head(model, config, rules, values, files)
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    active = active_names(model)
    # What a text began as is in the tensors by now.
    attach(model, replace(config, prompt_text=None), name)
    try:
        _fill(model, config, rules, files, path, name)
    except UserError:
        remove(model, name)
        for parameter, flag in flags.items():
            parameter.requires_grad = flag
        activate(model, active)
        raise
    return config


def _read_values(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > LARGEST:
            raise ValueError(f"more than {LARGEST:,} bytes")
        values = read_json(path)
        if not isinstance(values, dict):
            raise ValueError("it is no object")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is missing or damaged ({error}); an adapter needs it") from error
    return values


def _check_sizes(model: Decoder, config: AdapterConfig, files: TensorFiles, path: Path) -> None:
    """The sizes that the config asks for must be those of the tensors, before anything is made of that size."""
    if config.method == "ia3":
        return
    if config.method in ("prefix", "prompt"):
        field, sizes = "num_virtual_tokens", {"prompt_embeddings": config.virtual_tokens}
    elif config.method == "bottleneck":
        places = [f"{_prefix(config)}{site.name}.down.weight" for site in choose_sites(model, config)]
        field, sizes = "bottleneck_size", dict.fromkeys(places, config.bottleneck_size)
    else:
        field, sizes = "r or rank_pattern", {}
        for site in choose_sites(model, config):
            first = "lora_embedding_A" if isinstance(site.layers[0], Embedding) else "lora_A.weight"
            sizes[f"{_prefix(config)}{site.name}.{first}"] = config.of_site(site.name)[0]
    missing = set(sizes) - set(files.files)
    if missing:
        raise UserError(f"{path} is no adapter of this model: it lacks {some(missing)}")
    for key, size in sizes.items():
        shape, _ = files.layout(key)
        if shape[:1] != (size,):
            raise UserError(
                f"{path}: {key} has shape {shape}, but {field} in {CONFIG} asks for {size} rows; one of the two files "
                "is damaged, or it was trained on another base"
            )


def _check_base(model: Decoder, path: Path, rules: list[TensorRule]) -> None:
    theirs = read_metadata(path).get(FINGERPRINT)  # PEFT writes none
    if theirs is None:
        return
    found = compare_bases(base_fingerprint(model, _trained(rules)), theirs)
    if found == "different":
        raise UserError(f"{path} was trained on another base: the weights of this model are not those; load its own")
    if found == "alike":
        print(
            f"note: {path}: this base or the one in training is quantized, so only embeddings, norms and biases were "
            "compared; they agree",
            file=sys.stderr,
        )


def _check_head(
    model: Decoder, config: AdapterConfig, rules: list[TensorRule], values: Mapping[str, Any], files: TensorFiles
) -> None:
    """A head that is tied to the embedding here must have been trained as one with it, or not at all."""
    head = f"{_prefix(config)}{HEAD}.weight"
    embedding = next((_prefix(config) + rule.theirs for rule in rules if rule.ours == ("embedding.weight",)), None)
    if model.head is not None or (embedding is None and head not in files.files):
        return
    if embedding is not None and family_of_ours(model.config) is None:  # no other model has these names
        return
    both = embedding is not None and {embedding, head} <= set(files.files)
    if both and embedding is not None and torch.equal(files.read(embedding), files.read(head)):
        return
    # PEFT does so only for embeddings of this name.
    if values.get("ensure_weight_tying") and embedding is not None and embedding.endswith("embed_tokens.weight"):
        return
    raise UserError("the adapter's head was trained apart from its embedding, but this model ties them; untie it first")


def _fill(
    model: Decoder, config: AdapterConfig, rules: list[TensorRule], files: TensorFiles, path: Path, name: str
) -> None:
    """Put the tensors of the file in their places. Raises UserError before the base is changed."""
    found, parameters = list(adapters(model, name)), dict(model.named_parameters())
    rules = [rule for rule in rules if rule.ours[0] in parameters]
    places: dict[str, Tensor] = {
        f"{_prefix(config)}{site.name}.{key}": value
        for site, adapter in found
        for key, value in adapter.state_dict(keep_vars=True).items()
    }
    if model.virtual is not None and model.virtual.name == name:
        places = dict(model.virtual.state_dict(keep_vars=True))
    shapes = {key: place.shape for key, place in places.items()}
    shapes |= {_prefix(config) + rule.theirs: torch.Size(rule.shape) for rule in rules}
    tied = {f"{_prefix(config)}{HEAD}.weight"} if model.head is None else set()
    kept = [key for key in files.files if key not in tied and not _is_base_of(model, config, key, files, path)]
    tensors = {key: files.read(key) for key in kept}
    missing, extra = set(shapes) - set(tensors), set(tensors) - set(shapes)
    if missing or extra:
        said = [f"lacks {some(missing)}"] * bool(missing)
        said += [f"holds {some(extra)}, which it has no place for"] * bool(extra)
        raise UserError(f"{path} is no adapter of this model: it {' and '.join(said)}")
    for key, tensor in tensors.items():
        if tensor.shape != shapes[key]:
            raise UserError(
                f"{path}: {key} has shape {tuple(tensor.shape)}, this model needs {tuple(shapes[key])}; "
                "it was trained on another base"
            )
        if not tensor.isfinite().all():
            raise UserError(f"{path}: {key} is not finite; its training had diverged")
    for key, place in places.items():
        place.copy_(tensors[key])
    whole = {ours: part for rule in rules for ours, part in rule.split(tensors[_prefix(config) + rule.theirs]).items()}
    idle = found and all(adapter.is_idle(site.layers) for site, adapter in found)
    if idle and all(torch.equal(part.to(parameters[ours]), parameters[ours]) for ours, part in whole.items()):
        raise UserError(f"{path} changes nothing: all its updates are zero; it was never trained")
    for ours, part in whole.items():
        parameters[ours].copy_(part)


def _is_base_of(model: Decoder, config: AdapterConfig, key: str, files: TensorFiles, path: Path) -> bool:
    """Whether `key` is the base's own embedding, which PEFT writes beside a LoRA of it. Raises when it is another."""
    if not key.endswith(".base_layer.weight"):
        return False
    name = key.removeprefix(_prefix(config)).removesuffix(".base_layer.weight")
    site = next(
        (site for site in find_sites(model) if site.name == name and isinstance(site.layers[0], Embedding)), None
    )
    if site is None:
        return False
    mine, theirs = site.layers[0].weight, files.read(key)
    if mine.shape != theirs.shape or not torch.allclose(mine, theirs.to(mine), rtol=1e-2, atol=1e-6):
        raise UserError(f"{path}: {key} is not the embedding of this model; the adapter was trained on another base")
    return True


def _prefix(config: AdapterConfig) -> str:
    """What PEFT puts before the names of modules."""
    return "base_model." if config.method in ("prefix", "prompt") else "base_model.model."


def _trained(rules: list[TensorRule]) -> set[str]:
    return {name for rule in rules for name in rule.ours}
