"""The two small base models are what their names say: transformers loads them as GPT-2 and as Llama."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import PROJECT, VOCAB_SIZE, make_project, run_train

from common.cli import load_config
from common.files import read_json
from common.runs import Run
from data_pipeline.config import DataConfig
from inference.loading import load_run
from model import Decoder
from model.convert.__main__ import main as convert
from training.config import RunConfig
from training.config_checks import check

SMALLER = f"""
from dataclasses import replace
from common.cli import load_config
from training.config import *

base = load_config("CONFIG", RunConfig)
config = replace(
    base,
    name="tiny",
    model=replace(base.model, vocab_size={VOCAB_SIZE}, context_length=32, layers=2),
    data=DataConfig("data/tiny"),
    batch=BatchConfig(512, 4),
    opening=OpeningConfig(base.opening.fraction, context_length=16),
    budget=BudgetConfig(steps=3),
    validation=ValidationConfig(sample_tokens=0),
)
"""


@pytest.mark.parametrize(("name", "kind"), [("small_gpt2", "GPT2LMHeadModel"), ("small_llama", "LlamaForCausalLM")])
def test_transformers_loads_what_was_trained(name: str, kind: str, tmp_path: Path) -> None:
    import transformers

    project = make_project(tmp_path)
    (project / "tiny.py").write_text(SMALLER.replace("CONFIG", str(PROJECT / "configs" / f"{name}.py")))
    run_train(project, "--device", "cpu", "--precision", "fp32", "--compile", "off")
    convert(["to-hf", str(project / "runs" / "tiny"), str(project / "exported")])
    assert read_json(project / "exported" / "config.json")["architectures"] == [kind]
    theirs = transformers.AutoModelForCausalLM.from_pretrained(project / "exported").eval()
    assert type(theirs).__name__ == kind
    ids = torch.randint(VOCAB_SIZE, (2, 20))
    ours = load_run(Run(project / "runs" / "tiny"), device="cpu").model
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["small_gpt2", "small_llama"])
def test_they_fit_their_data_and_a_laptop(name: str) -> None:
    config = load_config(PROJECT / "configs" / f"{name}.py", RunConfig)
    check(config)
    data = load_config(PROJECT / "configs" / "data" / "small_bases.py", DataConfig)
    assert config.model.vocab_size == data.tokenizer.vocab_size and config.data.directory == "data/small_bases"
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in Decoder(config.model).parameters())
    assert 2e6 < count < 6e6
    assert config.budget.minutes is None  # so every machine trains the same model
