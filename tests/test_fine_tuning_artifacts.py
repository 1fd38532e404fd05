"""What a fine-tuning run leaves behind: every file from the run directory alone, and warnings that are earned."""

from __future__ import annotations

import csv
import io
import json
import math
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from fine_tuning_runs import LOADING, curve, make_rows, make_run, write_lines
from PIL import Image

from common.errors import UserError
from common.files import read_json, write_json
from common.runs import Run
from evaluation.fine_tuning import describe, figures, main, write_artifacts
from evaluation.fine_tuning_summary import FineTuningSummary, curve_warnings, read_metrics, summarise

PROJECT = Path(__file__).resolve().parent.parent
IMAGES = {
    "loss_by_step",
    "loss_by_epoch",
    "learning_rate",
    "loss_log_scale",
    "validation_loss",
    "training_metrics",
}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return make_run(tmp_path / "pokemon")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, FineTuningSummary]:
    """Such a run with its artifacts; to be looked at, never changed."""
    run = make_run(tmp_path_factory.mktemp("written") / "pokemon")
    return run, write_artifacts(run, LOADING)


def summary_of(run: Run) -> FineTuningSummary:
    """What the artifacts say, without drawing them."""
    return summarise(run, *read_metrics(run), loading=[])


def test_everything_is_written(written: tuple[Run, FineTuningSummary], run: Run) -> None:
    before = {path.name for path in run.path.iterdir()}
    run, summary = written
    made = {path.name for path in run.path.iterdir()} - before
    files = {"training_metrics.json", "training_metrics.csv", "summary.md"}
    assert made == files | {f"{name}.png" for name in IMAGES}
    text = (run.path / "summary.md").read_text(encoding="utf-8")
    assert text.startswith(describe(summary))
    shown = {part.split(")")[0] for part in text.split("](")[1:]}
    assert shown == {"training_metrics.png", "validation_loss.png"}


def test_figures_of_the_summary(written: tuple[Run, FineTuningSummary]) -> None:
    losses, summary = curve(), written[1]
    assert (summary.run, summary.steps, summary.tokens, summary.epochs) == ("pokemon", 300, 153_600, 3)
    assert (summary.first_loss, summary.last_loss) == (losses[0], losses[-1])
    assert (summary.lowest_loss, summary.highest_loss) == (min(losses), max(losses))
    assert summary.lowest_loss_step == losses.index(min(losses)) + 1
    assert summary.highest_loss_step == losses.index(max(losses)) + 1
    assert summary.improvement_percent == pytest.approx(100 * (losses[0] - losses[-1]) / losses[0])
    first, last = sum(losses[:30]), sum(losses[-30:])
    assert summary.smoothed_improvement_percent == pytest.approx(100 * (first - last) / first)
    assert (summary.smoothed_over, summary.seconds, summary.peak_memory_mb) == (30, 411, 606)
    assert summary.best_validation_loss == summary.last_validation_loss == 1.5 + 1.9 * math.exp(-4)
    assert summary.best_validation_step == 300
    assert (summary.trainable_parameters, summary.total_parameters) == (2_359_296, 126_799_104)
    assert summary.warnings == ("records of the data that could not be used: 7; see what the data loader reported",)


def test_json_holds_every_step_and_the_summary(written: tuple[Run, FineTuningSummary]) -> None:
    run, summary = written
    found = read_json(run.path / "training_metrics.json")
    assert found["summary"] == json.loads(json.dumps(asdict(summary)))
    assert found["steps"] == [json.loads(line) for line in run.metrics.read_text().splitlines()]


def test_csv_has_a_row_a_step_and_empty_cells(written: tuple[Run, FineTuningSummary]) -> None:
    run, _ = written
    content = (run.path / "training_metrics.csv").read_bytes()
    assert b"\r" not in content
    rows = list(csv.DictReader(io.StringIO(content.decode())))
    logged = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert list(rows[0])[:2] == ["step", "tokens"] and len(rows) == 300
    for found, expected in zip(rows, logged, strict=True):
        for key, cell in found.items():
            value = expected.get(key)
            assert cell == "" if value is None else float(cell) == value
    assert rows[0]["val/loss"] == "" != rows[49]["val/loss"]
    assert rows[2]["grad_norm"] == ""


def test_the_description_says_it_all(written: tuple[Run, FineTuningSummary]) -> None:
    text = describe(written[1])
    for part in (
        "| improvement           | ",
        "at step 300",
        "perplexity 4.64",
        "| 411.00 s (6 min 51 s)",
        "| 2,359,296 of 126,799,104 (1.86 %)",
        "| lengths, longest | 256   |",
        "- pokemon.txt: 0: no answer",
        "- and 2 more",
        "before training (step 0)",
        "after (step 300, the best validated)",
        "      Pregunta: ¿Qué es | Charizard?\n",
        "    of the\ufffd[31m the" + 44 * " " + "Pikachu es eléctrico.\n",
        "## How to load it\n\n    from peft import PeftModel\n    model",
    ):
        assert part in text, part
    assert "\x1b" not in text
    assert all(line.startswith("    ") for line in text.splitlines() if "```" in line)
    assert max(map(len, text.split("## Generations")[1].splitlines())) <= 120


