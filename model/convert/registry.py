"""The families that this decoder can be read from and written as."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.errors import UserError
from model.config import ModelConfig
from model.convert.families import Family, Fields
from model.convert.gpt2 import GPT2
from model.convert.llama import LLAMA

FAMILIES = (GPT2, LLAMA)


def family_of_theirs(values: Mapping[str, Any], where: Path) -> Family:
    """The family that a config.json of Hugging Face belongs to. Raises UserError when this decoder knows none."""
    kind = str(values.get("model_type"))
    if "quantization_config" in values:
        raise UserError(f"{where}: quantization_config is there; take the checkpoint before it was quantized")
    for family in FAMILIES:
        if kind in family.architectures:
            return family
    known = ", ".join(name for family in FAMILIES for name in family.architectures)
    raise UserError(f"{where}: model_type is {kind!r}; this decoder can express {known}")


def family_of_ours(config: ModelConfig) -> Family | None:
    """The family that can store `config`; None when it is of no other family than this project's own recipe."""
    return next((family for family in FAMILIES if family.misfit(config) is None), None)


def read_theirs(values: Mapping[str, Any], where: Path) -> tuple[Family, ModelConfig]:
    """Family and architecture of a config.json. Raises UserError for what this decoder cannot express."""
    family = family_of_theirs(values, where)
    config = family.read_config(Fields(values, str(where)))
    try:
        config.check()
    except UserError as error:
        raise UserError(f"{where} describes an impossible model: {error}") from error
    return family, config
