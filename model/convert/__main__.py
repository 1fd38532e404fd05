"""Weights in and out of the formats of others: python -m model.convert from-hf | to-hf | to-gguf [--help]."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from common.cli import run_command
from common.errors import UserError
from model.convert.gguf_export import Quantization, export_gguf
from model.convert.hf_export import DtypeName, export_run
from model.convert.hf_import import import_directory
from model.convert.opening import MergeBase


@dataclass(frozen=True)
class FromHf:
    """Read a Hugging Face directory of GPT-2, Llama or Mistral, or one of its hub, and write it as a run."""

    directory: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DIRECTORY")]
    """config.json, weights (safetensors or pytorch_model.bin, whole or sharded) and tokenizer; or hf://ORG/NAME, or
    hf://ORG/NAME@REVISION, for what the hub has of these."""
    out: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The run to write, such as runs/gpt2; it must not exist."""


@dataclass(frozen=True, kw_only=True)
class OfRun:
    """What every way to write a run asks."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Name below runs/, or path."""
    checkpoint: str = "best"
    """"best" (lowest validation loss), "last", or a step."""
    merge_base: MergeBase = "original"
    """Of an adapter that was trained on a quantized base (QLoRA), into what it is merged: "original", the base as it
    was before, which is what PEFT users expect, or "dequantized", the rounded base that it was trained on. Which loses
    less says `python -m evaluation.merging RUN`."""


@dataclass(frozen=True, kw_only=True)
class ToHf(OfRun):
    """Write a run as a directory that transformers, vLLM and others load."""

    out: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DIRECTORY")]
    """The directory to write; it must not exist."""
    dtype: DtypeName = "keep"
    """Number format of the weights; by default as they are."""
    shard_gigabytes: float = 5.0
    """Size that one file of weights may have."""

    def __post_init__(self) -> None:
        if not self.shard_gigabytes > 0:
            raise UserError(f"--shard-gigabytes {self.shard_gigabytes} must be positive")


@dataclass(frozen=True, kw_only=True)
class ToGguf(OfRun):
    """Write a run in the layout of GPT-2 or Llama as a GGUF file, which llama.cpp runs."""

    out: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """The file to write; it must not exist."""
    quantization: Quantization = "q8_0"
    """Number format of the matrices."""


Command = (
    Annotated[FromHf, tyro.conf.subcommand("from-hf")]
    | Annotated[ToHf, tyro.conf.subcommand("to-hf")]
    | Annotated[ToGguf, tyro.conf.subcommand("to-gguf")]
)


def main(argv: Sequence[str]) -> None:
    """Parse the command line and convert. A bad flag or value ends the process with status 2."""
    command = tyro.cli(Command, args=list(argv), prog="python -m model.convert")
    if isinstance(command, FromHf):
        run = import_directory(command.directory, Path(command.out))
        print(f'{run.path}\nnext: python sample.py --run {run.path} --prompt "The river"')
    elif isinstance(command, ToHf):
        size = int(command.shard_gigabytes * 1e9)
        out = Path(command.out)
        architecture = export_run(command.run, out, command.checkpoint, command.dtype, size, command.merge_base)
        trust = ", trust_remote_code=True" if architecture.startswith("MiniGPT") else ""
        print(f"{command.out}: {architecture}\nnext: AutoModelForCausalLM.from_pretrained({command.out!r}{trust})")
    else:
        out = Path(command.out)
        export_gguf(command.run, out, command.checkpoint, command.quantization, command.merge_base)
        print(f"{command.out}\nnext: llama-cli -m {command.out} -p 'The river'")


if __name__ == "__main__":
    run_command(main)
