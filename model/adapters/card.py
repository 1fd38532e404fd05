"""The README.md of an adapter: a model card as the Hugging Face hub reads it."""

from __future__ import annotations

import json

from model.adapters.base_model import BaseModel
from model.adapters.config import AdapterConfig, Method

TITLES: dict[Method, str] = {
    "lora": "LoRA adapter (arXiv 2106.09685)",
    "ia3": "IA3 adapter (arXiv 2205.05638)",
    "prefix": "Prefix (arXiv 2101.00190)",
    "prompt": "Soft prompt (arXiv 2104.08691)",
    "bottleneck": "Bottleneck adapter (arXiv 1902.00751)",
}


def model_card(config: AdapterConfig, base: BaseModel, layers: int, parameters: int) -> str:
    """What the adapter is, what it belongs to, and how to load it."""
    of_peft = peft_loads(config.method, base)
    tags = [f"base_model:adapter:{base.name}", config.method, "mini-gpt"]
    front = [
        "---",
        f"base_model: {json.dumps(base.name)}",
        f"library_name: {'peft' if of_peft else 'mini-gpt'}",
        "pipeline_tag: text-generation",
        "tags:",
        *(f"- {json.dumps(tag)}" for tag in tags),
        "---",
    ]
    return "\n".join([*front, "", *_text(config, base.name, layers, parameters), "", *_loading(config, base), ""])


def peft_loads(method: Method, base: BaseModel) -> bool:
    """Whether PEFT can put an adapter of this kind on this base."""
    # A soft prompt reaches a model as embeddings, and an exported one of our own recipe takes ids only.
    return method != "bottleneck" and not (base.own_code and method == "prompt")


def _text(config: AdapterConfig, base: str, layers: int, parameters: int) -> list[str]:
    where = f"{layers} layers" if layers else f"{config.virtual_tokens} trained positions before every text"
    if config.method == "lora":
        rank = 2 * config.rank if config.init == "pissa" else config.rank
        kind = [f"rank {rank}", f"alpha {config.alpha:g}"] if config.init != "pissa" else [f"rank {rank} (from PiSSA)"]
        kind += ["rsLoRA"] * config.rslora + ["DoRA"] * config.dora
        where += f", {', '.join(kind)}"
    whole = f", and trained whole: {', '.join(config.modules_to_save)}" if config.modules_to_save else ""
    return [
        f"# {TITLES[config.method]} for {base}",
        "",
        f"{parameters:,} numbers, to be used with the base model `{base}`: {where}{whole}.",
    ]


def _loading(config: AdapterConfig, base: BaseModel) -> list[str]:
    export = [f"The base is a run of mini-gpt; `{base.export}` makes `{base.name}`.", ""] if base.export else []
    theirs = [
        *export,
        "With PEFT:",
        "",
        "```python",
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM",
        "",
        f"model = AutoModelForCausalLM.from_pretrained({base.arguments})",
        'model = PeftModel.from_pretrained(model, "this directory")',
        "```",
    ]
    ours = [
        "With mini-gpt, where `model` is the base as a `Decoder`:",
        "",
        "```python",
        "from pathlib import Path",
        "",
        "from model.adapters.files import load_adapter",
        "",
        'load_adapter(model, Path("this directory"))',
        "```",
    ]
    unknown = ["PEFT has no adapters of this kind; the files have its names, but their form is mini-gpt's own."]
    if config.method != "bottleneck":
        unknown = ["PEFT puts a soft prompt only on models that take embeddings, and the exported base takes ids."]
    return ["## How to load it", "", *(theirs if peft_loads(config.method, base) else unknown), "", *ours]
