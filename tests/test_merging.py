"""Merging a fine-tuned run into either base, what that costs, and the lines that say how a result is loaded."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import read_metrics, run_train
from tuning import make_base, make_gpt2_base

from common.errors import UserError
from common.files import read_json, write_json
from common.runs import Run
from evaluation.fine_tuning import write_artifacts
from evaluation.merging import main as merging
from inference.loading import load_run
from model import Decoder, ModelConfig
from model.adapters.attach import attach
from model.adapters.base_model import base_model
from model.adapters.config import AdapterConfig
from model.adapters.files import save_adapter
from model.convert.__main__ import main as convert
from model.presets import preset

# A fine-tune of four steps.
QUICK = ("--budget.steps", "4")
OTHER = ("--adapter.rank", "16", "--adapter.alpha", "32", "--adapter.dropout", "0", *QUICK)
KINDS: dict[str, tuple[str, ...]] = {
    "lora": QUICK,
    # Layers that the adapter leaves alone are quantized too.
    "qlora": ("--storage.quantization", "nf4", "--storage.dtype", "bf16", "--adapter.targets", "c_attn", *QUICK),
    "prefix": ("--adapter.method", "prefix", *OTHER),
    "bottleneck": ("--adapter.method", "bottleneck", *OTHER),
}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 and a run of each kind on it; to be copied by what changes it."""
    project = make_gpt2_base(tmp_path_factory.mktemp("project"))
    for name, flags in KINDS.items():
        run_train(project, "--name", name, *flags, config="tune.py")
    return project


