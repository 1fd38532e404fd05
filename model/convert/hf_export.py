"""From a run to a directory that transformers, vLLM, SGLang and the converter of llama.cpp load.

An architecture of a stock family is written as that family's class. This project's own recipe goes with its code: the
files of `model/` beside a `modeling_mini_gpt.py`, which transformers loads with `trust_remote_code=True`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from common.cli import to_dict
from common.files import write_json
from common.runs import find_run
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.tokenizer_export import write_tokenizer
from model.config import ModelConfig
from model.convert.families import TensorRule
from model.convert.opening import MergeBase, open_run
from model.convert.output import new_directory
from model.convert.registry import FAMILIES, family_of_ours
from model.convert.source import Layout, Source
from model.device import DTYPES
from model.tensor_files import SafetensorsWriter, byte_size

DtypeName = Literal["keep", "fp32", "bf16", "fp16"]
_PROJECT = Path(__file__).resolve().parent.parent.parent
# What the decoder is made of; each file lies beside the others in an exported directory.
_CODE = ("activations", "cache", "config", "decoder", "frozen", "functions", "layers", "positions", "slots", "virtual")


def export_run(
    name: str, out: Path, checkpoint: str, dtype: DtypeName, shard_bytes: int, merge_base: MergeBase = "original"
) -> str:
    """Write checkpoint `checkpoint` of the run called `name` as `out`; returns the class that loads it.

    Raises:
        UserError: the run is damaged, or its adapter cannot be merged (so), or `out` exists.
    """
    source = open_run(name, checkpoint, merge_base)
    run = find_run(name)
    tokenizer = Tokenizer(run.tokenizer)
    family = family_of_ours(source.config)
    rules = family.rules(source.config) if family else _own_rules(source)
    layouts = _layouts(source, rules, dtype)
    prefix = family.prefix if family else ""
    names = {rule.theirs: rule.theirs if rule.theirs == "lm_head.weight" else prefix + rule.theirs for rule in rules}
    with new_directory(out) as path:
        _write_weights(path, source, rules, names, layouts, shard_bytes)
        values = family.write_config(source.config) if family else _own_config(source.config)
        architecture = family.architectures[values["model_type"]] if family else values["architectures"][0]
        stored = next(iter(layouts.values()))[1]
        of_text = {"bos_token_id": tokenizer.bos_id, "eos_token_id": _one_or_all(tokenizer.eos_ids)}
        common = {"architectures": [architecture], "torch_dtype": str(stored).removeprefix("torch."), **of_text}
        write_json(path / "config.json", {**values, **common})
        # The cache of transformers does not know where documents begin.
        no_cache = {"use_cache": False} if family is None and source.config.document_start is not None else {}
        write_json(path / "generation_config.json", {**of_text, **no_cache})
        write_tokenizer(tokenizer, path, source.config.context_length)
        if family is None:
            _write_code(path)
    return architecture


def misfits(config: ModelConfig) -> str:
    """Why `config` is of no stock family, for the user."""
    return "; or ".join(f"{next(iter(family.architectures))}: {family.misfit(config)}" for family in FAMILIES)


def joined(source: Source, rules: list[TensorRule], layouts: Mapping[str, Layout]) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of theirs, one at a time."""
    for rule in rules:
        dtype = layouts[rule.theirs][1]
        ours = {name: source.files.read(name) if name in source.files.files else None for name in rule.ours}
        yield rule.theirs, rule.join(ours, dtype).to(dtype)


def _layouts(source: Source, rules: list[TensorRule], dtype: DtypeName) -> dict[str, Layout]:
    """Shape and dtype of every tensor of theirs."""
    found = {}
    for rule in rules:
        stored = [source.files.layout(name) for name in rule.ours if name in source.files.files]
        own = stored[0][1] if stored else torch.float32
        found[rule.theirs] = rule.shape, DTYPES.get(dtype, own)
    return found


def _write_weights(
    directory: Path,
    source: Source,
    rules: list[TensorRule],
    names: Mapping[str, str],
    layouts: Mapping[str, Layout],
    shard_bytes: int,
) -> None:
    """`model.safetensors`, or several files of at most `shard_bytes` (or one larger tensor) with an index."""
    shards: list[list[TensorRule]] = [[]]
    size = total = 0
    for rule in rules:
        tensor_bytes = byte_size(*layouts[rule.theirs])
        if shards[-1] and size + tensor_bytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(rule)
        size, total = size + tensor_bytes, total + tensor_bytes
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        of_all = f"-{number:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
        file_name = f"model{of_all}.safetensors"
        with open(directory / file_name, "wb") as file:
            writer = SafetensorsWriter(file, {names[rule.theirs]: layouts[rule.theirs] for rule in shard})
            for theirs, tensor in joined(source, shard, layouts):
                writer.write(names[theirs], tensor)
            writer.finish()
        places |= {names[rule.theirs]: file_name for rule in shard}
    if len(shards) > 1:
        write_json(
            directory / "model.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": places}
        )


def _own_rules(source: Source) -> list[TensorRule]:
    """Our tensors under our names, inside the class of `modeling_mini_gpt.py`."""
    rules = []
    for name in source.files.files:
        shape = source.files.layout(name)[0]
        rules.append(TensorRule(f"decoder.{name}", shape, (name,), shape[:1]))
    return rules


def _own_config(config: ModelConfig) -> dict[str, Any]:
    return {
        "model_type": "mini_gpt",
        "architectures": ["MiniGPTForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_mini_gpt.MiniGPTConfig",
            "AutoModelForCausalLM": "modeling_mini_gpt.MiniGPTForCausalLM",
        },
        "recipe": to_dict(config),
        "tie_word_embeddings": False,  # where it is tied there is no second tensor that would have to be
    }


def _write_code(directory: Path) -> None:
    """The decoder's own source, with its imports turned to the files beside it."""
    sources = {f"{name}.py": _PROJECT / "model" / f"{name}.py" for name in _CODE}
    sources["errors.py"] = _PROJECT / "common" / "errors.py"
    for name in ("configuration_mini_gpt.py", "modeling_mini_gpt.py"):
        sources[name] = Path(__file__).parent / name
    for name, path in sources.items():
        code = path.read_text(encoding="utf-8")
        code = re.sub(
            r"^from (?:model|common)(?:\.convert)?\.(\w+) import", r"from .\1 import", code, flags=re.MULTILINE
        )
        (directory / name).write_text(code, encoding="utf-8")


def _one_or_all(ids: tuple[int, ...]) -> int | list[int]:
    return ids[0] if len(ids) == 1 else list(ids)
