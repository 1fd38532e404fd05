"""GPT-2 as transformers stores it: linear layers as (in, out), query, key and value in one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from model.config import ModelConfig
from model.convert.families import WITHOUT_OUR_RECIPE, Family, Fields, TensorRule, differences
from model.presets import preset


def read_config(fields: Fields) -> ModelConfig:
    fields.only("activation_function", "gelu_new", "gelu_pytorch_tanh")
    fields.only("scale_attn_weights", True)
    for name in ("scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn", "add_cross_attention"):
        fields.only(name, False)
    width = fields.integer("n_embd")
    hidden = fields.integer("n_inner", 4 * width)
    return replace(  # without their dropout, which is a matter of training
        preset("gpt2"),
        vocab_size=fields.integer("vocab_size"),
        context_length=fields.integer("n_positions"),
        layers=fields.integer("n_layer"),
        width=width,
        heads=fields.integer("n_head"),
        mlp_width=None if hidden == 4 * width else hidden,
        norm_eps=fields.number("layer_norm_epsilon", 1e-5),
        tied=fields.flag("tie_word_embeddings", True),
    )


def write_config(config: ModelConfig) -> dict[str, Any]:
    return {
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "vocab_size": config.vocab_size,
        "n_positions": config.context_length,
        "n_ctx": config.context_length,
        "n_layer": config.layers,
        "n_embd": config.width,
        "n_head": config.heads,
        "n_inner": None if config.mlp_size == 4 * config.width else config.mlp_size,
        "layer_norm_epsilon": config.norm_eps,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
        "tie_word_embeddings": config.tied,
    }


def misfit(config: ModelConfig) -> str | None:
    return differences(
        config,
        {
            "activation": "gelu",
            "norm": "layer",
            "norm_gain": True,
            "position": "learned",
            "window": None,
            "key_value_heads": config.heads,
            "head_size": config.width // config.heads,
            **WITHOUT_OUR_RECIPE,
        },
    )


def rules(config: ModelConfig) -> list[TensorRule]:
    width, hidden = config.width, config.mlp_size

    def plain(theirs: str, ours: str, *shape: int) -> TensorRule:
        return TensorRule(theirs, shape, (ours,), shape[:1])

    def linear(theirs: str, ours: tuple[str, ...], inside: int, outside: int) -> list[TensorRule]:
        rows = (outside // len(ours),) * len(ours)
        weights, biases = tuple(f"{name}.weight" for name in ours), tuple(f"{name}.bias" for name in ours)
        return [
            TensorRule(f"{theirs}.weight", (inside, outside), weights, rows, transposed=True),
            TensorRule(f"{theirs}.bias", (outside,), biases, rows),
        ]

    def norm(theirs: str, ours: str) -> list[TensorRule]:
        return [plain(f"{theirs}.{kind}", f"{ours}.{kind}", width) for kind in ("weight", "bias")]

    found = [
        plain("wte.weight", "embedding.weight", config.vocab_size, width),
        plain("wpe.weight", "position_embedding.weight", config.context_length, width),
    ]
    for layer in range(config.layers):
        theirs, ours = f"h.{layer}", f"blocks.{layer}"
        attention = tuple(f"{ours}.attention.{name}" for name in ("query", "key", "value"))
        found += norm(f"{theirs}.ln_1", f"{ours}.attention_norm")
        found += linear(f"{theirs}.attn.c_attn", attention, width, 3 * width)
        found += linear(f"{theirs}.attn.c_proj", (f"{ours}.attention.output",), width, width)
        found += norm(f"{theirs}.ln_2", f"{ours}.mlp_norm")
        found += linear(f"{theirs}.mlp.c_fc", (f"{ours}.mlp.up",), width, hidden)
        found += linear(f"{theirs}.mlp.c_proj", (f"{ours}.mlp.down",), hidden, width)
    found += norm("ln_f", "final_norm")
    if not config.tied:
        found.append(plain("lm_head.weight", "head.weight", config.vocab_size, width))
    return found


GPT2 = Family(
    architectures={"gpt2": "GPT2LMHeadModel"},
    prefix="transformer.",
    ignored=(".attn.bias", ".attn.masked_bias"),
    read_config=read_config,
    write_config=write_config,
    misfit=misfit,
    rules=rules,
)
