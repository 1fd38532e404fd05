"""The comparison of methods, by real training of a tiny base in the layout of GPT-2."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from tiny import kill_when, run_here
from tuning import make_gpt2_base

from common.cli import load_config
from common.errors import UserError
from common.files import read_json, write_json
from evaluation import compare_runs
from evaluation.compare_methods import ALL, CompareCommand, main, methods_of, prepared
from evaluation.compare_plots import draw_comparison
from evaluation.compare_runs import Row
from evaluation.compare_text import describe_comparison
from evaluation.questions import main as questions_main
from evaluation.tuned_and_base import NOT_ASKED
from training.config import ExamplesConfig, RunConfig


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = make_gpt2_base(tmp_path_factory.mktemp("project"))
    rows = [{"question": f"the model {n}", "answer": "reads reads", "fact": "reads"} for n in range(6)]
    (project / "held_out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return project


@pytest.fixture
def project(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    copy = shutil.copytree(template, tmp_path / "copy")
    monkeypatch.chdir(copy)
    return copy


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The commands that were run; they run in this process, which spares seconds of imports each."""
    made: list[tuple[str, ...]] = []

    def here(*words: str) -> bool:
        made.append(words)
        if words[0] == "-m":
            questions_main(words[2:])
        else:
            run_here(Path(), config=words[1])
        return True

    monkeypatch.setattr(compare_runs, "ended_well", here)
    return made


def compare(*flags: str) -> list[dict[str, object]]:
    main(["tune.py", *flags])
    rows: list[dict[str, object]] = read_json(Path("runs/tuned_comparison/comparison.json"))["rows"]
    return rows


