"""Llama 3 as transformers stores it, and Mistral, which is Llama with sliding-window attention."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from model.config import ModelConfig
from model.convert.families import WITHOUT_OUR_RECIPE, Family, Fields, TensorRule, differences
from model.presets import preset

ROPE_FIELDS = {
    *("rope_type", "type", "rope_theta", "factor", "low_freq_factor", "high_freq_factor"),
    *("original_max_position_embeddings", "partial_rotary_factor"),
}


def read_config(fields: Fields) -> ModelConfig:
    fields.only("hidden_act", "silu")
    for name in ("attention_bias", "mlp_bias"):
        fields.only(name, False)
    fields.only("pretraining_tp", 1)
    fields.only("partial_rotary_factor", None, 1, 1.0)
    width, layers = fields.integer("hidden_size"), fields.integer("num_hidden_layers")
    heads = fields.integer("num_attention_heads")
    head_dim = fields.integer("head_dim", max(1, width // heads))
    mistral = fields.values["model_type"] == "mistral"
    fields.only("layer_types", None, ["sliding_attention" if mistral else "full_attention"] * layers)
    window = fields.values.get("sliding_window", 4096) if mistral else None  # what transformers takes for a missing one
    return replace(
        preset("mini-llama"),
        vocab_size=fields.integer("vocab_size"),
        context_length=fields.integer("max_position_embeddings"),
        layers=layers,
        width=width,
        heads=heads,
        kv_heads=fields.integer("num_key_value_heads", 8 if mistral else heads),
        head_dim=None if head_dim * heads == width else head_dim,
        mlp_width=fields.integer("intermediate_size"),
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        window=None if window is None else fields.integer("sliding_window", window),
        tied=fields.flag("tie_word_embeddings", False),
        **_read_rope(fields),
    )


def _read_rope(fields: Fields) -> dict[str, Any]:
    """Rotary positions as transformers 5 writes them, in one object, or as earlier versions did, in two fields."""
    given = [name for name in ("rope_parameters", "rope_scaling") if fields.values.get(name)]
    name = given[0] if given else "rope_parameters"
    values = fields.values.get(name) or {}
    if not isinstance(values, dict) or not set(values) <= ROPE_FIELDS:
        raise fields.error(name, f"must be an object of {', '.join(sorted(ROPE_FIELDS))}")
    if len(given) == 2 and fields.values["rope_scaling"] != values:
        raise fields.error("rope_scaling", "says something else than rope_parameters; leave one of them")
    rope = Fields(values, f"{fields.where}: {name}")
    base = rope if "rope_theta" in values else fields
    kind = values.get("rope_type", values.get("type", "default"))
    if kind not in ("default", "llama3"):
        raise fields.error(name, f"scales rotary positions by {kind!r}; this decoder knows 'default' and 'llama3'")
    rope.only("partial_rotary_factor", None, 1, 1.0)
    found: dict[str, Any] = {"rope_base": base.number("rope_theta", 10_000.0)}
    if kind == "llama3":
        found |= {
            "rope_factor": rope.number("factor"),
            "rope_low_frequency": rope.number("low_freq_factor"),
            "rope_high_frequency": rope.number("high_freq_factor"),
            "rope_original_context": rope.integer("original_max_position_embeddings"),
        }
    return found


def write_config(config: ModelConfig) -> dict[str, Any]:
    scaling = {
        "rope_type": "llama3",
        "factor": config.rope_factor,
        "low_freq_factor": config.rope_low_frequency,
        "high_freq_factor": config.rope_high_frequency,
        "original_max_position_embeddings": config.rope_original_context,
    }
    values = {
        "model_type": "llama" if config.window is None else "mistral",
        "hidden_act": "silu",
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context_length,
        "num_hidden_layers": config.layers,
        "hidden_size": config.width,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.key_value_heads,
        "head_dim": config.head_size,
        "intermediate_size": config.mlp_size,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_base,
        "rope_scaling": scaling if config.rope_factor != 1 else None,
        "attention_dropout": config.dropout,
        "tie_word_embeddings": config.tied,
    }
    if config.window is None:
        return {**values, "attention_bias": False, "mlp_bias": False}
    return {**values, "sliding_window": config.window}


def misfit(config: ModelConfig) -> str | None:
    if config.width % config.heads:  # which transformers does not accept, though nothing depends on it
        return f"model.width {config.width} is no multiple of model.heads {config.heads}"
    return differences(
        config,
        {
            "activation": "swiglu",
            "norm": "rms",
            "norm_gain": True,
            "bias": False,
            "position": "rope",
            **WITHOUT_OUR_RECIPE,
        },
    )


def rules(config: ModelConfig) -> list[TensorRule]:
    width, hidden, size = config.width, config.mlp_size, config.head_size
    of_queries, of_keys = config.heads * size, config.key_value_heads * size

    def rule(theirs: str, ours: str, *shape: int) -> TensorRule:
        return TensorRule(f"{theirs}.weight", shape, (f"{ours}.weight",), shape[:1])

    found = [rule("embed_tokens", "embedding", config.vocab_size, width)]
    for layer in range(config.layers):
        theirs, ours = f"layers.{layer}", f"blocks.{layer}"
        found += [
            rule(f"{theirs}.input_layernorm", f"{ours}.attention_norm", width),
            rule(f"{theirs}.self_attn.q_proj", f"{ours}.attention.query", of_queries, width),
            rule(f"{theirs}.self_attn.k_proj", f"{ours}.attention.key", of_keys, width),
            rule(f"{theirs}.self_attn.v_proj", f"{ours}.attention.value", of_keys, width),
            rule(f"{theirs}.self_attn.o_proj", f"{ours}.attention.output", width, of_queries),
            rule(f"{theirs}.post_attention_layernorm", f"{ours}.mlp_norm", width),
            rule(f"{theirs}.mlp.gate_proj", f"{ours}.mlp.gate", hidden, width),
            rule(f"{theirs}.mlp.up_proj", f"{ours}.mlp.up", hidden, width),
            rule(f"{theirs}.mlp.down_proj", f"{ours}.mlp.down", width, hidden),
        ]
    found.append(rule("norm", "final_norm", width))
    if not config.tied:
        found.append(rule("lm_head", "head", config.vocab_size, width))
    return found


LLAMA = Family(
    architectures={"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM"},
    prefix="model.",
    ignored=(".rotary_emb.inv_freq",),
    read_config=read_config,
    write_config=write_config,
    misfit=misfit,
    rules=rules,
)
