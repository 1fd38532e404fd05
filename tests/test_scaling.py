"""Scaling laws: known ones are found again, intervals hold what they say, and a real ladder of tiny runs."""

from __future__ import annotations

import io
import itertools
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from inference_fixtures import make_run
from PIL import Image
from tiny import make_project, run_here

from common.cli import load_config, to_dict
from common.errors import UserError
from common.files import read_json, write_json
from common.runs import Run
from evaluation import compare_runs, ladder, scaling
from evaluation.scaling_fit import FEWEST, Point, choose_law, fit
from model.presets import preset
from training.config import RunConfig

SIZES, TOKENS = (5e5, 1.5e6, 4e6, 1e7), (1e6, 3e6, 1e7)


def law(parameters: float, tokens: float) -> float:
    """The constants of Hoffmann et al. 2022, appendix D.3."""
    return float(1.69 + 406.4 / parameters**0.34 + 410.7 / tokens**0.28)


def points(noise: float = 0.0, seed: int = 0, loss: Callable[[float, float], float] = law) -> list[Point]:
    rng = np.random.default_rng(seed)
    pairs = itertools.product(SIZES, TOKENS)
    return [Point(f"{n}_{d}", n, d, loss(n, d) * float(np.exp(rng.normal(0, noise)))) for n, d in pairs]


def test_a_known_law_is_found_again() -> None:
    found = fit(points(), "parameters-tokens", resamples=5)
    expected = {"E": 1.69, "A": 406.4, "alpha": 0.34, "B": 410.7, "beta": 0.28}
    assert found.constants == pytest.approx(expected, rel=1e-3)
    assert found.predict(5e7, 1e8) == pytest.approx(law(5e7, 1e8), rel=1e-4)
    assert np.abs(found.left_out).max() < 1e-4


def test_a_law_of_compute_is_found_again() -> None:
    def of_compute(parameters: float, tokens: float) -> float:
        return float(2.0 + 900 * (6 * parameters * tokens) ** -0.2)

    found = fit(points(loss=of_compute), "compute", resamples=5)
    assert found.constants == pytest.approx({"E": 2.0, "K": 900, "gamma": 0.2}, rel=1e-3)


def test_intervals_hold_a_larger_run() -> None:
    """Of laws with noise, the run of ten times the largest of each lies in most intervals, which are not wide."""
    truth = law(1e8, 1e8)
    held = []
    for seed in range(8):
        low, high = fit(points(0.003, seed), "parameters-tokens", resamples=50).interval(1e8, 1e8)
        held.append(low <= truth <= high)
        assert high - low < 0.25 * truth
    assert sum(held) >= 7


def test_one_odd_run_moves_little() -> None:
    odd = points(0.001)
    odd[4] = replace(odd[4], loss=odd[4].loss * 1.1)
    found = fit(odd, "parameters-tokens", resamples=5)
    assert found.predict(1e7, 1e7) == pytest.approx(law(1e7, 1e7), rel=0.01)
    assert np.argmax(np.abs(found.left_out)) == 4


def test_the_best_split_is_the_minimum() -> None:
    found = fit(points(), "parameters-tokens", resamples=2)
    parameters, tokens = found.best_split(1e17)
    assert 6 * parameters * tokens == pytest.approx(1e17)
    best = found.predict(parameters, tokens)
    for factor in (0.8, 1.25):
        assert found.predict(parameters * factor, tokens / factor) > best


def test_the_law_is_one_that_the_runs_can_tell() -> None:
    grid = points()
    assert choose_law(grid) == "parameters-tokens"
    assert choose_law([point for point in grid if point.tokens == 1e6]) == "compute"
    assert choose_law([point for point in grid if point.parameters == 5e5]) is None
    assert choose_law(grid[: FEWEST["compute"]]) == "compute"


