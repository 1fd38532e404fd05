"""Imports go one way between the rooms."""

from __future__ import annotations

import ast
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent

# What each room may import of ours; an entry with a dot allows one module of another room.
ALLOWED = {
    "common": set(),
    "data_pipeline": {"common"},
    "model": {"common"},
    "model.adapters": {"common", "model", "model.convert.registry", "model.convert.families", "model.convert.output"},
    "model.convert": {
        "common",
        "model",
        "data_pipeline.tokenizer",
        "data_pipeline.tokenizer_import",
        "data_pipeline.tokenizer_export",
    },
    "inference": {
        "common",
        "model",
        "data_pipeline.tokenizer",
        "data_pipeline.examples.prompts",
        "data_pipeline.examples.rendering",
    },
    "serving": {
        "common",
        "model",
        "inference",
        "data_pipeline.tokenizer",
        "data_pipeline.examples.prompts",
        "data_pipeline.examples.rendering",
    },
    "training": {
        "common",
        "model",
        "inference",
        "data_pipeline.tokenizer",
        "data_pipeline.tokenizer_import",
        "data_pipeline.shards",
        "data_pipeline.examples",
    },
    "evaluation": {
        "common",
        "model",
        "inference",
        "training.config",
        "training.distribution",
        "training.wandb_run",
        "data_pipeline.tokenizer",
        "data_pipeline.shards",
        "data_pipeline.quality.lexicon",
        "data_pipeline.examples",
        "data_pipeline.questions.question",
    },
}


def imported_modules(path: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            modules.add(node.module or "")
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
    return modules


def violations(room: str, path: Path) -> list[str]:
    found = []
    inner = [other for other in ALLOWED if other.startswith(f"{room}.")]  # rooms in this one, which it does not import
    for module in imported_modules(path):
        top = module.split(".")[0]
        into = any(f"{module}.".startswith(f"{other}.") for other in inner)
        if top not in ALLOWED or (f"{module}.".startswith(f"{room}.") and not into):
            continue
        permitted = any(module == allowed or module.startswith(allowed + ".") for allowed in ALLOWED[room])
        # `from data_pipeline.tokenizer import X` also yields the bare prefix names of permitted modules
        if not permitted and not any(allowed.startswith(module + ".") for allowed in ALLOWED[room]):
            found.append(f"{path.relative_to(PROJECT)} imports {module}")
    return found


def test_import_arrows() -> None:
    problems = [
        problem
        for top in ALLOWED
        if "." not in top
        for path in (PROJECT / top).rglob("*.py")
        for problem in violations(room_of(path), path)
    ]
    assert not problems, "\n".join(problems)


def room_of(path: Path) -> str:
    """The innermost room that a file is in."""
    dotted = ".".join(path.relative_to(PROJECT).parts)
    return max((room for room in ALLOWED if dotted.startswith(f"{room}.")), key=len)


def test_every_room_is_checked() -> None:
    rooms = {path.parent.name for path in PROJECT.glob("*/__init__.py")} - {"tests", "benchmarks"}
    assert rooms == {room for room in ALLOWED if "." not in room}


def test_a_wrong_arrow_is_caught(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr("test_architecture.PROJECT", tmp_path)
    wrong = tmp_path / "model" / "wrong.py"
    wrong.parent.mkdir()
    wrong.write_text("from training.loop import train\nimport data_pipeline.stages\n")
    assert len(violations("model", wrong)) >= 2
    wrong.write_text("from model.convert import source\n")
    assert violations("model", wrong) and not violations("model.convert", wrong)
    wrong.write_text("from common.errors import UserError\nimport torch\n")
    assert not violations("model", wrong)


def test_data_pipeline_knows_nothing_of_torch() -> None:
    for path in (PROJECT / "data_pipeline").rglob("*.py"):
        assert not {module for module in imported_modules(path) if module.split(".")[0] == "torch"}, path


def test_no_transformer_modules_from_torch() -> None:
    for path in (PROJECT / "model").rglob("*.py"):
        assert "nn.Transformer" not in path.read_text(encoding="utf-8")
