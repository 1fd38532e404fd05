"""State dicts of bitsandbytes: its own weights read as ours, and ours written as it reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from model.nf4 import BLOCK, DYNAMIC, NF4, SCALE_BLOCK, Nf4

QUANT_STATE = "quant_state.bitsandbytes__nf4"  # where bitsandbytes keeps what is no tensor, as JSON in bytes


def state_tensors(nf4: Nf4, name: str) -> dict[str, Tensor]:
    dtype = str(nf4.dtype).removeprefix("torch.")
    state: dict[str, Any] = {"quant_type": "nf4", "blocksize": BLOCK, "dtype": dtype, "shape": [*nf4.shape]}
    tensors = {name: nf4.packed, f"{name}.absmax": nf4.absmax, f"{name}.quant_map": NF4}
    if nf4.nested_absmax is not None and nf4.offset is not None:
        tensors |= {f"{name}.nested_absmax": nf4.nested_absmax, f"{name}.nested_quant_map": DYNAMIC}
        state |= {"nested_blocksize": SCALE_BLOCK, "nested_dtype": "float32", "nested_offset": nf4.offset.item()}
    tensors[f"{name}.{QUANT_STATE}"] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    return tensors


def from_state_tensors(tensors: Mapping[str, Tensor], name: str) -> Nf4:
    state = json.loads(bytes(tensors[f"{name}.{QUANT_STATE}"].tolist()))
    # They may be stored as wider numbers, as FSDP wants them.
    packed = tensors[name].contiguous().view(-1).view(torch.uint8).view(-1, 1)
    nested = tensors.get(f"{name}.nested_absmax")
    offset = None if nested is None else torch.tensor(state["nested_offset"])
    shape, dtype = torch.Size(state["shape"]), getattr(torch, state["dtype"])
    return Nf4(packed, tensors[f"{name}.absmax"], nested, offset, shape, dtype)
