"""What a run leaves for its dashboards."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny import has_logged, kill_when, read_metrics, run_train, shadow

from training.wandb_run import has_api_key

WANDB = str(Path(sys.executable).parent / "wandb")


def wandb_records(run: Path) -> list[dict[str, Any]]:
    """Every record of every W&B file of a run, oldest file first, read by W&B's own inspector."""
    records = []
    for path in sorted(run.glob("wandb/offline-run-*/run-*.wandb")):
        command = [WANDB, "leet", "inspect", "--json", str(path.absolute())]
        output = subprocess.run(command, cwd=run, capture_output=True, text=True, check=True, timeout=60).stdout
        records += [json.loads(line) for line in output.splitlines()]
    return records


def of_type(records: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [record[kind] for record in records if record["type"] == kind]


def test_offline_wandb_run_holds_everything(project: Path) -> None:
    offline = {"NETRC": str(project / "none"), "HOME": str(project)}
    run_train(project, "--tracking.wandb", "auto", "--budget.steps", "8", **offline)
    result = run_train(project, "--tracking.wandb", "auto", "--budget.steps", "12", **offline)
    assert "W&B offline" in result.stderr and "wandb sync runs/tiny/wandb/offline-run-*" in result.stderr
    run = project / "runs" / "tiny"
    records = wandb_records(run)

    runs = of_type(records, "run")
    assert len(runs) == 2 and len({item["run_id"] for item in runs}) == 1, "a resumed run is one run"
    state = json.loads((run / "checkpoints" / "step_00000012" / "state.json").read_text())
    assert state["wandb_id"] == runs[0]["run_id"]
    assert runs[0]["config"]["update"]["model"]["layers"] == 2

    metrics = of_type(records, "metric")
    assert any(item.get("glob_name") == "*" and item.get("step_metric") == "tokens" for item in metrics)
    (validation,) = {item["name"]: item for item in metrics if item.get("name") == "val/loss"}.values()
    assert validation["step_metric"] == "tokens" and validation["summary"]["min"]

    logged = [item["item"] for item in of_type(records, "history")]
    expected = read_metrics(run)
    assert len(logged) == len(expected) == 12
    for row, item in zip(expected, logged, strict=True):
        for key, value in row.items():
            assert item[key] == pytest.approx(value), (row["step"], key)
        assert item["_step"] == row["step"]

    best = min((row for row in expected if "val/loss" in row), key=lambda row: row["val/loss"])
    summary: dict[str, Any] = {}
    for item in of_type(records, "summary"):
        summary |= item["update"]
    assert summary["best/val_loss"] == best["val/loss"] and summary["best/step"] == best["step"]
    assert summary["val/loss"] == {"min": best["val/loss"]}

    tables = sorted(run.glob("wandb/offline-run-*/files/media/table/samples_*.json"))
    rows = [json.loads(table.read_text()) for table in tables]
    biggest = max(rows, key=lambda table: len(table["data"]))
    assert biggest["columns"] == ["step", "tokens", "prompt", "text"]
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    assert [row[0] for row in biggest["data"]] == [sample["step"] for sample in samples] == [6, 8, 12]
    assert not list((project / ".local").rglob("*")), "nothing of a run belongs in the user's home"


def test_killed_offline_run_keeps_its_records(project: Path) -> None:
    """Its last second and its last row are lost; here they come after the checkpoint, so they come again."""
    arguments = ("--tracking.wandb", "offline", "--budget.steps", "20", "--checkpoint.every", "10")
    kill_when(has_logged(13), project, *arguments, "--validation.every", "20", pause=3)
    run_train(project, *arguments, "--validation.every", "20", NETRC=str(project / "none"))
    run = project / "runs" / "tiny"
    records = wandb_records(run)
    assert len({item["run_id"] for item in of_type(records, "run")}) == 1
    logged = {item["item"]["_step"]: item["item"] for item in of_type(records, "history")}
    metrics = read_metrics(run)
    assert sorted(logged) == [row["step"] for row in metrics] == list(range(1, 21))
    assert [logged[row["step"]]["train/loss"] for row in metrics] == [row["train/loss"] for row in metrics]


def test_offline_artifacts_wait_beside_the_run(project: Path) -> None:
    run_train(project, "--tracking.wandb", "offline", "--tracking.artifacts", "best", NETRC=str(project / "none"))
    run = project / "runs" / "tiny"
    artifacts = [item for item in of_type(wandb_records(run), "artifact") if item["type"] == "model"]
    improved = [row["step"] for row in read_metrics(run) if "val/loss" in row]
    assert [json.loads(item["metadata"])["step"] for item in artifacts] == improved == [6, 12]
    assert all(sorted(item["aliases"]) == ["best", "latest"] for item in artifacts)
    paths = {content["path"]: Path(content["local_path"]) for content in artifacts[-1]["manifest"]["contents"]}
    assert {"config.json", "tokenizer.model", "checkpoints/step_00000012/model.safetensors"} <= set(paths)
    weights = run / "checkpoints" / "step_00000012" / "model.safetensors"
    staged = paths["checkpoints/step_00000012/model.safetensors"]
    assert staged.read_bytes() == weights.read_bytes() and staged.is_relative_to(run)


def test_wandb_that_comes_late_is_told_everything(project: Path) -> None:
    run_train(project, "--budget.steps", "6")
    run_train(project, "--budget.steps", "12", "--tracking.wandb", "offline", NETRC=str(project / "none"))
    logged = [item["item"]["_step"] for item in of_type(wandb_records(project / "runs" / "tiny"), "history")]
    assert logged == list(range(1, 13))


def test_training_works_without_wandb(project: Path) -> None:
    """A module that cannot be imported stands for an uninstalled one."""
    result = run_train(
        project, "--tracking.wandb", "auto", PYTHONPATH=shadow(project, "wandb", "raise ImportError('no wandb here')")
    )
    assert "no wandb here" in result.stderr
    assert len(read_metrics(project / "runs" / "tiny")) == 12


def test_a_broken_wandb_never_stops_the_run(project: Path) -> None:
    result = run_train(project, "--tracking.wandb", "auto", PYTHONPATH=shadow(project, "wandb", "Settings = dict"))
    assert "did not start" in result.stderr
    assert len(read_metrics(project / "runs" / "tiny")) == 12


def test_online_only_with_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_BASE_URL", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert not has_api_key()
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password secret\n")
    assert has_api_key()
    (tmp_path / "netrc").write_text("machine elsewhere.org login user password secret\n")
    assert not has_api_key()
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    assert has_api_key()


def test_plain_lines_off_a_terminal(project: Path) -> None:
    result = run_train(project)
    assert result.stdout == ""
    assert "step      1  loss" in result.stderr and "tokens/s  ETA" in result.stderr
    assert "\x1b[" not in result.stderr


def test_wandb_directory_is_not_needed(project: Path) -> None:
    run_train(project)
    assert not (project / "runs" / "tiny" / "wandb").exists()
    shutil.rmtree(project / "runs")
    run_train(project, WANDB_MODE="disabled")
    assert not (project / "runs" / "tiny" / "wandb").exists()
