"""Weights of four bits in the layout of bitsandbytes.

NF4 with double quantisation: QLoRA, Dettmers et al. 2023, arXiv 2305.14314.
"""

from __future__ import annotations

import functools
import importlib
import sys
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import UserError

BLOCK = 64  # weights that share a scale
SCALE_BLOCK = 256  # scales that share a scale of their own
# Weights worked on at a time: 1 MiB in fp32, which a CPU's cache holds; elsewhere, few kernels and little memory.
CPU_PIECE = 2**18
PIECE = 2**24
SMALLEST = 1e-38  # what a block of zeros is divided by
STEPS = 16  # a unit: the boundaries between codes are further apart than one of them

# The values of the sixteen codes: quantiles of the normal distribution, asymmetric so that one of them is zero.
NEGATIVE = (-1.0, -0.6961928, -0.52507305, -0.3949175, -0.28444138, -0.18477343, -0.091050036)
POSITIVE = (0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0)
NF4 = torch.tensor([*NEGATIVE, 0.0, *POSITIVE])
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def _dynamic_map() -> Tensor:
    """The values of the 256 codes of a scale, ascending: signed, with an exponent of base ten whose length varies and
    a fraction that has the bits which remain (Dettmers 2015, arXiv 1511.04561)."""
    values = [0.0, 1.0]
    for bits in range(7):
        edges = torch.linspace(0.1, 1, 2**bits + 1)
        middles = (edges[:-1] + edges[1:]) / 2 * 10 ** (bits - 6)
        values += [*middles.tolist(), *(-middles).tolist()]
    return torch.tensor(sorted(values))


DYNAMIC = _dynamic_map()


class _Tables(NamedTuple):
    """What is looked up; a copy of it on every device."""

    pairs: Tensor  # (256,) int64: the two fp32 values of a byte side by side, so that one look-up gives both
    lowest: Tensor  # (33,) uint8: the code of the values at the beginning of a step
    boundary: Tensor  # (33,) fp32: the value beyond which it is the next code
    dynamic: Tensor  # (256,) fp32
    dynamic_boundaries: Tensor  # (255,) fp32


def _make_tables() -> _Tables:
    byte = torch.arange(256)
    boundaries = (NF4[:-1] + NF4[1:]) / 2
    lowest = torch.bucketize(torch.arange(2 * STEPS + 1) / STEPS - 1, boundaries)
    return _Tables(
        pairs=torch.stack([NF4[byte >> 4], NF4[byte & 15]], dim=1).view(torch.int64).flatten(),
        lowest=lowest.to(torch.uint8),
        boundary=torch.cat([boundaries, torch.tensor([2.0])])[lowest],
        dynamic=DYNAMIC,
        dynamic_boundaries=(DYNAMIC[:-1] + DYNAMIC[1:]) / 2,
    )


_tables = {torch.device("cpu"): _make_tables()}


def _tables_on(device: torch.device) -> _Tables:
    if device not in _tables:
        _tables[device] = _Tables(*(table.to(device) for table in _tables[torch.device("cpu")]))
    return _tables[device]


class Nf4(NamedTuple):
    """A tensor in NF4: flattened, in blocks of 64 values that share a scale, the largest of their magnitudes."""

    packed: Tensor  # (ceil(values / 2), 1) uint8: two codes a byte, the first in the high bits
    absmax: Tensor  # (blocks,) the scales: codes uint8 or, without double quantisation, fp32
    nested_absmax: Tensor | None  # (ceil(blocks / 256),) fp32: the scales of the scales
    offset: Tensor | None  # () fp32: the mean of the scales, which is taken off before they are quantised
    shape: torch.Size
    dtype: torch.dtype  # of the tensor that was quantised

    @property
    def nbytes(self) -> int:
        """The memory that the tensors take."""
        return sum(tensor.nbytes for tensor in self[:4] if tensor is not None)

    def to(self, device: torch.device) -> Nf4:
        nested, offset = (None if tensor is None else tensor.to(device) for tensor in (self.nested_absmax, self.offset))
        return Nf4(self.packed.to(device), self.absmax.to(device), nested, offset, self.shape, self.dtype)


