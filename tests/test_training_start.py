"""Training that begins with the weights of another model."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import VOCAB_SIZE, make_project, read_metrics, run_train

from common.errors import UserError
from common.files import read_json
from data_pipeline.tiktoken_files import pack_ranks
from model import Decoder
from model.convert.__main__ import main as convert
from model.convert.opening import open_source
from model.convert.starting import start
from model.presets import preset

STILL = ("--optimizer.matrices", "adamw", "--optimizer.lr", "0", "--optimizer.embedding-lr", "0")
STILL += ("--optimizer.scalar-lr", "0", "--optimizer.head-lr", "0", "--budget.steps", "2")


TIKTOKEN = pack_ranks(
    {"name": "bytes", "pattern": r".", "special_tokens": {"<|endoftext|>": 256}}, {bytes([n]): n for n in range(256)}
)


def hf_gpt2(directory: Path, tokenizer: Path, **changes: Any) -> Path:
    """A directory of transformers, with the tokenizer of the data."""
    import transformers

    torch.manual_seed(1)
    fields = {"vocab_size": VOCAB_SIZE, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 2, **changes}
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**fields)).save_pretrained(directory)
    shutil.copy(tokenizer, directory / "tokenizer.model")
    return directory


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_project(tmp_path)


@pytest.fixture
def theirs(project: Path) -> Path:
    return hf_gpt2(project / "theirs", project / "data" / "tiny" / "tokenizer.model")


def weights(run: Path) -> dict[str, torch.Tensor]:
    newest = sorted((run / "checkpoints").iterdir())[-1]
    return load_file(newest / "model.safetensors")


@pytest.mark.parametrize("converted", [False, True])
def test_a_run_begins_with_the_weights_and_in_their_architecture(project: Path, theirs: Path, converted: bool) -> None:
    expected = dict(open_source(theirs).tensors())
    place = "theirs"
    if converted:
        place = "runs/imported"
        convert(["from-hf", str(theirs), str(project / place)])
    run_train(project, "--start-from", place, *STILL)
    found = weights(project / "runs" / "tiny")
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    config = read_json(project / "runs" / "tiny" / "config.json")
    assert config["start_from"] == place
    assert (config["model"]["position"], config["model"]["context_length"]) == ("learned", 64)


def test_a_config_file_may_name_the_weights(project: Path, theirs: Path) -> None:
    text = (project / "tiny.py").read_text()
    lines = [line for line in text.splitlines() if "model=ModelConfig" not in line]
    (project / "tiny.py").write_text("\n".join(lines).replace('name="tiny",', 'name="tiny", start_from="theirs",'))
    run_train(project, *STILL, "--model.context-length", "32")
    expected = dict(open_source(theirs).tensors())
    found = weights(project / "runs" / "tiny")
    assert torch.equal(found["blocks.0.mlp.up.weight"], expected["blocks.0.mlp.up.weight"])
    assert len(found["position_embedding.weight"]) == 32
    (project / "tiny.py").write_text(text.replace('name="tiny",', 'name="other", start_from="theirs",'))
    assert "are of another architecture" in run_train(project, expect=2).stderr


def test_it_learns_from_there_and_resumes_without_the_source(project: Path, theirs: Path) -> None:
    arguments = ("--start-from", "theirs", "--model.context-length", "32", "--model.dropout", "0.1")
    run_train(project, *arguments, "--budget.steps", "6")
    shutil.rmtree(theirs)
    run_train(project, *arguments, "--budget.steps", "12")
    rows = read_metrics(project / "runs" / "tiny")
    assert [row["step"] for row in rows] == list(range(1, 13)) and rows[-1]["train/loss"] < rows[0]["train/loss"]
    config = read_json(project / "runs" / "tiny" / "config.json")["model"]
    assert (config["context_length"], config["position"], config["dropout"]) == (32, "learned", 0.1)


def test_other_weights_are_not_taken_up_in_the_middle(project: Path, theirs: Path) -> None:
    run_train(project, "--start-from", "theirs", "--budget.steps", "2")
    shutil.copytree(theirs, project / "others")
    result = run_train(project, "--start-from", "others", "--budget.steps", "4", expect=2)
    assert "start_from: theirs -> others" in result.stderr


def test_new_tokens_begin_as_the_mean_of_all(theirs: Path) -> None:
    source = open_source(theirs)
    old = dict(source.tensors())["embedding.weight"]
    larger = Decoder(replace(source.config, vocab_size=VOCAB_SIZE + 5))
    start(larger, source)
    assert torch.equal(larger.embedding.weight[:VOCAB_SIZE], old)
    torch.testing.assert_close(larger.embedding.weight[VOCAB_SIZE:], old.mean(dim=0).expand(5, -1))
    smaller = Decoder(replace(source.config, vocab_size=VOCAB_SIZE - 7, context_length=20))
    start(smaller, source)
    assert torch.equal(smaller.embedding.weight, old[: VOCAB_SIZE - 7])
    assert smaller.position_embedding is not None and smaller.position_embedding.weight.shape == (20, 32)


def test_what_cannot_begin_there_is_refused_by_name(project: Path, theirs: Path) -> None:
    source = open_source(theirs)
    with pytest.raises(UserError, match=r"another architecture:\n  model.layers: 2 there, 3 here"):
        start(Decoder(replace(source.config, layers=3)), source)
    with pytest.raises(UserError, match="longer than the 64 positions that were learned"):
        start(Decoder(replace(source.config, context_length=96)), source)
    for arguments, message in (
        (("--start-from", "nowhere"), "no run 'nowhere'"),
        (("--start-from", "theirs", "--model.layers", "3"), "model.layers: 2 there, 3 here"),
        (("--start-from=theirs", "--model.vocab-size", str(VOCAB_SIZE - 1)), "set --model.vocab-size"),
    ):
        result = run_train(project, *arguments, expect=2)
        assert message in result.stderr and not (project / "runs" / "tiny" / "config.json").exists()


def test_data_of_another_tokenizer_are_refused(project: Path, theirs: Path) -> None:
    convert(["from-hf", str(theirs), str(project / "runs" / "imported")])
    for place in ("theirs", "runs/imported"):
        (project / place / "tokenizer.model").write_bytes(TIKTOKEN)
        result = run_train(project, "--start-from", place, expect=2)
        assert "has another tokenizer than the data" in result.stderr and "--other-tokenizer" in result.stderr
    run_train(project, "--start-from", "runs/imported", "--other-tokenizer", "--budget.steps", "2")
    assert "does nothing without start_from" in run_train(project, "--other-tokenizer", expect=2).stderr


def test_presets_build_from_a_config_file(project: Path) -> None:
    text = (project / "tiny.py").read_text()
    model = f"model=replace(preset('mini-llama'), vocab_size={VOCAB_SIZE}, context_length=32, layers=2, width=32,"
    model += " heads=2, kv_heads=1, mlp_width=48),"
    start_of = text.index("    model=")
    text = text[:start_of] + f"    {model}\n" + text[text.index("\n", start_of) + 1 :]
    (project / "tiny.py").write_text("from dataclasses import replace\nfrom model.presets import preset\n" + text)
    run_train(project, "--budget.steps", "2")
    assert "blocks.0.mlp.gate.weight" in weights(project / "runs" / "tiny")
    assert preset("mini-llama").kv_heads == 4


def test_what_was_converted_can_be_evaluated(project: Path, theirs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from evaluation.__main__ import main as evaluate

    monkeypatch.chdir(project)
    convert(["from-hf", "theirs", "runs/imported"])
    with pytest.raises(UserError, match="name some with --data"):
        evaluate(["imported"])
    evaluate(["imported", "--data", "data/tiny"])
    summary = read_json(project / "runs" / "imported" / "summary.json")
    assert summary["tokens_trained"] == 0 and summary["data"] == "data/tiny" and not summary["trained_on_this_data"]
    assert summary["val_loss"] > summary["baselines"]["trigram"]["loss"]  # its weights are random
    assert (project / "runs" / "imported" / "report.html").is_file()
