"""From a run to a GGUF file, which llama.cpp and what is built on it run. Tensors go through one at a time."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from common.errors import UserError
from common.runs import find_run
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.tokenizer_export import UNUSED, gguf_vocabulary
from model.config import ModelConfig
from model.convert.hf_export import joined, misfits
from model.convert.opening import MergeBase, open_run
from model.convert.output import new_file
from model.convert.registry import family_of_ours
from model.convert.source import Source
from model.positions import rotary_frequencies

Quantization = Literal["f32", "bf16", "q8_0", "q4_0"]

# Names of a layer's tensors there, by the names of Hugging Face.
_GPT2_NAMES = {
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
    "wte": "token_embd",
    "wpe": "position_embd",
    "ln_f": "output_norm",
    "lm_head": "output",
}
_LLAMA_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "lm_head": "output",
}


def export_gguf(
    run: str, out: Path, checkpoint: str, quantization: Quantization, merge_base: MergeBase = "original"
) -> None:
    """Write checkpoint `checkpoint` of the run called `run` as the GGUF file `out`.

    Raises:
        UserError: an architecture or tokenizer that llama.cpp does not have, an adapter that cannot be merged (so), a
            missing package, or `out` exists.
    """
    try:
        import gguf
    except ImportError as error:
        raise UserError("GGUF files need a package: pip install -c constraints.txt -e '.[convert]'") from error
    source = open_run(run, checkpoint, merge_base)
    if family_of_ours(source.config) is None or source.config.window is not None:
        raise UserError(
            f"{source.path} cannot run in llama.cpp, which knows this project's architectures only in the layout of "
            f"GPT-2 or Llama ({misfits(source.config)}); train with configs/mini_llama.py, or use to-hf"
        )
    tokenizer = Tokenizer(find_run(run).tokenizer)
    kinds = gguf.GGMLQuantizationType
    wanted = {"f32": kinds.F32, "bf16": kinds.BF16, "q8_0": kinds.Q8_0, "q4_0": kinds.Q4_0}[quantization]
    with new_file(out) as file:
        # It opens the file by its name.
        writer = gguf.GGUFWriter(file.name, "gpt2" if source.config.position == "learned" else "llama")
        _write_architecture(writer, source.config, gguf.LlamaFileType, quantization)
        _write_tokenizer(writer, tokenizer, source.config.vocab_size)
        layout = [(name, shape, wanted if _quantized(name, shape) else kinds.F32) for name, shape in _shapes(source)]
        for name, shape, kind in layout:
            stored = torch.Size(gguf.quant_shape_to_byte_shape(shape, kind)).numel()
            writer.add_tensor_info(name, shape, np.dtype(np.float32), stored, raw_dtype=kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for (_, _, kind), (_, tensor) in zip(layout, _tensors(source), strict=True):
            writer.write_tensor_data(gguf.quantize(tensor.float().contiguous().numpy(), kind))
        writer.close()


def _quantized(name: str, shape: tuple[int, ...]) -> bool:
    """Matrices whose rows are whole blocks of 32; llama.cpp wants everything else in fp32."""
    return len(shape) == 2 and shape[-1] % 32 == 0 and not name.startswith("position_embd")


def _write_architecture(writer: Any, config: ModelConfig, file_types: Any, quantization: Quantization) -> None:
    writer.add_name("mini-gpt")
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.width)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.mlp_size)
    writer.add_head_count(config.heads)
    writer.add_vocab_size(config.vocab_size)
    if config.position == "learned":
        writer.add_layer_norm_eps(config.norm_eps)
    else:
        writer.add_head_count_kv(config.key_value_heads)
        writer.add_key_length(config.head_size)
        writer.add_value_length(config.head_size)
        writer.add_rope_dimension_count(config.head_size)
        writer.add_rope_freq_base(config.rope_base)
        writer.add_layer_norm_rms_eps(config.norm_eps)
    names = {"f32": "ALL_F32", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0", "q4_0": "MOSTLY_Q4_0"}
    writer.add_file_type(file_types[names[quantization]])
    writer.add_quantization_version(2)


def _write_tokenizer(writer: Any, tokenizer: Tokenizer, rows: int) -> None:
    vocabulary = gguf_vocabulary(tokenizer)
    writer.add_tokenizer_model(vocabulary.model)
    padding = range(len(vocabulary.tokens), rows)
    if vocabulary.scores is not None:
        writer.add_token_scores([*vocabulary.scores, *[-1e9] * len(padding)])
        writer.add_add_space_prefix(False)
    if vocabulary.cut is not None:
        writer.add_tokenizer_pre(vocabulary.cut)
        writer.add_token_merges(vocabulary.merges)
    writer.add_token_list([*vocabulary.tokens, *[f"[unused {number}]" for number in padding]])
    writer.add_token_types([*vocabulary.types, *[UNUSED] * len(padding)])
    writer.add_bos_token_id(tokenizer.bos_id)
    writer.add_eos_token_id(tokenizer.eos_id)
    turn = [number for number in tokenizer.eos_ids if number != tokenizer.eos_id]
    if turn:
        writer.add_eot_token_id(turn[-1])
    writer.add_add_bos_token(True)  # the model saw a token before every text
    writer.add_add_eos_token(False)
    if tokenizer.chat_template is not None:
        writer.add_chat_template(tokenizer.chat_template)


def _shapes(source: Source) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor there, in the order of `_tensors`."""
    family = family_of_ours(source.config)
    assert family is not None
    for rule in family.rules(source.config):
        yield _name(rule.theirs), rule.shape[::-1] if rule.transposed else rule.shape
    if source.config.rope_factor != 1:
        yield "rope_freqs.weight", (source.config.head_size // 2,)


def _tensors(source: Source) -> Iterator[tuple[str, Tensor]]:
    """Every tensor there: linear layers (out, in), queries and keys with the two halves of a head interleaved."""
    family, config = family_of_ours(source.config), source.config
    assert family is not None
    rules = family.rules(config)
    layouts = {rule.theirs: (rule.shape, torch.float32) for rule in rules}
    for rule, (theirs, tensor) in zip(rules, joined(source, rules, layouts), strict=True):
        if rule.transposed:
            tensor = tensor.T
        elif theirs.endswith(("q_proj.weight", "k_proj.weight")):
            halves = tensor.view(-1, 2, config.head_size // 2, config.width)
            tensor = halves.transpose(1, 2).reshape(tensor.shape)
        yield _name(theirs), tensor
    if config.rope_factor != 1:
        plain = 1.0 / config.rope_base ** (torch.arange(0, config.head_size, 2) / config.head_size)
        yield "rope_freqs.weight", plain / rotary_frequencies(config)


def _name(theirs: str) -> str:
    """The name there of one of Hugging Face's tensors."""
    layer = re.fullmatch(r"(?:h|layers)\.(\d+)\.(.+)\.(weight|bias)", theirs)
    part, kind = (layer[2], layer[3]) if layer else tuple(theirs.rsplit(".", 1))
    known = _GPT2_NAMES if part in _GPT2_NAMES else _LLAMA_NAMES
    return f"blk.{layer[1]}.{known[part]}.{kind}" if layer else f"{known[part]}.{kind}"