@torch.no_grad()
def quantize(weight: Tensor, double: bool = True) -> Nf4:
    """`weight`, of any shape, in NF4: each value goes to the nearest code of its block.

    Args:
        weight: fp32, fp16 or bf16, of at least one value.
        double: quantise the scales too, to eight bits: 4.127 bits a weight instead of 4.5.

    Raises:
        UserError: a value is not finite.
    """
    assert weight.dtype in DTYPES and weight.numel(), (weight.dtype, weight.shape)
    flat = weight.reshape(-1)
    packed = torch.empty(packed_bytes(len(flat)), 1, dtype=torch.uint8, device=weight.device)
    absmax = torch.empty(block_count(len(flat)), device=weight.device)
    size = _piece(weight.device)
    for start in range(0, len(flat), size):
        # Zeros have filled up the last block; of their codes one is kept where it is half of a byte.
        scaled, scales = _scaled(flat[start : start + size].float(), BLOCK)
        codes = _nearest(scaled)
        pairs = (codes[0::2] << 4) | codes[1::2]
        place = packed[start // 2 : (start + size) // 2, 0]
        place.copy_(pairs[: len(place)])
        absmax[start // BLOCK : (start + size) // BLOCK] = scales
    if not double:
        return Nf4(packed, absmax, None, None, weight.shape, weight.dtype)
    offset = absmax.mean()
    scaled, nested = _scaled(absmax - offset, SCALE_BLOCK)
    codes = torch.bucketize(scaled[: len(absmax)], _tables_on(weight.device).dynamic_boundaries, out_int32=True)
    return Nf4(packed, codes.to(torch.uint8), nested, offset, weight.shape, weight.dtype)


def _scaled(values: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """fp32 values over the largest magnitude of their block, the last block filled up with zeros; and these."""
    missing = -len(values) % block
    rows = (F.pad(values, (0, missing)) if missing else values).view(-1, block)
    absmax = rows.abs().amax(dim=1)
    if not absmax.isfinite().all():
        raise UserError("a weight holds NaN or infinity, for which NF4 has no code; start from an earlier checkpoint")
    return (rows * absmax.clamp(min=SMALLEST).reciprocal_()[:, None]).clamp_(-1, 1).view(-1), absmax


def _nearest(scaled: Tensor) -> Tensor:
    """The codes of values from -1 to 1: two look-ups and a comparison, five times as fast as a search."""
    tables = _tables_on(scaled.device)
    step = scaled.add(1).mul_(STEPS).int()
    higher = scaled > tables.boundary.index_select(0, step)
    return tables.lowest.index_select(0, step).add_(higher)


def dequantize(nf4: Nf4, dtype: torch.dtype) -> Tensor:
    """The tensor that `nf4` stands for, multiplied out in fp32, then cast to `dtype`."""
    device = nf4.packed.device
    if device.type == "cuda" and dtype in DTYPES and not torch.compiler.is_compiling() and _bitsandbytes_agrees(device):
        return _dequantize_with_bitsandbytes(nf4, dtype)
    return _dequantize_by_pieces(nf4, dtype)


def _dequantize_by_pieces(nf4: Nf4, dtype: torch.dtype) -> Tensor:
    result = torch.empty(nf4.shape, dtype=dtype, device=nf4.packed.device)
    flat, packed, scales = result.view(-1), nf4.packed.view(-1), _scales(nf4)
    pairs, size = _tables_on(result.device).pairs, _piece(result.device)
    for start in range(0, len(flat), size):
        place = flat[start : start + size]
        codes = packed[start // 2 : (start + size) // 2]
        values = pairs.index_select(0, codes.int()).view(torch.float32)[: len(place)]
        whole = len(values) // BLOCK
        rows, rest = values[: whole * BLOCK].view(whole, BLOCK), values[whole * BLOCK :]
        rows *= scales[start // BLOCK :][:whole, None]
        rest *= scales[-1]
        place.copy_(values)
    return result


def _scales(nf4: Nf4) -> Tensor:
    """The scale of every block, (blocks,) fp32."""
    if nf4.nested_absmax is None or nf4.offset is None:
        return nf4.absmax
    scales = _tables_on(nf4.absmax.device).dynamic.index_select(0, nf4.absmax.int())
    scales *= nf4.nested_absmax.repeat_interleave(SCALE_BLOCK)[: len(scales)]
    return scales.add_(nf4.offset)


def _dequantize_with_bitsandbytes(nf4: Nf4, dtype: torch.dtype) -> Tensor:
    """The same by the kernel of bitsandbytes, which reads and writes every number once."""
    library = importlib.import_module("bitsandbytes.functional")
    flat = (nf4.shape.numel(),)  # its kernel for AVX-512 misreads rows that end within a block
    state = library.QuantState(_scales(nf4), shape=flat, dtype=dtype, blocksize=BLOCK, quant_type="nf4")
    return library.dequantize_4bit(nf4.packed, state).view(nf4.shape)


@functools.cache
def _bitsandbytes_agrees(device: torch.device) -> bool:
    """Whether bitsandbytes is here, works on this device, and says the same as we do."""
    probe = quantize(torch.linspace(-1, 1, 2 * BLOCK * SCALE_BLOCK, device=device))
    try:
        theirs = _dequantize_with_bitsandbytes(probe, torch.float32)
    except (ImportError, OSError, AttributeError, TypeError, RuntimeError):  # absent, or built for something else
        return False
    return torch.equal(theirs, _dequantize_by_pieces(probe, torch.float32))


def _piece(device: torch.device) -> int:
    if torch.compiler.is_compiling():  # which would make a kernel of every piece, and needs none to save memory
        return sys.maxsize // BLOCK * BLOCK
    return CPU_PIECE if device.type == "cpu" else PIECE


def packed_bytes(values: int) -> int:
    return (values + 1) // 2


def block_count(values: int) -> int:
    return -(-values // BLOCK)


def scale_block_count(blocks: int) -> int:
    return -(-blocks // SCALE_BLOCK)
