"""Configs: they come back from JSON as they were, and no setting does nothing."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import PROJECT, read_metrics, run_train

import data_pipeline.config
import data_pipeline.config_checks
import data_pipeline.questions.config
import data_pipeline.translation.config
from common.cli import from_dict, load_config, parse_command, to_dict
from common.errors import UserError
from common.files import read_json, sha256_of, write_json
from common.runs import Run
from model import Decoder, ModelConfig
from model.adapters.config import AdapterConfig
from train import TrainCommand
from training.config import (
    BatchConfig,
    BudgetConfig,
    CheckpointConfig,
    ExamplesConfig,
    OpeningConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    TrackingConfig,
    ValidationConfig,
)
from training.config_checks import check
from training.plan import attach_for_counting, split_batch
from training.schedules import check_budget
from training.series import runs_of

CONFIGS = sorted((PROJECT / "configs").glob("*.py"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_sound_and_survives_json(path: Path) -> None:
    config = load_config(path, RunConfig)
    check(config)
    assert config.name == path.stem
    check_budget(config.budget)
    assert from_dict(RunConfig, json.loads(json.dumps(to_dict(config))), "test") == config


def test_the_saved_config_is_that_of_the_command(project: Path) -> None:
    """Integers where a float is wanted, switches, tuples, None and nested fields."""
    arguments = [
        *("tiny.py", "--optimizer.ema", "0", "--optimizer.cautious-decay", "--model.no-tied", "--schedule.warmup", "0"),
        *("--validation.prompts", "a", "b c", "--checkpoint.every", "None", "--budget.steps", "1"),
    ]
    run_train(project, *arguments[1:])
    config = parse_command(TrainCommand, RunConfig, [str(project / "tiny.py"), *arguments[1:]], "train.py").config
    saved = json.loads((project / "runs" / "tiny" / "config.json").read_text(encoding="utf-8"))
    found = from_dict(RunConfig, saved, "config.json")
    assert found == config
    assert isinstance(found.optimizer.ema, float) and found.optimizer.cautious_decay and not found.model.tied
    assert found.validation.prompts == ("a", "b c") and found.checkpoint.every is None


def test_what_may_change_is_changed_and_said(project: Path) -> None:
    run_train(project, "--budget.steps", "6")
    result = run_train(project, "--budget.steps", "12", "--optimizer.lr", "0.02")
    assert "changed since this run was started: optimizer.lr: 0.01 -> 0.02" in result.stderr
    rates = [row["lr"] for row in read_metrics(project / "runs" / "tiny")]
    assert rates[5] == pytest.approx(0.01 * 0.05) and rates[6] == pytest.approx(0.02 * (0.05 + 0.95 * 10 / 12))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"opening": OpeningConfig(fraction=0.5)}, "opening.fraction 0.5 does nothing by itself"),
        ({"opening": OpeningConfig(context_length=256)}, "do nothing in an opening of no length"),
        ({"opening": OpeningConfig(tokens_per_step=8192)}, "do nothing in an opening of no length"),
        (
            {"optimizer": OptimizerConfig(matrices="adamw", cautious_decay=True)},
            r"optimizer.cautious_decay .* is Muon's",
        ),
        (
            {"optimizer": OptimizerConfig(matrices="adamw", momentum_warmup=0.1)},
            r"optimizer.momentum_warmup .* is Muon's",
        ),
        ({"optimizer": OptimizerConfig(matrices="adamw", momentum=0.9)}, r"optimizer.momentum .* is Muon's"),
        (
            {"optimizer": OptimizerConfig(matrices="adamw", momentum_start=0.9)},
            r"optimizer.momentum_start .* is Muon's",
        ),
        ({"optimizer": OptimizerConfig(momentum_start=0.9)}, "does nothing without optimizer.momentum_warmup"),
        (
            {"schedule": ScheduleConfig("cosine", cooldown=0.2)},
            r"schedule.cooldown .* cosine; unset it .by default it is 0\.5",
        ),
        (
            {"validation": ValidationConfig(patience=3), "start_from": "x", "examples": ExamplesConfig(files=("a",))},
            "validation.patience 3 does nothing where nothing is held out",
        ),
        ({"optimizer": OptimizerConfig(lr=math.inf)}, "optimizer.lr must be a finite number"),
        ({"optimizer": OptimizerConfig(skip_spikes=0.0)}, "optimizer.skip_spikes must be positive"),
    ],
)
def test_settings_that_mean_nothing_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(RunConfig(**changes))


def test_settings_that_do_something_are_taken() -> None:
    for opening in (OpeningConfig(0.5, 8192), OpeningConfig(0.5, None, 256), OpeningConfig()):
        check(RunConfig(opening=opening, optimizer=OptimizerConfig(cautious_decay=True, momentum_warmup=0.1)))


def test_a_run_of_an_older_version_goes_on(project: Path) -> None:
    """Fields that its config and checkpoint lack had their defaults then; a model that has another is refused."""
    run_train(project, "--budget.steps", "4")
    run = Run(project / "runs" / "tiny")
    saved = read_json(run.config)
    del saved["model"]["value_embeddings"], saved["opening"]
    write_json(run.config, saved)
    state = read_json(run.checkpoints()[-1].path / "state.json")
    for field in ("spikes", "skipped_steps", "compiled", "cut_short"):
        del state[field]
    replace_state(run, state)
    refused = run_train(project, "--model.value-embeddings", "1", expect=2).stderr
    assert "model.value_embeddings: 0 -> 1" in refused
    resumed = run_train(project, "--budget.steps", "8").stderr
    assert "resuming runs/tiny at step 4" in resumed
    assert "value_embeddings" not in resumed and "opening" not in resumed


def test_an_older_version_that_was_stopped_in_its_validation_goes_on(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its checkpoint remembers the step without the length of its sequences."""
    with monkeypatch.context() as patch:
        patch.setattr("training.journal.validate", lambda *_: None)
        run_train(project, "--budget.steps", "4")
    run = Run(project / "runs" / "tiny")
    state = read_json(run.checkpoints()[-1].path / "state.json")
    del state["cut_short"]["sequence"]
    replace_state(run, state)
    run_train(project, "--budget.steps", "4")
    assert "val/loss" in read_metrics(run.path)[-1]