def test_without_a_second_sample_nothing_is_called_before(run: Run) -> None:
    write_lines(run.samples, [{"step": 50, "prompt": "a", "text": ""}])
    text = describe(summary_of(run))
    assert "after (step 50)" in text and "before" not in text and "(empty)" in text
    write_lines(run.samples, [{"step": 10, "prompt": "a", "text": "x"}, {"step": 20, "prompt": "b", "text": "y"}])
    summary = summary_of(run)
    assert [(row.prompt, row.before, row.after) for row in summary.generations] == [("b", None, "y"), ("a", "x", None)]
    assert "first sample (step 10)" in describe(summary) and "(none)" in describe(summary)


def test_the_generations_are_those_of_the_weights_that_are_used(run: Run) -> None:
    for validation, after in (
        ({0: 3.0, 150: 2.0, 300: 2.5}, "step 150, the best validated"),
        ({0: 1.0, 150: 2.5, 300: 2.0}, "step 300"),  # nothing learned is as good as what it began with
        ({100: 1.0, 150: 2.0, 300: 2.5}, "step 300"),  # there is no sample of step 100
        ({}, "step 300"),
    ):
        start = [{"step": 0, "val/loss": validation[0]}] if 0 in validation else []
        write_lines(run.metrics, [*start, *make_rows(curve(), validation)])
        summary = summary_of(run)
        text = " Un Pokémon." if "150" in after else " Pikachu es eléctrico."
        assert all(row.after == text and "the\n\n" in str(row.before) for row in summary.generations)
        assert f"after ({after})" in describe(summary)


def test_equal_runs_give_equal_bytes(written: tuple[Run, FineTuningSummary]) -> None:
    run, _ = written
    assert figures(run) == {name: (run.path / f"{name}.png").read_bytes() for name in IMAGES}


@pytest.mark.parametrize("steps", [1, 20_000])
def test_short_long_and_unvalidated_runs(run: Run, steps: int) -> None:
    write_lines(run.metrics, make_rows(curve(steps)))
    for name in ("adapter.json", "examples.json", "samples.jsonl", "config.json"):
        (run.path / name).unlink()
    summary = write_artifacts(run)
    assert summary.warnings == () and "validation" not in describe(summary)
    assert "validation_loss.png" not in (run.path / "summary.md").read_text()
    for name in IMAGES:
        image = Image.open(run.path / f"{name}.png")
        assert image.size == ((1650, 1140) if name == "training_metrics" else (1050, 660))
    assert read_json(run.path / "training_metrics.json")["steps"][-1]["step"] == steps


def test_what_is_damaged_is_left_out_and_said(run: Run) -> None:
    with run.metrics.open("a") as file:
        file.write('{"step": "x"}\n[1]\n\n{"step": 301, "train/')
    with run.samples.open("a") as file:
        file.write('{"step": 300, "prompt": 5, "text": "x"}\n')
    run.config.write_text("{")
    (run.path / "adapter.json").write_text("[]")
    summary = summary_of(run)
    assert summary.steps == 300 and len(summary.generations) == 2 and summary.trainable_parameters is None
    said = "\n".join(summary.warnings)
    assert "metrics.jsonl: lines that are damaged and were left out: 3" in said
    assert "samples.jsonl: lines that are damaged and were left out: 1" in said
    assert "config.json cannot be read" in said and "adapter.json cannot be read (it holds no JSON object)" in said


def test_a_step_that_was_logged_in_parts_is_one_row(run: Run) -> None:
    write_lines(run.metrics, [{"step": 2, "val/loss": 1.0}, {"step": 1, "train/loss": 2.0}, {"step": 2, "lr": 0.1}])
    assert read_metrics(run)[0] == [{"step": 1, "train/loss": 2.0}, {"step": 2, "val/loss": 1.0, "lr": 0.1}]


@pytest.mark.parametrize("content", ["", "no json\n", None])
def test_nothing_logged_is_a_message(run: Run, content: str | None) -> None:
    run.metrics.unlink() if content is None else run.metrics.write_text(content)
    for make in (write_artifacts, figures):
        with pytest.raises(UserError, match=r"metrics\.jsonl has no logged step"):
            make(run)


def test_only_validations_logged(run: Run) -> None:
    write_lines(run.metrics, [{"step": 0, "val/loss": 2.0}])
    summary = summary_of(run)
    assert summary.warnings[1:] == () and summary.last_validation_loss == 2
    assert summary.first_loss is None and summary.improvement_percent is None and summary.best_validation_step == 0


