"""Online tracking, against a stand-in for the W&B server: what arrives, and what happens when the server fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_tracking import WANDB, of_type, wandb_records
from tiny import PROJECT, environment, has_logged, kill_when, read_metrics, run_train, train_command
from wandb_server import Server, StoredRun

from common.runs import Run, choose_checkpoint
from data_pipeline.tokenizer import Tokenizer

ONLINE = ("--tracking.wandb", "online")


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


def only_run(server: Server) -> StoredRun:
    (run,) = server.runs.values()
    return run


def assert_every_step_arrived(stored: StoredRun, metrics: list[dict[str, Any]]) -> None:
    assert [line["_step"] for line in stored.history] == [row["step"] for row in metrics]
    for line, row in zip(stored.history, metrics, strict=True):
        for key, value in row.items():
            assert line[key] == pytest.approx(value), (row["step"], key)


def test_a_run_arrives_whole_and_resumes(project: Path, server: Server, tmp_path: Path) -> None:
    arguments = (*ONLINE, "--tracking.artifacts", "all", "--tracking.histograms-every", "4")
    arguments += ("--tracking.wandb-group", "trials", "--tracking.wandb-tags", "small", "first")
    run_train(project, *arguments, "--budget.steps", "8", **server.environment())
    run_train(project, *arguments, "--budget.steps", "12", **server.environment())
    path, stored = project / "runs" / "tiny", only_run(server)
    metrics = read_metrics(path)
    assert len(metrics) == 12 and stored.exit_code == 0
    assert_every_step_arrived(stored, metrics)
    assert choose_checkpoint(Run(path), "last").state["wandb_id"] == stored.name, "both parts are one run"

    config = {key: entry["value"] for key, entry in stored.config.items() if key != "_wandb"}
    saved = json.loads((path / "config.json").read_text())
    assert config["budget"]["steps"] == 12 and config["model"]["layers"] == saved["model"]["layers"]
    manifest = json.loads((project / "data/tiny/manifest.json").read_text())
    assert config["data_fingerprint"] == manifest["fingerprint"] and config["parameters"] > 10_000
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=PROJECT, capture_output=True, text=True).stdout.strip()
    assert (config["git_revision"] or "").removesuffix("-dirty") == head
    assert stored.fields["groupName"] == "trials" and stored.fields["tags"] == ["small", "first"]

    best = min((row for row in metrics if "val/loss" in row), key=lambda row: row["val/loss"])
    assert stored.summary["best/val_loss"] == best["val/loss"] and stored.summary["best/step"] == best["step"]
    assert stored.summary["val/loss"]["min"] == best["val/loss"]
    with_histograms = [line["_step"] for line in stored.history if any(key.startswith("weights/") for key in line)]
    assert with_histograms == [4, 8, 12]

    tables = [json.loads(content) for name, content in server.files.items() if "/media/table/samples_" in name]
    samples = [json.loads(line) for line in (path / "samples.jsonl").read_text().splitlines()]
    rows = [[sample[column] for column in ("step", "tokens", "prompt", "text")] for sample in samples]
    assert len(tables) == 3 and max(tables, key=lambda table: len(table["data"]))["data"] == rows
    check_artifacts(server, path, tmp_path / "downloaded")


def check_artifacts(server: Server, path: Path, downloaded: Path) -> None:
    """Every checkpoint that was written became a version; the best one is a run directory that can be used."""
    versions = [artifact for artifact in server.artifacts.values() if artifact.input["artifactTypeName"] == "model"]
    assert all(version.committed for version in versions)
    metadata = [json.loads(version.input["metadata"]) for version in versions]
    assert [values["step"] for values in metadata] == [4, 6, 8, 12]
    aliases = [{alias["alias"] for alias in version.input["aliases"]} for version in versions]
    assert aliases == [{"latest"}, {"latest", "best"}, {"latest", "best"}, {"latest", "best"}]
    for name, content in server.files.items():
        if name.startswith(f"{versions[-1].id}/"):
            file = downloaded / name.removeprefix(f"{versions[-1].id}/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
    checkpoint = choose_checkpoint(Run(downloaded), "last")  # verifies every sha256
    assert checkpoint.weights.read_bytes() == choose_checkpoint(Run(path), "last").weights.read_bytes()
    assert Tokenizer(Run(downloaded).tokenizer).sha256 == Tokenizer(Run(path).tokenizer).sha256
    assert Run(downloaded).config.read_bytes() == Run(path).config.read_bytes()


def test_a_killed_run_arrives_whole_after_it_was_resumed(project: Path, server: Server) -> None:
    """The server never gets the last seconds of a killed run; the resumed one brings them."""
    kill_when(has_logged(6), project, *ONLINE, "--budget.steps", "20", **server.environment())
    run_train(project, *ONLINE, "--budget.steps", "20", **server.environment())
    metrics = read_metrics(project / "runs" / "tiny")
    assert [row["step"] for row in metrics] == list(range(1, 21))
    stored = only_run(server)
    assert [line["_step"] for line in stored.history] == list(range(1, 21))
    for line, row in zip(stored.history, metrics, strict=True):  # times differ where a step was taken twice
        assert line["train/loss"] == row["train/loss"] and line["tokens"] == row["tokens"]
    best = min((row for row in metrics if "val/loss" in row), key=lambda row: row["val/loss"])
    assert (stored.summary["best/val_loss"], stored.summary["best/step"]) == (best["val/loss"], best["step"])


# Slow: W&B takes another half minute to end a process whose server never answered.
@pytest.mark.parametrize("hanging", [pytest.param(True, marks=pytest.mark.slow), False], ids=["hangs", "refuses"])
def test_no_server_at_the_start(project: Path, server: Server, hanging: bool) -> None:
    server.hanging = hanging
    extra = server.environment()
    if not hanging:
        server.shutdown()
        server.socket.close()
    result = run_train(project, *ONLINE, WANDB_INIT_TIMEOUT="2", WANDB_FINISH_TIMEOUT="2", **extra)
    assert "W&B online did not start" in result.stderr and "W&B offline" in result.stderr
    run = project / "runs" / "tiny"
    assert len(read_metrics(run)) == 12
    assert len(of_type(wandb_records(run), "history")) == 12


def test_server_that_hangs_in_the_middle(project: Path, server: Server, tmp_path: Path) -> None:
    """Training ends, and what the server did not take can be uploaded later with the command that is printed."""
    command = train_command(*ONLINE, "--tracking.artifacts", "best", "--budget.steps", "30")
    extra = {"WANDB_FINISH_TIMEOUT": "3", **server.environment()}
    process = subprocess.Popen(command, cwd=project, env=environment(**extra), stderr=subprocess.PIPE, text=True)
    run = project / "runs" / "tiny"
    while not has_logged(1)(run):
        assert process.poll() is None
        time.sleep(0.005)
    server.hanging = True
    _, stderr = process.communicate(timeout=200)
    assert process.returncode == 0, stderr
    assert len(read_metrics(run)) == 30 and (run / "checkpoints" / "step_00000030").is_dir()

    server.hanging = False
    (directory,) = run.glob("wandb/run-*")
    assert f"wandb sync --no-skip-online {directory.relative_to(project)}" in stderr
    sync = [WANDB, "sync", "--no-skip-online", str(directory)]
    subprocess.run(sync, cwd=tmp_path, check=True, env=environment(**server.environment()), timeout=200)
    assert_every_step_arrived(only_run(server), read_metrics(run))


def test_a_run_that_was_asked_to_stop_does_not_wait_for_a_server_that_hangs(
    project: Path, server: Server, tmp_path: Path
) -> None:
    """`torchrun` would kill it after half a minute; what the server did not take can be uploaded later."""
    command = train_command(*ONLINE, "--budget.steps", "100000", "--compile", "off")
    process = subprocess.Popen(
        command, cwd=project, env=environment(**server.environment()), stderr=subprocess.PIPE, text=True
    )
    run = project / "runs" / "tiny"
    while not has_logged(8)(run):  # two samples are being uploaded by now
        assert process.poll() is None
        time.sleep(0.005)
    server.hanging = True
    time.sleep(1)
    asked = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, stderr = process.communicate(timeout=200)
    assert process.returncode == 0 and "stopped as asked" in stderr, stderr
    assert time.monotonic() - asked < 15

    server.hanging = False
    (directory,) = run.glob("wandb/run-*")
    assert f"wandb sync --no-skip-online {directory.relative_to(project)}" in stderr
    sync = [WANDB, "sync", "--no-skip-online", str(directory)]
    subprocess.run(sync, cwd=tmp_path, check=True, env=environment(**server.environment()), timeout=200)
    assert_every_step_arrived(only_run(server), read_metrics(run))


def test_a_service_process_that_dies_does_not_stop_the_run(project: Path, server: Server) -> None:
    command = train_command(*ONLINE, "--budget.steps", "30")
    process = subprocess.Popen(
        command, cwd=project, env=environment(**server.environment()), stderr=subprocess.PIPE, text=True
    )
    while not has_logged(1)(project / "runs" / "tiny"):
        assert process.poll() is None
        time.sleep(0.005)
    children = subprocess.run(["pgrep", "-P", str(process.pid), "wandb-core"], capture_output=True, text=True).stdout
    for child in children.split():
        os.kill(int(child), signal.SIGKILL)
    assert children.split(), f"{sys.executable} has no wandb-core below it"
    _, stderr = process.communicate(timeout=200)
    assert process.returncode == 0, stderr
    assert stderr.count("W&B failed to log") == 1, stderr
    assert len(read_metrics(project / "runs" / "tiny")) == 30
