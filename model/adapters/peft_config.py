"""`adapter_config.json` as PEFT has it, from our config and back."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from common.errors import UserError
from model.adapters.base_model import BaseModel
from model.adapters.change import SiteAdapter
from model.adapters.config import AdapterConfig, Method
from model.adapters.scaling import Scaling
from model.adapters.sites import Site
from model.config import ModelConfig

TYPES: dict[Method, str] = {
    "lora": "LORA",
    "ia3": "IA3",
    "prefix": "PREFIX_TUNING",
    "prompt": "PROMPT_TUNING",
    "bottleneck": "BOTTLENECK",  # not a type of PEFT's
}
# Their fields that are read, or that change nothing when an adapter is loaded. Any other one that has a value names
# something that this project does not do, so the adapter would mean something else here.
COMMON = (
    *("peft_type", "task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode"),
    *("peft_version", "modules_to_save"),
)
VIRTUAL = ("num_virtual_tokens", "token_dim", "num_transformer_submodules", "num_attention_heads", "num_layers")
KNOWN: dict[Method, tuple[str, ...]] = {
    "lora": (
        *("r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "fan_in_fan_out", "bias"),
        *("use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "init_lora_weights", "layers_to_transform"),
        *("megatron_core", "qalora_group_size", "ensure_weight_tying"),
    ),
    "ia3": ("target_modules", "exclude_modules", "feedforward_modules", "fan_in_fan_out", "init_ia3_weights"),
    "prefix": (*VIRTUAL, "encoder_hidden_size", "prefix_projection", "init_weights"),
    "prompt": (
        *(*VIRTUAL, "prompt_tuning_init", "prompt_tuning_init_text"),
        *("tokenizer_name_or_path", "tokenizer_kwargs"),
    ),
    "bottleneck": ("target_modules", "bottleneck_size"),
}
# Values other than these ask for something that is not known here.
ONLY: dict[str, tuple[Any, ...]] = {
    "init_lora_weights": (None, True, False, "gaussian"),  # others change the base as well
    "bias": (None, "none"),
    "num_transformer_submodules": (None, 1),
}


def to_peft(
    config: AdapterConfig, base: BaseModel, model: ModelConfig, found: Sequence[tuple[Site, SiteAdapter]]
) -> dict[str, Any]:
    """The values of the file.

    Args:
        base: the base model.
        model: its architecture.
        found: the sites that the adapter changes, and how.
    """
    values: dict[str, Any] = {
        "peft_type": TYPES[config.method],
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.name,
        "revision": base.revision,
        "modules_to_save": list(config.modules_to_save) or None,
        "inference_mode": True,
    }
    if config.method in ("prefix", "prompt"):
        return values | _virtual_values(config, base.name, model)
    values["target_modules"] = [site.name for site, _ in found]
    if config.method == "bottleneck":
        return values | {"bottleneck_size": config.bottleneck_size}
    values["fan_in_fan_out"] = any(site.transposed for site, _ in found)
    if config.method == "ia3":
        of_input = [site.name for site, adapter in found if isinstance(adapter, Scaling) and adapter.of_input]
        return values | {"feedforward_modules": of_input, "init_ia3_weights": True}
    # PiSSA is saved as a plain LoRA of twice the rank; its alpha is such that the scale stays the same.
    ranks = 2 if config.init == "pissa" else 1
    alphas = ranks**0.5 if config.rslora else ranks
    return values | {
        "r": config.rank * ranks,
        "lora_alpha": config.alpha * alphas,
        "lora_dropout": config.dropout,
        "rank_pattern": {key: value * ranks for key, value in config.rank_pattern.items()},
        "alpha_pattern": {key: value * alphas for key, value in config.alpha_pattern.items()},
        "use_rslora": config.rslora,
        "use_dora": config.dora,
        "init_lora_weights": True,
        "bias": "none",
    }


def _virtual_values(config: AdapterConfig, base: str, model: ModelConfig) -> dict[str, Any]:
    prefix = config.method == "prefix"
    values = {
        "num_virtual_tokens": config.virtual_tokens,
        # Of grouped keys and values PEFT counts the heads of these.
        "token_dim": model.key_value_heads * model.head_size if prefix else model.width,
        "num_attention_heads": model.key_value_heads if prefix else model.heads,
        "num_layers": model.layers,
        "num_transformer_submodules": 1,
    }
    if prefix:
        return values | {"encoder_hidden_size": values["token_dim"], "prefix_projection": False}
    if config.prompt_text is None:
        return values | {"prompt_tuning_init": "RANDOM"}
    # PEFT asks for the tokenizer, and reads it when it is to train further.
    text = {"prompt_tuning_init_text": config.prompt_text, "tokenizer_name_or_path": base}
    return values | {"prompt_tuning_init": "TEXT", **text}


def from_peft(values: Mapping[str, Any], where: str) -> AdapterConfig:
    """Our config from the values of the file `where`.

    Raises:
        UserError: the adapter is of a kind that is not known here, or a value is missing or wrong.
    """
    kinds: dict[Any, Method] = {theirs: ours for ours, theirs in TYPES.items()}
    method = kinds.get(str(values.get("peft_type")))
    if method is None:
        raise UserError(f"{where}: peft_type is {values.get('peft_type')!r}; known are {', '.join(TYPES.values())}")
    known = {*COMMON, *KNOWN[method]}
    unknown = {key for key, value in values.items() if key not in known and value not in (None, False, {}, [], "")}
    unknown |= {key for key, fine in ONLY.items() if key in known and values.get(key) not in fine}
    # There they are regular expressions.
    unknown |= {key for key in ("exclude_modules", "feedforward_modules") if isinstance(values.get(key), str)}
    if unknown:
        raise UserError(f"{where}: {', '.join(sorted(unknown))} ask for something that is not known here")
    try:
        modules = _names(values, "modules_to_save")
        config = AdapterConfig(method=method, modules_to_save=modules, **_fields(method, values))
        config.check()
    except ValueError as error:
        raise UserError(f"{where} is damaged: {error}") from error
    except UserError as error:
        raise UserError(f"{where} asks for what cannot be: {error}") from error
    return config


def _fields(method: Method, values: Mapping[str, Any]) -> dict[str, Any]:
    if method == "prefix":
        return {"virtual_tokens": _integer(values, "num_virtual_tokens")}
    if method == "prompt":
        text = values.get("prompt_tuning_init_text") if values.get("prompt_tuning_init") == "TEXT" else None
        return {"virtual_tokens": _integer(values, "num_virtual_tokens"), "prompt_text": text}
    found: dict[str, Any] = {"exclude": _names(values, "exclude_modules")}
    targets = values.get("target_modules")
    if not targets:
        raise ValueError("target_modules is empty")
    if isinstance(targets, str) and targets != "all-linear":
        found["target_pattern"] = targets
    else:
        found["targets"] = (targets,) if isinstance(targets, str) else tuple(sorted(_names(values, "target_modules")))
    if method == "ia3":
        return found | {"feedforward": _names(values, "feedforward_modules")}
    if method == "bottleneck":
        return found | {"bottleneck_size": _integer(values, "bottleneck_size")}
    return found | {
        "rank": _integer(values, "r"),
        "alpha": _number(values, "lora_alpha"),
        "dropout": _number(values, "lora_dropout") if values.get("lora_dropout") else 0.0,
        "blocks": _blocks(values),
        "rank_pattern": _table(values, "rank_pattern", _integer),
        "alpha_pattern": _table(values, "alpha_pattern", _number),
        "rslora": bool(values.get("use_rslora")),
        "dora": bool(values.get("use_dora")),
    }


def _integer(values: Mapping[str, Any], key: str) -> int:
    value = values.get(key)
    if type(value) is not int:  # a bool is none
        raise ValueError(f"{key} must be a whole number, not {value!r}")
    return value


def _number(values: Mapping[str, Any], key: str) -> float:
    value = values.get(key)
    try:
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    except OverflowError:  # an integer that no float can hold
        pass
    raise ValueError(f"{key} must be a finite number, not {str(value)[:40]!r}")


def _names(values: Mapping[str, Any], key: str) -> tuple[str, ...]:
    names = values.get(key) or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{key} must be a list of names")
    return tuple(names)


def _blocks(values: Mapping[str, Any]) -> tuple[int, ...]:
    blocks = values.get("layers_to_transform")
    numbers = [] if blocks is None else blocks if isinstance(blocks, list) else [blocks]
    return tuple(_integer({"layers_to_transform": number}, "layers_to_transform") for number in numbers)


def _table(values: Mapping[str, Any], key: str, convert: Callable[[Mapping[str, Any], str], Any]) -> dict[str, Any]:
    table = values.get(key) or {}
    if not isinstance(table, dict):
        raise ValueError(f"{key} must be an object of names and numbers")
    try:
        return {name: convert(table, name) for name in table}
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from error


def check_fits(values: Mapping[str, Any], method: Method, model: ModelConfig, where: str) -> None:
    """Raises UserError when trained positions are of a model of another shape, which their own need not show."""
    if method not in ("prefix", "prompt"):
        return
    expected = _virtual_values(AdapterConfig(method=method), "", model)
    for key in ("token_dim", "num_attention_heads", "num_layers"):
        if values.get(key) not in (None, expected[key]):
            raise UserError(
                f"{where}: {key} is {values[key]!r}, of this model {expected[key]}; it was trained on another base"
            )