def test_methods_are_trained_at_several_rates_asked_and_compared(
    project: Path, commands: list[tuple[str, ...]], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--methods", "prefix", "qlora", "--rates", "0.3", "1", "--questions", "held_out.jsonl", "--limit", "4")
    rows = compare(*flags)
    assert [row["method"] for row in rows] == ["base", "qlora", "prefix"]
    base, qlora, prefix = rows
    assert base["lr"] is None and base["asked"] == qlora["asked"] == prefix["asked"] == 4
    assert set(qlora["tried"]) == {"0.006", "0.02"} and set(prefix["tried"]) == {"0.06", "0.2"}  # type: ignore[call-overload]
    for row in (qlora, prefix):
        tried: dict[str, float] = row["tried"]  # type: ignore[assignment]
        assert row["validation_loss"] == min(tried.values()) == tried[f"{row['lr']:.3g}"]
        assert all(row[name] for name in ("trainable_parameters", "peak_memory_mb", "file_bytes", "tokens_per_second"))
    assert qlora["validation_loss"] < base["validation_loss"]  # type: ignore[operator]
    text = capsys.readouterr().out
    assert "# Methods of fine-tuning: tuned" in text and "| qlora " in text and "- prefix: 0.06: " in text
    out = project / "runs" / "tuned_comparison"
    assert "Right facts are of 4 held-out questions." in (out / "comparison.md").read_text()
    assert Image.open(out / "comparison.png").format == "PNG"
    # Once more: nothing is trained anew, and nobody is asked again.
    metrics = {path: path.read_bytes() for path in project.glob("runs/tuned_*/metrics.jsonl")}
    commands.clear()
    assert compare("--methods", "qlora", *flags[3:]) == rows[:2] and len(metrics) == 4
    assert {path: path.read_bytes() for path in metrics} == metrics
    assert [words[0] for words in commands if words[0] == "-m"] == []


def test_the_base_is_measured_without_what_an_adapter_adds(project: Path, commands: list[tuple[str, ...]]) -> None:
    """A fresh prefix changes the model before any training."""
    base, prefix, ia3 = compare("--methods", "prefix", "ia3")
    first = [json.loads((project / "runs" / name / "metrics.jsonl").read_text().splitlines()[0])["val/loss"]
             for name in ("tuned_prefix_0.2", "tuned_ia3_0.2")]  # fmt: skip
    assert first[0] != pytest.approx(base["validation_loss"], abs=1e-3)
    assert first[1] == pytest.approx(base["validation_loss"], abs=1e-5) and prefix["score"] is ia3["score"] is None


def test_rates_that_round_alike_are_runs_of_their_own(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: dict[str, float] = {}

    def note(*words: str) -> bool:
        config = read_json(Path(words[1]))
        assert config["name"] not in trained
        trained[config["name"]] = config["optimizer"]["lr"]
        return False

    monkeypatch.setattr(compare_runs, "ended_well", note)
    with pytest.raises(UserError, match="diverged with every method"):
        compare("--methods", "lora", "full", "--rates", "0.15", "0.3", "0.30004", "0.30006", "0.3")
    rates = {"full": (0.0003, 0.0006, 0.00060008, 0.00060012), "lora": (0.003, 0.006, 0.0060008, 0.0060012)}
    assert trained == {f"tuned_{name}_{lr}": lr for name, of in rates.items() for lr in of}


def test_a_base_that_cannot_be_asked_leaves_its_cell_empty(
    project: Path, commands: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole model is asked without its base, and as long as its answers are of the same length only once."""
    go_on = compare_runs.ended_well

    def without_base(*words: str) -> bool:
        if words[0] == "-m":
            Path("runs/base").rename("runs/moved")
        return go_on(*words)

    monkeypatch.setattr(compare_runs, "ended_well", without_base)
    flags = ("--methods", "full", "--questions", "held_out.jsonl", "--limit", "2")
    base, full = compare(*flags)
    assert base["score"] is None and base["validation_loss"] and full["asked"] == 2
    assert "Right facts are of 2" in (project / "runs/tuned_comparison/comparison.md").read_text()
    (file,) = project.glob("runs/tuned_*/questions.json")
    for other, asked in (({}, 0), ({"max_new_tokens": 8}, 1), ({"without_base": NOT_ASKED}, 1)):
        commands.clear()
        Path("runs/moved").replace("runs/base")
        write_json(file, {**read_json(file), **other})
        assert compare(*flags) == [base, full]
        assert sum(words[0] == "-m" for words in commands) == asked
        if not asked:
            Path("runs/base").replace("runs/moved")


def test_real_processes_and_a_kill(project: Path) -> None:
    """Killed in the middle of a method, the same command goes on there; a rate that diverges is reported as such."""
    text = (project / "tune.py").read_text().replace("BudgetConfig(epochs=3)", "BudgetConfig(steps=30)")
    (project / "tune.py").write_text(text)
    first = project / "runs" / "tuned_lora_0.02"
    reached: Callable[[Path], bool] = lambda run: (run / "checkpoints" / "step_00000004").is_dir()  # noqa: E731
    config = project / "lora.json"
    with redirect_stderr(io.StringIO()), pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare_runs, "ended_well", lambda *words: config.write_bytes(Path(words[1]).read_bytes()) < 0)
        with pytest.raises(UserError, match="diverged with every method"):
            compare("--methods", "lora")
    kill_when(reached, project, config="lora.json", run="tuned_lora_0.02")
    said = io.StringIO()
    with redirect_stderr(said):
        base, lora = compare("--methods", "lora", "--rates", "1", "1e33")
    assert "resuming runs/tuned_lora_0.02 at step" in said.getvalue() and first.is_dir()
    assert lora["tried"]["2e+31"] is None and lora["lr"] == 0.02  # type: ignore[index]
    assert base["validation_loss"] > lora["validation_loss"]  # type: ignore[operator]


@pytest.mark.parametrize(
    ("old", "new", "flags", "message"),
    [
        ('method="lora"', 'method="lora", dora=True', (), "must fine-tune with plain LoRA"),
        ("validation_fraction=0.2", "validation_fraction=0.0", (), "must hold some examples out"),
        ("validation_fraction=0.2", "folds=2", (), "without examples.stages and folds"),
        ('start_from="runs/base"', "start_from=None", (), "names no weights to begin with"),
        ("", "", ("--questions", "nowhere.jsonl"), "nowhere.jsonl does not exist"),
        ("", "", ("--rates", "0"), "one or more positive factors"),
    ],
)
def test_what_cannot_be_compared(old: str, new: str, flags: tuple[str, ...], message: str, project: Path) -> None:
    (project / "tune.py").write_text((project / "tune.py").read_text().replace(old, new))
    with pytest.raises(UserError, match=message):
        compare(*flags)
    assert not (project / "runs" / "tuned_comparison").exists()


def test_a_failure_that_is_no_divergence_ends_the_comparison(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "questions.txt").unlink()
    with pytest.raises(UserError, match=r"ended with status 2: error: .*questions.txt"):
        compare("--methods", "ia3")


def test_all_methods_see_the_same_examples(project: Path) -> None:
    """Prefix and prompt take 20 of the 128 positions, so no method learns from longer texts than they can."""
    config = prepared(load_config("tune.py", RunConfig), Path("tune.py"))
    assert config.examples.max_length == 128 + 1 - 20
    short = replace(config, examples=replace(config.examples, max_length=50))
    assert prepared(short, Path("tune.py")).examples.max_length == 50
    assert tuple(methods_of(config)) == ALL == CompareCommand(Path("tune.py")).methods
    for method in methods_of(replace(config, adapter=replace(config.adapter, init="pissa"))).values():
        method.adapter.check()


def test_a_method_that_diverged_is_in_the_table_and_not_in_the_chart() -> None:
    rows = [Row("base", validation_loss=3.0), Row("lora", validation_loss=2.5, lr=0.1), Row("full", tried={"1": None})]
    text = describe_comparison(rows, RunConfig(start_from="runs/base", examples=ExamplesConfig(files=("a",))))
    assert "diverged" in text and "Lowest validation loss: lora, 2.5000." in text
    assert Image.open(io.BytesIO(draw_comparison(rows))).size == (1430, 825)
