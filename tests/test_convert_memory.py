"""Conversion holds a few tensors, not the model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from foreign_tokenizers import gpt2_folder
from inference_fixtures import ROOT

from common.files import sha256_of, write_json
from model.convert.gpt2 import GPT2
from model.presets import preset
from model.tensor_files import SafetensorsWriter

PROGRAM = """
import json, resource, sys
from model.convert.__main__ import main
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
main(sys.argv[1:])
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps([before * 1024, after * 1024]))
"""


def write_gpt2(directory: Path, name: str) -> int:
    """A GPT-2 of published size with random weights; returns the bytes of its weights."""
    config = preset(name)
    directory.mkdir()
    write_json(directory / "config.json", GPT2.write_config(config) | {"eos_token_id": 50_256})
    for ours, theirs in (("vocab.json", "encoder.json"), ("merges.txt", "vocab.bpe")):
        (directory / ours).write_bytes((gpt2_folder() / theirs).read_bytes())
    rules = GPT2.rules(config)
    noise = torch.randn(1 << 20)
    with open(directory / "model.safetensors", "wb") as file:
        writer = SafetensorsWriter(file, {f"transformer.{rule.theirs}": (rule.shape, torch.float32) for rule in rules})
        for number, rule in enumerate(rules):
            count = torch.Size(rule.shape).numel()
            repeated = noise.roll(number).repeat(-(-count // len(noise)))[:count]
            writer.write(f"transformer.{rule.theirs}", repeated.view(rule.shape))
    return (directory / "model.safetensors").stat().st_size


def peak(*arguments: str) -> tuple[int, int]:
    """Largest resident memory of the process before and after the command, in bytes."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    before, after = json.loads(done.stdout.splitlines()[-1])
    return before, after


def test_memory_of_a_conversion_is_that_of_its_largest_tensor(tmp_path: Path) -> None:
    size = write_gpt2(tmp_path / "gpt2", "gpt2-medium")
    largest = 50_257 * 1024 * 4
    for arguments in (
        ("from-hf", str(tmp_path / "gpt2"), str(tmp_path / "run")),
        ("to-hf", str(tmp_path / "run"), str(tmp_path / "back")),
    ):
        before, after = peak(*arguments)
        assert after - before < 2.5 * largest < 0.5 * size, (arguments[0], after - before, largest, size)


@pytest.mark.slow
def test_gpt2_xl_in_a_fraction_of_its_size(tmp_path: Path) -> None:
    size = write_gpt2(tmp_path / "xl", "gpt2-xl")
    for arguments in (
        ("from-hf", str(tmp_path / "xl"), str(tmp_path / "run")),
        ("to-hf", str(tmp_path / "run"), str(tmp_path / "back"), "--shard-gigabytes", "10"),
        ("to-gguf", str(tmp_path / "run"), str(tmp_path / "xl.gguf"), "--quantization", "q8_0"),
    ):
        _, after = peak(*arguments)
        print(f"{arguments[0]}: {after / 2**30:.2f} GiB for a checkpoint of {size / 2**30:.2f} GiB: {after / size:.2f}")
        assert after < 1.3 * size
    # The tensors come back bit for bit.
    first, again = ((tmp_path / name / "model.safetensors") for name in ("xl", "back"))
    assert sha256_of(first) == sha256_of(again)
