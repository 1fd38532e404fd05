"""One set of weights in the formats of all engines: a run with random weights, and what our exporters make of a run."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch

from common.cli import to_dict
from common.errors import UserError
from common.files import sha256_of, write_json
from common.runs import Run, choose_checkpoint, write_checkpoint_manifest
from data_pipeline.tiktoken_files import END_OF_TEXT, LLAMA3_PATTERN, pack_ranks
from data_pipeline.tokenizer import Tokenizer
from model import Decoder, ModelConfig
from model.convert.gguf_export import Quantization, export_gguf
from model.convert.hf_export import export_run
from model.convert.output import new_directory
from model.tensor_files import SafetensorsWriter, TensorFiles

SHARD = 5_000_000_000  # bytes of a file of weights


def random_run(folder: Path, shape: ModelConfig) -> Run:
    """The run below `folder` with random weights of this shape, and a tokenizer whose tokens are bytes and pairs.

    Raises:
        UserError: the vocabulary is too small for all bytes, or larger than that of all pairs.
    """
    if not 257 < shape.vocab_size <= 256 + 256**2:
        raise UserError(f"model.vocab_size {shape.vocab_size} must be between 258 and 65,792 for random weights")
    described = json.dumps(to_dict(shape), sort_keys=True).encode()
    out = folder / f"random_{hashlib.sha256(described).hexdigest()[:12]}"
    if not out.exists():
        with new_directory(out) as path:
            _write_run(Run(path), shape)
    return Run(out)


def _write_run(run: Run, shape: ModelConfig) -> None:
    checkpoint = run.checkpoint_path(0)
    checkpoint.mkdir(parents=True)
    tokens = itertools.chain(((a,) for a in range(256)), itertools.product(range(256), repeat=2))
    ranks = {bytes(token): rank for rank, token in enumerate(itertools.islice(tokens, shape.vocab_size - 1))}
    header = {"name": "pairs", "pattern": LLAMA3_PATTERN, "special_tokens": {END_OF_TEXT: len(ranks)}}
    run.tokenizer.write_bytes(pack_ranks(header, ranks))
    write_json(run.config, {"name": "random", "model": to_dict(shape)})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weights = dict(Decoder(shape).named_parameters())
    with open(checkpoint / "model.safetensors", "wb") as file:
        writer = SafetensorsWriter(
            file, {name: (tuple(weight.shape), weight.dtype) for name, weight in weights.items()}
        )
        for name, weight in weights.items():
            writer.write(name, weight.detach())
        writer.finish()
    sha256 = Tokenizer(run.tokenizer).sha256
    state = {"step": 0, "tokens": 0, "seconds": 0.0, "val_loss": None, "tokenizer_sha256": sha256}
    write_json(checkpoint / "state.json", state)
    write_checkpoint_manifest(checkpoint)


def fingerprint(run: Run) -> str:
    """Short, and another one for other weights."""
    return sha256_of(choose_checkpoint(run, "best").path / "manifest.json")[:12]


def parameters(run: Run) -> int:
    """A tied head counted once."""
    files = TensorFiles.of_file(choose_checkpoint(run, "best").weights)
    return sum(math.prod(files.layout(name)[0]) for name in files.files)


def exported(run: Run, folder: Path, engine: str, mode: str) -> Path:
    """What `engine` loads for its number format `mode`: written below `folder` if it is not there; ours is the run."""
    if engine == "ours":
        return run.path
    folder.mkdir(parents=True, exist_ok=True)
    kinds: dict[str, tuple[str, Callable[[Path], object]]] = {
        "transformers": ("transformers", lambda out: export_run(str(run.path), out, "best", "fp32", SHARD)),
        "CTranslate2": ("ctranslate2", lambda out: _convert(exported(run, folder, "transformers", mode), out)),
        "llama.cpp": (f"{mode}.gguf", lambda out: export_gguf(str(run.path), out, "best", cast(Quantization, mode))),
    }
    name, write = kinds[engine]
    if not (folder / name).exists():
        write(folder / name)
    return folder / name


def _convert(directory: Path, out: Path) -> None:
    from ctranslate2.converters import TransformersConverter

    with new_directory(out) as path:
        TransformersConverter(str(directory)).convert(str(path), force=True)
