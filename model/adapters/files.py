"""Adapters as PEFT stores them: `adapter_config.json` and `adapter_model.safetensors`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from common.errors import UserError
from common.files import read_json, write_json
from model.adapters.attach import adapters, attach
from model.adapters.config import AdapterConfig
from model.convert.output import new_directory
from model.decoder import Decoder
from model.tensor_files import TensorFiles, some

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
# Fields of theirs that name what this project does not do; with any other value the adapter would mean something else.
REFUSED = ("modules_to_save", "layer_replication", "megatron_config", "trainable_token_indices", "target_parameters")
PLAIN_INITS = (None, True, False, "gaussian")  # others change the base as well
KNOWN = {
    *("peft_type", "task_type", "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules"),
    *("fan_in_fan_out", "bias", "inference_mode", "base_model_name_or_path", "use_rslora", "use_dora", "rank_pattern"),
    *("alpha_pattern", "init_lora_weights", "peft_version", "layers_to_transform", "revision", "auto_mapping"),
    *(
        "megatron_core",
        "layers_pattern",
        "loftq_config",
        "eva_config",
        "corda_config",
        "qalora_group_size",
        "ensure_weight_tying",
    ),
}


def save_adapter(model: Decoder, config: AdapterConfig, directory: Path, base: str, name: str = "default") -> None:
    """Write the LoRA adapter `name` as a new `directory`, from which `PeftModel.from_pretrained` loads it.

    Raises:
        UserError: `directory` holds something already, or could not be written.
    """
    found = list(adapters(model, name))
    tensors = {
        f"{PREFIX}{site.name}.{key}": value.detach().cpu().contiguous()
        for site, adapter in found
        for key, value in adapter.state_dict().items()
    }
    values = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": [site.name for site, _ in found],
        "rank_pattern": config.rank_pattern,
        "alpha_pattern": config.alpha_pattern,
        "use_rslora": config.rslora,
        "use_dora": config.dora,
        "init_lora_weights": True,
        "fan_in_fan_out": any(site.transposed for site, _ in found),
        "bias": "none",
        "modules_to_save": None,
        "inference_mode": True,
    }
    with new_directory(directory) as path:
        save_file(tensors, path / WEIGHTS, metadata={"format": "pt"})
        write_json(path / CONFIG, values)


@torch.no_grad()
def load_adapter(model: Decoder, directory: Path, name: str = "default") -> AdapterConfig:
    """Attach the LoRA adapter that PEFT or `save_adapter` wrote.

    Raises:
        UserError: a file is missing or damaged, the adapter is of a kind that is not known here, belongs to another
            base, or changes nothing.
    """
    config = read_adapter_config(directory)
    files = TensorFiles.of_file(directory / WEIGHTS)
    attach(model, config, name)
    places: dict[str, Tensor] = {
        f"{PREFIX}{site.name}.{key}": value
        for site, adapter in adapters(model, name)
        for key, value in adapter.state_dict(keep_vars=True).items()
    }
    missing, extra = set(places) - set(files.files), set(files.files) - set(places)
    if missing or extra:
        said = [f"lacks {some(missing)}"] * bool(missing) + [f"holds {some(extra)}, which it has no place for"] * bool(
            extra
        )
        raise UserError(f"{directory / WEIGHTS} is no adapter of this model: it {' and '.join(said)}")
    changes = False
    for key, place in places.items():
        tensor = files.read(key)
        if tensor.shape != place.shape:
            raise UserError(
                f"{directory / WEIGHTS}: {key} has shape {tuple(tensor.shape)}, this model needs {tuple(place.shape)}; "
                "it was trained on another base"
            )
        place.copy_(tensor)
        changes |= key.endswith(("lora_B.weight", "lora_embedding_A")) and bool(tensor.any())
    if not changes and not config.dora:
        raise UserError(f"{directory / WEIGHTS} changes nothing: all its updates are zero; it was never trained")
    return config


def read_adapter_config(directory: Path) -> AdapterConfig:
    """`adapter_config.json`. Raises UserError when it is missing, damaged, or of a kind that is not known here."""
    path = directory / CONFIG
    try:
        values: dict[str, Any] = dict(read_json(path))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{path} is missing or damaged ({error}); an adapter needs it") from error
    if values.get("peft_type") != "LORA":
        raise UserError(f"{path}: peft_type is {values.get('peft_type')!r}; only LORA is known here")
    unknown = {key for key, value in values.items() if key not in KNOWN and value not in (None, False, {}, [], "")}
    unknown |= {key for key in REFUSED if values.get(key)}
    unknown |= set() if values.get("init_lora_weights") in PLAIN_INITS else {"init_lora_weights"}
    unknown |= {"bias"} if values.get("bias", "none") != "none" else set()
    if unknown:
        raise UserError(f"{path}: {', '.join(sorted(unknown))} ask for something that is not known here")
    targets = values.get("target_modules")
    excluded, blocks = values.get("exclude_modules") or (), values.get("layers_to_transform")
    try:
        return AdapterConfig(
            rank=int(values["r"]),
            alpha=float(values["lora_alpha"]),
            dropout=float(values.get("lora_dropout", 0.0)),
            targets=()
            if isinstance(targets, str) and targets != "all-linear"
            else tuple(["all-linear"] if isinstance(targets, str) else sorted(targets or ())),
            target_pattern=targets if isinstance(targets, str) and targets != "all-linear" else None,
            exclude=(excluded,) if isinstance(excluded, str) else tuple(excluded),
            blocks=(blocks,) if isinstance(blocks, int) else tuple(blocks or ()),
            rank_pattern=dict(values.get("rank_pattern") or {}),
            alpha_pattern=dict(values.get("alpha_pattern") or {}),
            rslora=bool(values.get("use_rslora")),
            dora=bool(values.get("use_dora")),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error!r}") from error
