"""An evaluation goes into the W&B run that training wrote: read back from its files, without an account."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from forks import run_forks
from test_tracking import of_type, wandb_records
from tiny import environment, make_project, run_train

from common.files import read_json
from evaluation.wandb_results import figures, tables


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was tracked offline and then evaluated."""
    project = make_project(tmp_path_factory.mktemp("tracked"))
    nobody = {"NETRC": str(project / "none"), "HOME": str(project)}
    run_train(project, "--tracking.wandb", "offline", **nobody)
    done = run_forks(("-m", "evaluation", "tiny"), project, environment(**nobody))
    assert done.returncode == 0 and "wandb sync runs/tiny/wandb/offline-run-*" in done.stderr, done.stderr
    return project / "runs" / "tiny"


def test_results_join_the_run_that_was_trained(tracked: Path) -> None:
    records, summary = wandb_records(tracked), read_json(tracked / "summary.json")
    runs = of_type(records, "run")
    assert len(runs) == 2 and len({one["run_id"] for one in runs}) == 1
    shown: dict[str, Any] = {}
    for item in of_type(records, "summary"):
        shown |= item["update"]
    assert {key: shown[key] for key in figures(summary)} == pytest.approx(figures(summary))
    assert shown["evaluation/baselines/5_gram/bits_per_byte"] == summary["baselines"]["5-gram"]["bits_per_byte"]
    assert "best/val_loss" in shown and shown["evaluation/checkpoint_step"] == summary["checkpoint_step"]
    last = of_type(records, "history")[-1]["item"]
    assert last["_step"] == 13  # behind the last step of training, which W&B would otherwise take for the same one


def test_tables_hold_what_the_report_shows(tracked: Path) -> None:
    summary = read_json(tracked / "summary.json")
    files = tracked.glob("wandb/offline-run-*/files/media/table/evaluation/results_*.json")
    (table,) = (json.loads(file.read_text(encoding="utf-8")) for file in files)
    columns, rows = tables(summary)["results"]
    assert table["columns"] == list(columns) and len(table["data"]) == len(rows) > 6
    model = dict(zip(columns, table["data"][0], strict=True))
    assert (model["source"], model["predictor"], model["behind"]) == ("all", "model", None)
    assert model["low"] < model["bits_per_byte"] < model["high"]


def test_a_run_without_tracking_stays_without(project: Path) -> None:
    run_train(project)
    done = run_forks(("-m", "evaluation", "tiny"), project, environment())
    assert done.returncode == 0 and "tracking" not in done.stderr
    assert not (project / "runs/tiny/wandb").exists()
