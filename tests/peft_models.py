"""Small models of Hugging Face, the same as decoders of ours, and adapters as after some training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from model import Decoder
from model.adapters.attach import adapters
from model.convert.source import open_theirs
from model.nf4_weight import Nf4Weight
from model.slots import Linear
from model.weights import fill

SIZES: dict[str, Any] = {"vocab_size": 128, "bos_token_id": 0, "eos_token_id": 0}
TARGETS = {
    "gpt2": ("c_attn", "c_proj", "c_fc"),
    "llama": ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
}


def write_base(family: str, directory: Path, **changes: Any) -> Path:
    """A Hugging Face directory of two random layers; it is called `family`."""
    torch.manual_seed(0)
    if family == "gpt2":
        off = {"attn_pdrop": 0, "embd_pdrop": 0, "resid_pdrop": 0}
        sizes = {"n_layer": 2, "n_embd": 64, "n_head": 2, "n_positions": 64, **off, **SIZES, **changes}
        model: PreTrainedModel = GPT2LMHeadModel(GPT2Config(**sizes))
    else:
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2, **SIZES, **changes}
        model = LlamaForCausalLM(LlamaConfig(hidden_size=64, intermediate_size=96, **heads))
    model.save_pretrained(directory / family)
    return directory / family


def ours(base: Path) -> Decoder:
    source = open_theirs(base)
    model = Decoder(source.config)
    fill(model, source.tensors(), str(base))
    return model.eval()


def theirs(base: Path) -> PreTrainedModel:
    kinds: dict[str, Any] = {"gpt2": GPT2LMHeadModel, "llama": LlamaForCausalLM}
    return kinds[base.name].from_pretrained(base).eval()


def some_ids() -> Tensor:
    return torch.randint(128, (2, 17), generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def disturb(model: Decoder, name: str = "default") -> None:
    """As after some training."""
    generator = torch.Generator().manual_seed(4)
    for _, adapter in adapters(model, name):
        for parameter in adapter.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)


def quantized(model: Decoder) -> Decoder:
    """The same with all linear layers in four bits."""
    for layer in model.blocks.modules():
        if isinstance(layer, Linear):
            bits = Nf4Weight(*layer.weight.shape)
            bits.take(layer.weight.detach())
            layer.keep_in(bits)
    return model