def replace_state(run: Run, state: dict[str, Any]) -> None:
    """Write the last checkpoint's `state.json` anew, and its checksum."""
    directory = run.checkpoints()[-1].path
    file = directory / "state.json"
    write_json(file, state)
    manifest = read_json(directory / "manifest.json")
    manifest["files"]["state.json"] = {"bytes": file.stat().st_size, "sha256": sha256_of(file)}
    write_json(directory / "manifest.json", manifest)


def test_the_saved_config_of_a_run_is_a_config_file(tmp_path: Path) -> None:
    config = RunConfig(name="x", adapter=AdapterConfig(method="lora", targets=("c_attn",)), start_from="base")
    write_json(tmp_path / "config.json", to_dict(config))
    assert load_config(tmp_path / "config.json", RunConfig) == config
    write_json(tmp_path / "config.json", {**to_dict(config), "adapter": {"methud": "lora"}})
    with pytest.raises(UserError, match=r"adapter: AdapterConfig has no field 'methud'; did you mean 'method'"):
        load_config(tmp_path / "config.json", RunConfig)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(UserError, match="is no JSON object"):
        load_config(tmp_path / "config.json", RunConfig)


@pytest.mark.parametrize(
    ("name", "parameters", "trained"),
    [
        ("pokemon_gpt2_xl_lora", 1_557_611_200, 19_660_800),
        ("llama32_3b_qlora", 3_212_749_824, 48_627_712),
        ("alpaca_sft", 124_439_808, 2_359_296),
        ("lyrics_stages", 124_439_808, 124_439_808),
    ],
)
def test_the_stories_of_full_size_train_as_much_as_published(name: str, parameters: int, trained: int) -> None:
    config = load_config(PROJECT / "configs" / f"{name}.py", RunConfig)
    for one in runs_of(config):
        check(one)
        with torch.device("meta"):
            model = Decoder(one.model)
        assert model.parameter_count() == parameters
        assert attach_for_counting(model, one) == trained