def test_a_ladder_keeps_the_proportions() -> None:
    config = RunConfig(name="x", model=preset("mini-llama"))
    rungs = ladder.rungs_of(config, ("256x4", "128x2"), (2e6, 1e6))
    assert [rung.name for rung in rungs] == ["x_128x2_1M", "x_128x2_2M", "x_256x4_1M", "x_256x4_2M"]
    close = (1e6, 1_000_400, 1_000_600, 999_999, 999_999_999)
    names = {rung.budget.tokens: rung.name for rung in ladder.rungs_of(config, ("128x2",), close)}
    assert len(set(names.values())) == len(names) == len(close) and names[1_000_000] == "x_128x2_1M"
    model = rungs[-1].model
    assert (model.width, model.layers, model.heads, model.kv_heads, model.mlp_width) == (256, 4, 4, 2, 704)
    assert model.head_size == config.model.head_size and rungs[-1].budget.tokens == 2_000_000
    for sizes, tokens, message in (
        (("256",), (1e6,), "a size is WIDTHxLAYERS"), (("100x2",), (1e6,), "multiple of the size of a head, 64"),
        (("64x2",), (), "--tokens"), (("64x2",), (0.0,), "--tokens"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=message):
            ladder.rungs_of(config, sizes, tokens)
    with pytest.raises(UserError, match="starts from other weights"):
        ladder.rungs_of(replace(config, start_from="y"), ("64x2",), (1e6,))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a ladder of three sizes and two budgets, trained in this process."""
    project = make_project(tmp_path_factory.mktemp("ladder"))
    config = load_config(project / "tiny.py", RunConfig)
    config = replace(config, validation=replace(config.validation, every=1000, sample_tokens=0), compile="off")
    write_json(project / "tiny.json", to_dict(replace(config, optimizer=replace(config.optimizer, lr=0.02))))
    with pytest.MonkeyPatch.context() as patch, redirect_stderr(io.StringIO()):
        patch.chdir(project)
        patch.setattr(compare_runs, "ended_well", lambda _, config: bool(run_here(Path(), config=config)))
        ladder.main(["tiny.json", "--sizes", "16x1", "32x1", "32x2", "--tokens", "2048", "8192"])
    return project


def test_a_real_ladder_is_trained_and_fitted(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(trained)
    runs = sorted(path.name for path in (trained / "runs").iterdir() if (path / "config.json").is_file())
    assert len(runs) == 6 and "tiny_16x1_2.048k" in runs
    fitting = [name for name in runs if name != "tiny_32x2_8.192k"]
    flags = ["--predict", "tiny_32x2_8.192k", "--parameters", "1e5", "--tokens", "1e5", "--law", "compute"]
    scaling.main([*fitting, *flags])
    printed = capsys.readouterr().out
    result = read_json(trained / "runs/scaling/scaling.json")
    assert [run["name"] for run in result["runs"]] == fitting and result["law"] == "compute"
    for run in result["runs"]:
        assert run["loss"] == pytest.approx(run["fitted"], rel=0.3) and run["tokens"] in (2048, 8192)
    larger, asked = result["predictions"]
    assert larger["within"] == (larger["interval"][0] <= larger["loss"] <= larger["interval"][1])
    assert ("lies within" in printed) == larger["within"] and ("OUTSIDE" in printed) != larger["within"]
    assert asked["loss"] is None and asked["interval"][0] <= asked["predicted"] <= asked["interval"][1]
    assert Image.open(trained / "runs/scaling/scaling.png").size[0] > 1000


def test_what_cannot_be_fitted_is_said(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(trained)
    runs = ["tiny_16x1_2.048k", "tiny_32x1_2.048k", "tiny_32x2_2.048k"]
    for flags, message in (
        (runs, "3 runs are too few"),
        ([*runs, runs[0]], "named twice"),
        ([*runs, "--parameters", "1e6"], "go together"),
        ([*runs, "--parameters", "-1", "--tokens", "5"], "must be positive"),
        (["nowhere"], "no run 'nowhere'"),
    ):
        with pytest.raises(UserError, match=message):
            scaling.main(flags)
    moved = trained / "runs/tiny_32x2_8.192k/config.json"
    write_json(moved, {**read_json(moved), "data": {"directory": "elsewhere"}})
    with pytest.raises(UserError, match="different data directories"):
        scaling.main([*runs, "tiny_32x2_8.192k"])


def test_losses_of_different_tokens_are_not_fitted_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = Run(make_run(tmp_path / "first", "data/tiny", "a" * 64))
    alike = Run(make_run(tmp_path / "alike", str(tmp_path / "data/x/../tiny"), "a" * 64))
    scaling.check_alike([first, alike])
    bare = Run(make_run(tmp_path / "bare"))
    shutil.rmtree(bare.checkpoint_root)
    scaling.check_alike([bare, first, alike])
    others = {
        "data directories": make_run(tmp_path / "elsewhere", "data/other", "a" * 64),
        "data fingerprints": make_run(tmp_path / "made_again", "data/tiny", "b" * 64),
        "context lengths": make_run(tmp_path / "shorter", "data/tiny", "a" * 64, context_length=16),
        "tokenizers": make_run(tmp_path / "other_words", "data/tiny", "a" * 64),
    }
    Run(others["tokenizers"]).tokenizer.write_bytes(b"another")
    for what, path in others.items():
        with pytest.raises(UserError, match=f"different {what}"):
            scaling.check_alike([bare, first, alike, Run(path)])  # of bare no fingerprint is known
