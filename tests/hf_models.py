"""Small models of Hugging Face transformers with random weights, saved as directories."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from inference_fixtures import VOCAB, make_tokenizer

STRETCHED = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
LLAMA = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
}
GPT2 = {"vocab_size": VOCAB, "n_positions": 128, "n_embd": 64, "n_layer": 3, "n_head": 4}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", GPT2),
    "gpt2_narrow": ("GPT2", {**GPT2, "n_inner": 96, "layer_norm_epsilon": 1e-4}),
    "gpt2_untied": ("GPT2", {**GPT2, "tie_word_embeddings": False}),
    "llama": ("Llama", {**LLAMA, "tie_word_embeddings": False}),
    "llama_stretched": ("Llama", {**LLAMA, "tie_word_embeddings": True, "rope_parameters": STRETCHED}),
    "llama_wide_heads": ("Llama", {**LLAMA, "head_dim": 32, "rms_norm_eps": 1e-6}),
    "mistral": ("Mistral", {**LLAMA, "sliding_window": 9}),
}


def build(case: str) -> Any:
    """A model none of whose parameters is at its initial value, in evaluation mode."""
    kind, fields = CASES[case]
    config = getattr(transformers, f"{kind}Config")(**fields, attn_implementation="eager")
    torch.manual_seed(0)
    model = getattr(transformers, "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def save(case: str, directory: Path, **options: Any) -> Any:
    """Write `build(case)` with a tokenizer into `directory`; returns the model."""
    model = build(case)
    model.save_pretrained(directory, **options)
    make_tokenizer(directory)
    return model