def test_the_command_makes_it_all_again(written: tuple[Run, FineTuningSummary], run: Run) -> None:
    """Also how to load it, which only the first writer knew."""
    first, summary = written
    write_json(run.path / "training_metrics.json", {"summary": {"loading": LOADING}})
    command = [sys.executable, "-m", "evaluation.fine_tuning"]
    done = subprocess.run([*command, run.path], cwd=PROJECT, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert done.stdout.startswith(describe(summary))
    assert {path.name: path.read_bytes() for path in run.path.iterdir()} == {
        path.name: path.read_bytes() for path in first.path.iterdir()
    }


def test_a_run_that_is_not_there_is_a_message(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run"):
        main([str(tmp_path / "no")])
    with pytest.raises(SystemExit, match="2"):
        main(["--no-such-flag"])


def test_noise_alone_is_no_rise() -> None:
    """Of flat noisy losses it is said that they stand still, of falling ones nothing, whatever the seed."""
    for seed in range(100):
        falling = curve(steps=60 + 7 * seed, noise=0.3, seed=seed)
        assert curve_warnings(make_rows(falling)) == []
        rng = np.random.default_rng(seed)
        flat = [float(loss) for loss in 2 + rng.normal(0, 0.05, 50 + 7 * seed)]
        assert "has stalled" in " ".join(curve_warnings(make_rows(flat)))


def test_a_zigzag_of_grouped_lengths_is_no_rise() -> None:
    losses = [loss + 0.4 * (step % 25 / 25 - 0.5) for step, loss in enumerate(curve())]
    assert curve_warnings(make_rows(losses)) == []


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        (list(reversed(curve())), "the training loss rose, from 1."),
        (curve() + [1.45 + step / 100 for step in range(100)], "rose again after about step 2"),
        (curve() + [4.0] * 100 + curve(), "rose again after about step 2"),  # and came back
        (curve(end=3.29, noise=0.05), "has stalled"),
        ([*curve(20), math.nan, *curve(20)], "training loss is not a finite number at step 21 (such steps in all: 1)"),
        ([*curve(20), math.inf, math.nan], "at step 21 (such steps in all: 2)"),
    ],
)
def test_losses_that_ask_for_attention(losses: list[float], said: str, run: Run) -> None:
    write_lines(run.metrics, make_rows(losses))
    summary = summary_of(run)
    assert any(said in warning for warning in summary.warnings), summary.warnings
    assert said in describe(summary)


def test_what_is_no_number_is_null_in_json_and_missing_from_the_figures(run: Run) -> None:
    write_lines(run.metrics, make_rows([2.0, math.nan, math.inf]))
    summary = write_artifacts(run)
    assert summary.last_loss == summary.highest_loss == 2.0 and summary.steps == 3
    text = (run.path / "training_metrics.json").read_text()
    found = json.loads(text, parse_constant=pytest.fail)  # NaN and Infinity are no JSON
    assert [row["train/loss"] for row in found["steps"]] == [2.0, None, None]
    assert ",inf," in (run.path / "training_metrics.csv").read_text()


@pytest.mark.parametrize(
    ("train", "validation", "said"),
    [
        (curve(), {50: 2.5, 100: 1.9, 200: 2.1, 300: 2.4}, "overfitting from step 100: since then the validation loss"),
        (curve(), {50: 2.5, 100: 1.9, 200: 1.95, 300: 1.91}, None),  # within a hundredth of the best
        (curve(), {300: 1.9}, None),
        (
            list(reversed(curve())),
            {50: 2.5, 100: 1.9, 300: 2.4},
            "the validation loss rose after step 100, from 1.9000",
        ),
    ],
)
def test_overfitting_is_told_from_a_bad_learning_rate(
    train: list[float], validation: dict[int, float], said: str | None
) -> None:
    found = [warning for warning in curve_warnings(make_rows(train, validation)) if "validation" in warning]
    assert len(found) == (said is not None)
    assert said is None or found[0].startswith(said)


def test_overfitting_can_begin_before_the_first_step() -> None:
    rows = [{"step": 0, "val/loss": 1.0}, *make_rows(curve(), {300: 1.2})]
    assert any(warning.startswith("overfitting from step 0") for warning in curve_warnings(rows))


def test_repetitive_generations_are_said(run: Run) -> None:
    varied = (
        "Un ratón amarillo que guarda electricidad en las mejillas y la suelta, si se enoja, contra quien le molesta."
    )
    texts = ["Es de tipo fuego. " * 10, f"{varied} Vive en bosques templados.", "No no no no no."]
    write_lines(run.samples, [{"step": 9, "prompt": text[:5], "text": text} for text in texts])
    assert any("generations that repeat themselves: 1 of 3" in warning for warning in summary_of(run).warnings)
