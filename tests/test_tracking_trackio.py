"""What Trackio is given, read back by Trackio itself."""

from __future__ import annotations

import json
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from tiny import kill_when, read_metrics, run_train, shadow

TRACKIO = "--tracking.trackio"
RUN = Path("runs") / "tiny"


@pytest.fixture(autouse=True)
def in_project(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    monkeypatch.setenv("TRACKIO_DIR", "")  # not that of whoever runs the tests: training sets its own


def shown() -> list[dict[str, Any]]:
    from trackio.sqlite_storage import SQLiteStorage  # only here: training says first where its files lie

    return SQLiteStorage.get_logs("mini-gpt", "tiny")


def assert_holds() -> None:
    """Every number of metrics.jsonl is there, every sample, and no step twice."""
    rows = shown()
    ours = [{key: value for key, value in row.items() if not isinstance(value, dict)} for row in rows]
    assert [{key: value for key, value in row.items() if key != "timestamp"} for row in ours] == read_metrics(RUN)
    samples = [json.loads(line) for line in (RUN / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    texts = [(sample["step"], sample["prompt"], sample["text"]) for sample in samples]
    tables = {row["step"]: row["samples"]["_value"] for row in rows if "samples" in row}
    assert [(step, text["prompt"], text["text"]) for step, table in tables.items() for text in table] == texts != []


def test_metrics_and_samples_over_a_resumed_run(project: Path) -> None:
    result = run_train(project, TRACKIO, "--budget.steps", "8")
    assert "look at it with: TRACKIO_DIR=runs/trackio trackio show --project mini-gpt\n" in result.stderr
    assert_holds()
    times = [row["timestamp"] for row in shown()]
    assert run_train(project, TRACKIO, "--budget.steps", "12").stdout == result.stdout == "", "Trackio is quiet"
    assert_holds()
    assert [row["timestamp"] for row in shown()][:8] == times, "the time of a step stays"


def test_config_is_shown(project: Path) -> None:
    run_train(project, TRACKIO, "--budget.steps", "2")
    from trackio import Api

    (run,) = Api().runs("mini-gpt")
    assert run.config["budget"]["steps"] == 2 and run.config["parameters"] > 0


def test_killed_and_resumed_run_has_no_step_twice(project: Path) -> None:
    """What was logged after the checkpoint is purged; histograms, which are nowhere else, are kept up to it."""
    steps = ("--budget.steps", "24", "--checkpoint.every", "10", "--validation.every", "24")
    arguments = (TRACKIO, *steps, "--tracking.histograms-every", "5")
    kill_when(lambda run: (run / "checkpoints" / "step_00000010").is_dir(), project, *arguments)
    assert Path("runs/trackio/mini-gpt.db").is_file(), "beside the runs, not in the user's home"
    run_train(project, *arguments)
    assert_holds()
    tag = "gradients/blocks/0/attention/query/weight"
    histograms = {row["step"]: row[tag] for row in shown() if tag in row}
    assert list(histograms) == [5, 10, 15, 20]
    assert all(len(taken["bins"]) == len(taken["values"]) + 1 for taken in histograms.values())


def test_what_was_logged_without_it_is_there(project: Path) -> None:
    run_train(project, "--budget.steps", "8")
    run_train(project, TRACKIO, "--budget.steps", "12")
    assert_holds()


def test_a_new_run_of_the_same_name_takes_the_place_of_the_old_one(project: Path) -> None:
    """Also where Trackio is asked for only when it is resumed: what Trackio has is then of the old one."""
    run_train(project, TRACKIO, "--budget.steps", "4")
    RUN.rename("runs/old")
    run_train(project, "--budget.steps", "4", "--seed", "1")
    run_train(project, TRACKIO, "--budget.steps", "6", "--seed", "1")
    assert_holds()


def test_nobody_is_asked_and_no_thread_is_left(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though everything is set up for a Space of the hub."""
    asked = []
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: asked.append(address))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *address, **_: asked.append(address))
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 34)
    monkeypatch.setenv("TRACKIO_SPACE_ID", "someone/somewhere")
    before = threading.active_count()
    run_train(project, TRACKIO)
    assert asked == [] and threading.active_count() == before
    assert_holds()


def test_training_goes_on_without_the_package(project: Path) -> None:
    result = run_train(project, TRACKIO, PYTHONPATH=shadow(project, "trackio", "raise ImportError('no trackio here')"))
    (line,) = [line for line in result.stderr.splitlines() if "rackio" in line]
    assert "no trackio here" in line and "pip install -c constraints.txt -e '.[trackio]'" in line
    assert len(read_metrics(RUN)) == 12


def test_a_project_that_it_refuses_is_said(project: Path) -> None:
    result = run_train(project, TRACKIO, "--tracking.wandb-project", "registry-of-all")
    (line,) = [line for line in result.stderr.splitlines() if "Trackio" in line]
    assert "'registry-of-all' is not allowed" in line and "pip" not in line
    assert len(read_metrics(RUN)) == 12


def test_trouble_in_the_middle_is_said_once_and_made_up_for(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows that could not be written are written when they can."""
    run_train(project, TRACKIO, "--budget.steps", "1")
    from trackio.sqlite_storage import SQLiteStorage

    write, tried = SQLiteStorage.bulk_log, []

    def refuse(*arguments: Any, **options: Any) -> None:
        tried.append(arguments)
        if len(tried) in (2, 3):
            raise OSError("no space left on device")
        write(*arguments, **options)

    monkeypatch.setattr(SQLiteStorage, "bulk_log", refuse)
    monkeypatch.setattr("training.trackio_run.PAUSE", 0)
    monkeypatch.setattr("training.trackio_run.PAUSE_FACTOR", 0)
    result = run_train(project, TRACKIO)
    assert result.stderr.count("Trackio failed to log (no space left on device)") == 1
    assert_holds()


def test_nothing_is_written_unasked(project: Path) -> None:
    run_train(project)
    assert not Path("runs/trackio").exists()