def test_small_stories_differ_from_the_full_ones_in_size_alone() -> None:
    for name in ("pokemon_gpt2_xl_lora", "llama32_3b_qlora", "lyrics_stages", "alpaca_sft"):
        full, small = (load_config(PROJECT / "configs" / f"{name}{suffix}.py", RunConfig) for suffix in ("", "_small"))
        check(small)
        assert (small.name, small.adapter, small.storage) == (f"{full.name}_small", full.adapter, full.storage)
        assert small.optimizer.adamw == full.optimizer.adamw and small.schedule.kind == full.schedule.kind
        assert small.examples.learn == full.examples.learn and small.examples.packing == full.examples.packing


@pytest.mark.parametrize(("name", "processes"), [("quickstart", 1), ("quickstart", 2), ("mini", 1), ("mini", 16)])
def test_configs_split_over_the_processes_that_the_readme_names(name: str, processes: int) -> None:
    assert split_batch(load_config(PROJECT / "configs" / f"{name}.py", RunConfig), processes).accumulation >= 1


@pytest.mark.parametrize("path", sorted((PROJECT / "configs" / "data").glob("*.py")), ids=lambda path: path.stem)
def test_every_data_config_loads(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if "TranslationConfig" in text:
        data_pipeline.translation.config.check(load_config(path, data_pipeline.translation.config.TranslationConfig))
    elif "QuestionsConfig" in text:
        data_pipeline.questions.config.check(load_config(path, data_pipeline.questions.config.QuestionsConfig))
    else:
        data_pipeline.config_checks.check(load_config(path, data_pipeline.config.DataConfig))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"validation": ValidationConfig(every=0)}, "validation.every must be at least 1"),
        ({"tracking": TrackingConfig(log_every=0)}, "tracking.log_every"),
        ({"checkpoint": CheckpointConfig(keep=0)}, "checkpoint.keep"),
        ({"schedule": ScheduleConfig(warmup=1.5)}, "schedule.warmup is a fraction"),
        ({"seed": -1}, "seed must not be negative"),
        ({"optimizer": OptimizerConfig(head_lr=-1e-3)}, r"optimizer.head_lr must not be negative, not -0\.001"),
        ({"optimizer": OptimizerConfig(eps=-1e-8)}, "optimizer.eps must not be negative"),
        ({"optimizer": OptimizerConfig(beta2=1.0)}, r"optimizer.beta2 .* at least 0 and below 1, not 1\.0"),
        ({"optimizer": OptimizerConfig(momentum=1.5)}, "optimizer.momentum .* below 1"),
        ({"optimizer": OptimizerConfig(ema=1.0)}, "optimizer.ema .* below 1"),
        ({"schedule": ScheduleConfig(warmup=0.6)}, r"schedule.warmup 0\.6 and schedule.cooldown 0\.5 .* at most 1"),
        ({"budget": BudgetConfig(steps=-3)}, "budget.steps must be positive"),
        ({"name": ""}, "plain directory name"),
        ({"name": "../x"}, "plain directory name"),
    ],
)
def test_values_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(RunConfig(**changes))


def test_shapes_out_of_range_are_refused() -> None:
    for changes in ({"heads": 0}, {"kv_heads": -1}, {"mlp_width": -5}, {"rope_base": -1.0}, {"dropout": 1.0}):
        with pytest.raises(UserError, match=f"model.{next(iter(changes))} must be"):
            ModelConfig(**changes).check()  # type: ignore[arg-type]


@pytest.mark.parametrize(("processes", "passes", "windows"), [(1, 8, 8), (4, 2, 8), (16, 1, 4), (64, 1, 1)])
def test_the_passes_of_a_step_are_derived(processes: int, passes: int, windows: int) -> None:
    config = RunConfig(batch=BatchConfig(tokens_per_step=65_536, micro_batch_size=8))
    split = split_batch(config, processes)
    assert (split.accumulation, split.micro_batch, split.tokens_per_step) == (passes, windows, 65_536)


def test_a_step_that_does_not_come_out_even_is_refused() -> None:
    config = RunConfig(batch=BatchConfig(tokens_per_step=65_536, micro_batch_size=8))
    with pytest.raises(UserError, match="64,512 or 67,584"):
        split_batch(config, 3)
    with pytest.raises(UserError, match="tokens-per-step 131,072"):
        split_batch(config, 128)


def test_saved_config_with_an_unknown_field() -> None:
    with pytest.raises(UserError, match="did you mean 'layers'"):
        from_dict(ModelConfig, {"layer": 3}, "config.json")