@pytest.fixture
def project(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    copy = shutil.copytree(template, tmp_path / "copy")
    monkeypatch.chdir(copy)
    return copy


def some_ids() -> torch.Tensor:
    return torch.arange(1, 17)[None]


def test_either_base_is_exported(project: Path) -> None:
    import transformers

    trained = load_run(Run(Path("runs/qlora")), device="cpu").model(some_ids())
    found = {}
    for base in ("original", "dequantized"):
        convert(["to-hf", "qlora", base, "--merge-base", base])
        found[base] = transformers.AutoModelForCausalLM.from_pretrained(base).eval()
        assert {str(weight.dtype) for weight in found[base].parameters()} == {"torch.float32"}
    torch.testing.assert_close(found["dequantized"](some_ids()).logits, trained, atol=1e-5, rtol=1e-5)
    assert (found["original"](some_ids()).logits - trained).abs().max() > 1e-3
    # What no adapter changes is the original weight in one, and a rounded one in the other.
    weight = "transformer.h.0.mlp.c_fc.weight"
    convert(["to-hf", "base", "base"])
    original = transformers.AutoModelForCausalLM.from_pretrained("base").state_dict()[weight]
    assert torch.equal(found["original"].state_dict()[weight], original)
    assert not torch.equal(found["dequantized"].state_dict()[weight], original)
    convert(["to-gguf", "qlora", "qlora.gguf", "--merge-base", "dequantized", "--quantization", "f32"])


@pytest.mark.parametrize("name", ["base", "lora"])
def test_a_merge_base_that_changes_nothing_is_refused(name: str, project: Path) -> None:
    for command in (["to-hf", name, "out"], ["to-gguf", name, "out.gguf"]):
        with pytest.raises(UserError, match=f"changes nothing of runs/{name}, which trained no adapter on a quantized"):
            convert([*command, "--merge-base", "dequantized"])


@pytest.mark.parametrize("name", ["prefix", "bottleneck"])
def test_what_cannot_be_merged_says_what_to_hand_on(name: str, project: Path) -> None:
    with pytest.raises(UserError, match=f"cannot be merged into runs/base: hand on runs/{name}/adapter instead"):
        convert(["to-hf", name, "out"])
    with pytest.raises(UserError, match="cannot be merged"):
        merging([name])
    assert not Path("out").exists()


def test_what_merging_costs(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    merging(["qlora", "--device", "cpu"])
    result = read_json(Path("runs/qlora/merging.json"))
    trained, dequantized, original = result["rows"]
    assert trained["largest_logit_difference"] == 0
    assert dequantized["validation_loss"] == pytest.approx(trained["validation_loss"], abs=1e-5)
    assert dequantized["largest_logit_difference"] < 1e-4 < original["largest_logit_difference"]
    assert original["validation_loss"] != dequantized["validation_loss"]
    best = min(row["val/loss"] for row in read_metrics(Path("runs/qlora")) if "val/loss" in row)
    assert trained["validation_loss"] == pytest.approx(best, abs=1e-5)
    assert "| merged into the original base " in capsys.readouterr().out
    write_artifacts(Run(Path("runs/qlora")))
    text = Path("runs/qlora/summary.md").read_text()
    assert "## Merging\n" in text and "| merged into the dequantized base |" in text
    merging(["lora", "--device", "cpu"])
    assert [row["name"] for row in read_json(Path("runs/lora/merging.json"))["rows"]] == [
        "as trained",
        "merged into the base",
    ]
    write_json(Path("runs/lora/merging.json"), {"rows": [{}]})
    assert any("merging.json is damaged" in line for line in write_artifacts(Run(Path("runs/lora"))).warnings)


def test_runs_that_cannot_be_measured(project: Path) -> None:
    with pytest.raises(UserError, match="trained the whole model, so there is nothing to merge"):
        merging(["base"])
    Path("questions.txt").unlink()
    with pytest.raises(UserError, match=r"nothing to measure .* on: the held-out part .* cannot be read"):
        merging(["lora"])


def loading_of(name: str) -> tuple[list[str], list[str]]:
    """The commands and the lines of Python of a run's summary."""
    lines = read_json(Path("runs") / name / "training_metrics.json")["summary"]["loading"]
    commands = [line for line in lines if line.startswith("python ")]
    assert lines[: len(commands)] == commands
    return commands, lines[len(commands) :]


@pytest.mark.parametrize("name", ["lora", "qlora", "prefix"])
def test_the_lines_that_load_a_result_run(name: str, project: Path) -> None:
    commands, python = loading_of(name)
    exports = [line.partition("#")[0].split()[3:] for line in commands if " model.convert " in line]
    assert len(exports) == (1 if name == "prefix" else 2)
    assert any("evaluation.merging" in line for line in commands) == (name == "qlora")
    for arguments in exports:
        convert(arguments)
    values: dict[str, Any] = {}
    exec("\n".join(python), values)
    expected = load_run(Run(Path("runs") / name), device="cpu").model(some_ids())
    found = values["model"].eval()(some_ids()).logits[:, -16:]
    tolerance = 1 if name == "qlora" else 1e-5  # it was trained on a rounded base
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=1e-5)
    stored = read_json(Path("runs") / name / "adapter" / "adapter_config.json")
    assert stored["base_model_name_or_path"] == "exported/base" and Path("exported/base/config.json").is_file()
    card = (Path("runs") / name / "adapter" / "README.md").read_text()
    assert "`python -m model.convert to-hf runs/base exported/base` makes `exported/base`" in card


def test_bottlenecks_are_loaded_by_this_project_alone(project: Path) -> None:
    commands, python = loading_of("bottleneck")
    assert not python and not any("to-hf" in line for line in commands)
    assert "python sample.py --run runs/base --adapter runs/bottleneck/adapter --ask 'Your question'" in commands


def test_our_own_recipe_is_loaded_with_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What PEFT cannot do with it is not promised."""
    make_base(tmp_path)
    monkeypatch.chdir(tmp_path)
    for method in ("lora", "prefix", "prompt"):
        flags = QUICK if method == "lora" else ("--adapter.method", method, *OTHER)
        run_train(tmp_path, "--name", method, *flags, config="tune.py")
    assert not loading_of("prompt")[1]
    convert(["to-hf", "base", "exported/base"])
    for method in ("lora", "prefix"):
        values: dict[str, Any] = {}
        exec("\n".join(loading_of(method)[1]), values)
        expected = load_run(Run(tmp_path / "runs" / method), device="cpu").model(some_ids())
        torch.testing.assert_close(values["model"].eval()(some_ids()).logits, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("revision", [None, "refs/pr/3"])
def test_a_base_of_the_hub_has_its_name_there(revision: str | None, tmp_path: Path) -> None:
    import peft

    torch.manual_seed(0)
    model = Decoder(ModelConfig(**{**preset("gpt2").__dict__, "layers": 1, "width": 32, "heads": 2, "vocab_size": 64}))
    config = AdapterConfig("prompt", virtual_tokens=2)
    attach(model, config)
    address = "hf://openai-community/gpt2" + (f"@{revision}" if revision else "")
    save_adapter(model, config, tmp_path / "adapter", address)
    stored = peft.PeftConfig.from_pretrained(str(tmp_path / "adapter"))
    assert (stored.base_model_name_or_path, stored.revision) == ("openai-community/gpt2", revision)
    named = base_model(address, model.config)
    assert named.export is None and not named.own_code
    assert named.arguments == "'openai-community/gpt2'" + (f", revision={revision!r}" if revision else "")
    assert f"from_pretrained({named.arguments})" in (tmp_path / "adapter" / "README.md").read_text()
