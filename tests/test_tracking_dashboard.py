"""The W&B dashboard: its committed definition, and how it gets to the server."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from forks import run_forks
from tiny import PROJECT, environment
from wandb_server import ENTITY, Server

from common.cli import run_command
from common.files import read_json
from training.dashboard import TITLE, build_definition, main
from training.journal import Journal

# What wandb-workspaces is built with; nothing that this project could change.
pytestmark = pytest.mark.filterwarnings("ignore:Pydantic V1 style:DeprecationWarning")


def walk(value: Any) -> list[dict[str, Any]]:
    """Every dictionary in a definition."""
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return ([value] if isinstance(value, dict) else []) + [found for child in children for found in walk(child)]


def test_committed_definition_is_what_the_code_builds() -> None:
    definition = build_definition("mini-gpt")
    assert definition == build_definition("mini-gpt"), "no random ids"
    committed = read_json(PROJECT / "docs" / "dashboard.json")
    assert committed == definition, "make it again with: python -m training.dashboard"


@pytest.mark.parametrize("page", ["workspace", "report"])
def test_everything_is_on_the_page(page: str) -> None:
    panels = [item for item in walk(read_json(PROJECT / "docs" / "dashboard.json")[page]) if "viewType" in item]
    charts = [panel["config"] for panel in panels if panel["viewType"] == "Run History Line Plot"]
    assert all(chart["xAxis"] == "tokens" for chart in charts)
    shown = {metric for chart in charts for metric in chart["metrics"]}
    logged = {"train/loss", "val/loss", "val/bits_per_byte", "lr", "grad_norm", "tokens_per_second"}
    assert shown == logged | {"mfu"}
    source = Path(sys.modules[Journal.__module__].__file__ or "").read_text(encoding="utf-8")
    assert all(f'"{name}"' in source for name in logged if not name.startswith("val/")), "names as they are logged"
    assert [panel["viewType"] for panel in panels].count("Run Comparer") == 1
    (table,) = [panel for panel in panels if panel["viewType"] == "Weave"]
    assert '"samples"' in json.dumps(table)


def push(directory: Path, expect: int, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
    command = ("-m", "training.dashboard", "--out", str(directory / "dashboard.json"), *arguments)
    result = run_forks(command, PROJECT, environment(**{"NETRC": str(directory / "none"), **extra}))
    assert result.returncode == expect, result.stdout + result.stderr
    return result


def test_push_creates_then_updates(tmp_path: Path) -> None:
    server = Server()
    try:
        for _ in range(2):
            result = push(tmp_path, 0, "--push", **server.environment())
            assert f"{server.url}/{ENTITY}/mini-gpt" in result.stdout
    finally:
        server.close()
    assert server.projects == ["mini-gpt"]
    views = {view["type"]: view for view in server.views.values()}
    assert len(server.views) == 2 and set(views) == {"runs", "project-view"}, "the second push made no second one"
    assert all(view["displayName"] == TITLE for view in views.values())
    kinds = {"runs": "report", "project-view": "workspace"}
    for kind, view in views.items():
        sent = [item["viewType"] for item in walk(json.loads(view["spec"])) if "viewType" in item]
        written = walk(read_json(tmp_path / "dashboard.json")[kinds[kind]])
        assert sent == [item["viewType"] for item in written if "viewType" in item] and sent


def test_push_without_a_key(tmp_path: Path) -> None:
    result = push(tmp_path, 2, "--push")
    assert result.stderr.startswith("error: --push needs a W&B API key") and "wandb login" in result.stderr
    assert not (tmp_path / "dashboard.json").exists()


def test_a_refusal_says_what_to_check(tmp_path: Path) -> None:
    server = Server()
    server.refusing = True
    try:
        result = push(tmp_path, 2, "--push", "--entity", "others", **server.environment())
    finally:
        server.close()
    assert "others/mini-gpt" in result.stderr and "check --entity and --project" in result.stderr
    assert "Traceback" not in result.stderr


def test_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    with pytest.raises(SystemExit) as ended:
        run_command(main, ["--out", str(tmp_path / "dashboard.json")])
    assert ended.value.code == 2 and "pip install -c constraints.txt -e '.[dashboard]'" in capsys.readouterr().err


def test_place_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as ended:
        run_command(main, ["--out", str(tmp_path / "file" / "dashboard.json")])
    assert ended.value.code == 2 and "--out" in capsys.readouterr().err
