"""A decoder's pass over a few tokens as one call of `step.cpp`."""

from __future__ import annotations

import ctypes
import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.cache import KVCache
from model.decoder import Decoder
from model.layers import Block, Norm
from model.native.library import KINDS, Matrix, available, library
from model.quantization import as_matrix, layers_of
from model.slots import Embedding, Linear

ACTIVATIONS = ("relu2", "gelu", "swiglu")  # the order of `Activation` in step.cpp
# Tokens of a pass; with more, PyTorch is faster, whose attention, and products in bf16, are made for many.
MOST_TOKENS, MOST_IN_BF16 = 64, 16
POINTER, INTEGER = ctypes.c_void_p, ctypes.c_int64


class _Norm(ctypes.Structure):
    _fields_ = (("gain", POINTER), ("bias", POINTER))


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, _Norm) for name in ("attention_norm", "mlp_norm")),
        *((name, Matrix) for name in ("query", "key", "value", "output", "up", "gate", "down")),
        *((name, POINTER) for name in ("residual_scale", "embedding_scale", "own_values", "value_gate")),
    )


SIZES = (
    "layers", "width", "heads", "kv_heads", "head_dim", "mlp_width", "window",
    "layer_norm", "activation", "qk_norm", "embedding_norm",
)  # fmt: skip


class _Model(ctypes.Structure):
    _fields_ = (
        *((name, INTEGER) for name in SIZES),
        *((name, ctypes.c_double) for name in ("eps", "scale", "softcap")),
        *((name, Matrix) for name in ("embedding", "head")),
        *((name, _Norm) for name in ("first_norm", "final_norm")),
        *((name, POINTER) for name in ("cos", "sin", "learned", "blocks")),
    )


class _Pass(ctypes.Structure):
    _fields_ = (
        *((name, INTEGER) for name in ("tokens", "outputs", "bf16_cache", "layer_stride", "row_stride", "head_stride")),
        *((name, POINTER) for name in ("ids", "rows", "positions", "wanted", "keys", "values", "logits")),
    )


def reason_against(model: Decoder) -> str:
    """Why `NativeStep` cannot run `model`; empty when it can. May compile the library."""
    if model.device.type != "cpu":
        return "it is for the CPU"
    if model.config.document_start is not None:
        return "attention that ends with a document has masks of its own"
    dense = all(parameter.dtype == torch.float32 for parameter in model.parameters())
    if not dense or any(as_matrix(layer) is None for _, layer in layers_of(model)):
        return "weights are kept in a form that it does not read"
    return "" if available() else "the native kernels are not there"


class NativeStep:
    """Passes of one decoder. It reads the decoder's weights where they lie, so it sees what is written into them, but
    not what takes their place."""

    def __init__(self, model: Decoder) -> None:
        """`model` is one of which `reason_against` says nothing."""
        config = model.config
        self.model, self._kept = model, list[object]()
        in_bf16 = self._matrix(model.output).kind == KINDS.index("bf16")
        self.most_tokens = MOST_IN_BF16 if in_bf16 else MOST_TOKENS
        layers = (_Layer * config.layers)(*(self._layer(model, number) for number in range(config.layers)))
        self._kept.append(layers)
        sizes = (
            config.layers, config.width, config.heads, config.key_value_heads, config.head_size, config.mlp_size,
            config.window or config.context_length, config.norm == "layer", ACTIVATIONS.index(config.activation),
            config.qk_norm, config.embedding_norm,
        )  # fmt: skip
        rope = config.position == "rope"
        self._model = _Model(
            *sizes,
            config.norm_eps,
            config.attention_scale or config.head_size**-0.5,
            config.logit_softcap or math.inf,
            self._matrix(model.embedding),
            self._matrix(model.embedding if model.head is None else model.head),
            self._norm(model.embedding_norm),
            self._norm(model.final_norm),
            self._pointer(model.rotary_cos if rope else None),
            self._pointer(model.rotary_sin if rope else None),
            self._pointer(None if model.position_embedding is None else model.position_embedding.weight),
            ctypes.addressof(layers),
        )

    def _layer(self, model: Decoder, number: int) -> _Layer:
        block = model.blocks[number]
        assert isinstance(block, Block)
        attention, mlp = block.attention, block.mlp
        matrices = (attention.query, attention.key, attention.value, attention.output, mlp.up, mlp.gate, mlp.down)
        own = model.value_embeddings[str(number)] if block.value_gate is not None else None
        assert own is None or isinstance(own, nn.Embedding)
        return _Layer(
            self._norm(block.attention_norm),
            self._norm(block.mlp_norm),
            *(Matrix() if layer is None else self._matrix(layer) for layer in matrices),
            self._pointer(None if model.residual_scale is None else model.residual_scale[number]),
            self._pointer(None if model.embedding_scale is None else model.embedding_scale[number]),
            self._pointer(None if own is None else own.weight),
            self._pointer(block.value_gate),
        )

    def _matrix(self, layer: Linear | Embedding) -> Matrix:
        matrix = as_matrix(layer)
        assert matrix is not None
        self._kept.extend(tensor.detach() for tensor in itertools.chain(layer.parameters(), layer.buffers()))
        return matrix

    def _norm(self, norm: Norm | None) -> _Norm:
        return _Norm() if norm is None else _Norm(self._pointer(norm.weight), self._pointer(norm.bias))

    def _pointer(self, tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        self._kept.append(tensor.detach())  # its memory, whatever becomes of the parameter
        return tensor.data_ptr()

    def __call__(self, ids: Sequence[Sequence[int]], cache: KVCache, last_only: bool) -> Tensor:
        """Read the `ids` of every row of `cache`, which then holds them too.

        Returns:
            Logits (outputs, vocab) fp32, after all tokens of the first row, then of the second, …; with `last_only`
            after the last of each row, and anything for a row without ids.

        Raises:
            IndexError: an id is none of the model's.
            ValueError: the cache or the context is too short.
        """
        config, tokens = self.model.config, [token for row in ids for token in row]
        if not 0 <= min(tokens) <= max(tokens) < config.vocab_size:
            raise IndexError(f"there are ids that are not among the model's, which go to {config.vocab_size - 1}")
        counts = [len(row) for row in ids]
        cache.reserve(counts)
        if cache.filled > config.context_length:
            raise ValueError(f"{cache.filled} positions do not fit the context of {config.context_length}")
        rows = [row for row, count in enumerate(counts) for _ in range(count)]
        places = [start + place for start, count in zip(cache.lengths, counts, strict=True) for place in range(count)]
        ends = [max(0, stop - 1) for stop in itertools.accumulate(counts)] if last_only else range(len(tokens))
        index = torch.tensor([*tokens, *rows, *places, *ends])
        logits = torch.empty(len(ends), config.vocab_size)
        start, size = index.data_ptr(), index.element_size() * len(tokens)
        keys, values = cache.keys, cache.values
        work = _Pass(
            len(tokens), len(ends), keys.dtype == torch.bfloat16, *keys.stride()[:3],
            start, start + size, start + 2 * size, start + 3 * size,
            keys.data_ptr(), values.data_ptr(), logits.data_ptr(),
        )  # fmt: skip
        loaded = library()
        assert loaded is not None
        loaded.step(ctypes.addressof(self._model), ctypes.addressof(work), torch.get_num_threads())
        cache.advance()
        return logits
