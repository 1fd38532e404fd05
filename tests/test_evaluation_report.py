"""The pages of runs, drawn from their files: nothing needed but these, nothing shown that is not there."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from inference_fixtures import World, make_run, make_world, run_all
from test_evaluation_command import Page

from common.errors import UserError
from common.files import read_json, write_json
from common.runs import Run
from evaluation import fine_tuning_plots, plots
from evaluation.charts import Chart, Interval, Line, interval_chart, log_ticks, short, thinned, ticks
from evaluation.report import duration, write_comparison, write_report
from evaluation.report_facts import RunFacts, gather, verdict
from evaluation.report_metrics import number_at
from evaluation.run_comparison import compare
from evaluation.translation import COPY, TUNED

MODULE = "evaluation.report"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Two evaluated runs, `tiny` and `other`, the second with larger steps of a longer run."""
    world = make_world(tmp_path_factory.mktemp("report"))
    fingerprint = read_json(world.data / "manifest.json")["fingerprint"]
    make_run(world.run.parent / "other", fingerprint=fingerprint, width=64, heads=4)
    for code, _, err in run_all("evaluation.__main__", [["tiny"], ["other", "--baseline", "runs/tiny"]], world.root):
        assert code == 0, err
    return world


def page_of(path: Path) -> Page:
    page = Page(path.read_text(encoding="utf-8"))
    assert page.open == [] and "script" not in page.tags
    return page


def test_a_page_needs_neither_model_nor_data(world: World, tmp_path: Path) -> None:
    run = tmp_path / "tiny"
    run.mkdir()
    for name in ("metrics.jsonl", "samples.jsonl", "config.json", "summary.json"):
        shutil.copy(world.run / name, run)
    write_report(Run(run))
    again = (run / "report.html").read_text(encoding="utf-8").replace(run.as_posix(), "runs/tiny")
    assert again == (world.run / "report.html").read_text(encoding="utf-8")


def test_a_run_that_was_not_evaluated_shows_its_curves(world: World, tmp_path: Path) -> None:
    run = tmp_path / "fresh"
    run.mkdir()
    for name in ("metrics.jsonl", "config.json"):
        shutil.copy(world.run / name, run)
    text = page_of(write_report(Run(run))).text
    assert "Not evaluated" in text and "python -m evaluation" in text and "Learning rate" in text
    assert "Against baselines" not in text and "Samples" not in text
    (run / "metrics.jsonl").unlink()
    assert "Curves" not in page_of(write_report(Run(run))).text


def test_a_fine_tuned_run_shows_what_it_came_from_and_its_answers(world: World, tmp_path: Path) -> None:
    run = tmp_path / "tuned"
    shutil.copytree(world.run, run, ignore=shutil.ignore_patterns("checkpoints", "summary.json"))
    config = {**read_json(run / "config.json"), "start_from": "runs/base", "adapter": {"method": "lora"}}
    write_json(run / "config.json", {**config, "examples": {"files": ["questions.txt"]}})
    right = {"of": 40, "low": 0.1, "high": 0.9}
    fact = {"tuned": {**right, "right": 30, "share": 0.75}, "base": {**right, "right": 2, "share": 0.05}}
    write_json(run / "questions.json", {"overall": {"fact": fact}})
    write_json(run / "adapter.json", {"trainable_parameters": 12_345})
    text = " ".join(page_of(write_report(Run(run))).text.split())
    for expected in (
        "Fine-tuned from runs/base with lora on questions.txt",
        "75.0 %",
        "5.0 %",
        "40 questions",
        "12.3k",
    ):
        assert expected in text, expected


def test_measures_of_writing_are_shown_beside_those_of_people(world: World) -> None:
    summary = read_json(world.run / "summary.json")
    model = {"diversity": {"distinct_2": 0.4321, "mtld": None}, "repetition": {"seq_rep_4": 0.25}}
    human = {"diversity": {"distinct_2": 0.8765, "mtld": None}, "repetition": None}
    model["coherence"] = {"shuffled": 0.25}
    generation = {"protocol": {"samples": 64, "top_k": 50}, "model": model, "human": human}
    rows = gather(Run(world.run), {**summary, "generation": generation}).generation_rows
    assert [(row["name"], row["model"], row["human"]) for row in rows] == [
        ("distinct-2", 0.4321, 0.8765), ("seq-rep-4", 0.25, None), ("coherence, shuffled", 0.25, None),
    ]  # fmt: skip
    assert rows[2]["meaning"] == "the same with the sentences of each text in any order"
    assert gather(Run(world.run)).generation_rows == []


def test_tasks_and_translations_are_shown_where_there_are_any(world: World, tmp_path: Path) -> None:
    run = tmp_path / "asked"
    shutil.copytree(world.run, run, ignore=shutil.ignore_patterns("checkpoints"))
    accuracy = {"value": 0.625, "stderr": 0.04, "interval": [0.541, 0.702]}
    tasks = {"mini_pairs": {"asked": 136, "metrics": {"acc": accuracy, "bits": {"value": 1.9, "stderr": None}}}}
    write_json(run / "harness.json", {"tasks": tasks})
    system = {"bleu": 12.34, "low": 11.0, "high": 13.5, "chrf": 34.5, "length_ratio": 0.98}
    write_json(run / "translation.json", {"verses": 773, "systems": {COPY: {**system, "bleu": 0.2}, TUNED: system}})
    page = write_report(Run(run))
    text = " ".join(page_of(page).text.split())
    for expected in ("mini_pairs136acc0.625", "0.541 to 0.702", "bits1.900", "773 held-out", "11.0 to 13.5"):
        assert expected in text, expected
    assert f'<tr class="strong"><td>{TUNED}</td><td>12.3</td>' in page.read_text(encoding="utf-8")


def test_the_table_of_baselines_says_what_is_more_than_chance(world: World) -> None:
    summary = read_json(world.run.parent / "other" / "summary.json")
    assert summary["baselines"]["runs/tiny"]["bits_per_byte"] == pytest.approx(
        read_json(world.run / "summary.json")["val_bits_per_byte"], rel=1e-5
    )
    rows = {row["name"]: row for row in gather(Run(world.run.parent / "other")).rows if row["source"] == "all"}
    assert rows["model"]["behind"] is None and rows["model"]["verdict"] == "–"
    expected = summary["baselines"]["runs/tiny"]["bits_per_byte"] - summary["val_bits_per_byte"]
    assert rows["runs/tiny"]["behind"] == pytest.approx(expected, abs=1e-9)
    assert verdict([-0.1, 0.2]) != verdict([0.1, 0.2]) == verdict([-0.2, -0.1]) == "more than chance"


def test_a_comparison_pairs_what_was_scored_on_the_same_documents(world: World) -> None:
    runs = [Run(world.run), Run(world.run.parent / "other")]
    facts = compare(runs)
    (pair,) = facts.pairs
    bits = {run.name: read_json(run.summary)["val_bits_per_byte"] for run in runs}
    assert pair.better == min(bits, key=lambda name: bits[name])
    assert pair.difference == pytest.approx(abs(bits["tiny"] - bits["other"]), rel=1e-4)
    assert pair.interval[0] <= pair.difference <= pair.interval[1]
    assert facts.best == pair.better and not facts.apart
    assert dict(facts.differences)["model.width"] == [32, 64]
    assert "model.layers" not in dict(facts.differences)
    assert [chart.x for chart in facts.charts] == [
        "training tokens", "seconds of training", "training FLOPs", "training tokens",
    ]  # fmt: skip
    flops = facts.charts[2].lines[0].points
    assert flops[0][0] == 640 * read_json(world.run / "summary.json")["train_flops_per_token"]


@pytest.mark.parametrize("value", [True, math.nan, -math.inf, "2", None])
def test_what_is_no_finite_number_is_drawn_nowhere(value: Any) -> None:
    rows: list[dict[str, Any]] = [
        {"step": 1, "tokens": 64, "train/loss": value, "val/loss": value},
        {"step": 2, "tokens": 128, "train/loss": 2.5, "val/loss": 3.0},
    ]
    facts = RunFacts("x", "runs/x", {}, rows, [], {}, {}, {}, {}, {})
    assert facts.points("train/loss") == [(128.0, 2.5)] and facts.best_validation == rows[1]
    assert fine_tuning_plots.series(rows, "train/loss") == ([2], [2.5])
    assert plots.loss_curve(rows, {}) == plots.loss_curve(rows[1:], {})
    assert number_at({"a": {"b": value}}, "a.b") is None and number_at({"a": {"b": 2}}, "a.b") == 2


def test_runs_of_one_name_are_told_apart_by_their_paths(world: World, tmp_path: Path) -> None:
    elsewhere = tmp_path / "tiny"
    shutil.copytree(world.run, elsewhere, ignore=shutil.ignore_patterns("checkpoints"))
    facts = compare([Run(world.run), Run(elsewhere), Run(world.run.parent / "other")])
    names = [str(world.run), str(elsewhere), "other"]
    assert [run.name for run in facts.runs] == [line.label for line in facts.charts[0].lines] == names
    assert len(facts.pairs) == 3 and {name for pair in facts.pairs for name in (pair.better, pair.worse)} == set(names)
    (elsewhere / "document_scores.npz").unlink()
    assert f"{elsewhere} has no scores" in compare([Run(world.run), Run(elsewhere)]).apart[0]


def test_what_cannot_be_compared_is_said(world: World, tmp_path: Path) -> None:
    changed, bare = tmp_path / "changed", tmp_path / "bare"
    for copy in (changed, bare):
        shutil.copytree(world.run, copy, ignore=shutil.ignore_patterns("checkpoints"))
    with np.load(changed / "document_scores.npz") as file:
        values = dict(file)
    np.savez(changed / "document_scores.npz", **{**values, "data_fingerprint": np.array("0" * 64)})
    write_json(changed / "summary.json", {**read_json(changed / "summary.json"), "data_fingerprint": "0" * 64})
    (bare / "document_scores.npz").unlink()
    facts = compare([Run(world.run), Run(changed), Run(bare)])
    assert facts.pairs == []
    alone = compare([Run(world.run), Run(bare)])
    assert alone.pairs == [] and len(alone.apart) == 1 and "bare has no scores" in alone.apart[0]
    assert any("bare has no scores" in line for line in facts.apart)
    assert sum("scored on other data" in line for line in facts.apart) == 2
    assert "different data" in facts.warnings[0]
    assert "No two of these runs" in page_of(write_comparison([Run(world.run), Run(changed)], tmp_path / "x.html")).text
    (changed / "document_scores.npz").write_bytes(b"PK damaged")
    with pytest.raises(UserError, match="cannot be read"):
        compare([Run(world.run), Run(changed)])


def test_the_command(world: World) -> None:
    results = run_all(
        MODULE,
        [["tiny"], ["tiny", "other"], ["tiny", "other", "--out", "both.html"], ["tiny", "--out", "x.html"],
         ["tiny", "runs/tiny"], ["nowhere"]],
        world.root,
    )  # fmt: skip
    assert [code for code, _, _ in results] == [0, 0, 0, 2, 2, 2]
    assert results[0][1].strip() == "runs/tiny/report.html"
    for path in ("runs/comparison.html", "both.html"):
        text = page_of(world.root / path).text
        assert "2 runs compared" in text and "model.width" in text
    assert "named twice" in results[4][2]


def drawn(svg: str) -> list[list[tuple[float, float]]]:
    """The points of every line of a chart."""
    lines = re.findall(r'<polyline class="[^"]*" points="([^"]*)"', svg)
    return [[(float(x), float(y)) for x, y in (pair.split(",") for pair in line.split())] for line in lines]


def test_a_chart_draws_what_it_is_given() -> None:
    points = [(0.0, 1.0), (50.0, 3.0), (75.0, math.nan), (100.0, 2.0)]
    chart = Chart("Loss", "tokens", "nats", [Line("<a>", points, marked=True), Line("b", [(0.0, 2.0)])], {"one": 1.5})
    (first, second) = drawn(chart.svg)
    assert [x for x, _ in first] == sorted(x for x, _ in first) and len(first) == 3
    (_, low), (_, high), (_, middle) = first
    assert high < middle < low and middle == pytest.approx((low + high) / 2, abs=0.1)
    assert second[0][1] == middle
    assert chart.svg.count("<circle") == 4 and "one 1.50" in chart.svg
    assert Page(chart.svg).open == []
    assert not Chart("", "", "", [Line("", [(1.0, math.inf)])])


def test_a_long_curve_may_leave_the_picture_in_its_opening_only() -> None:
    falling = [(float(step), 100.0 if step == 0 else 2 - step / 100) for step in range(100)]
    (line,) = drawn(Chart("", "", "", [Line("", falling)]).svg)
    assert line[0][1] < 0 and all(0 < y < 220 for _, y in line[1:])
    (line,) = drawn(Chart("", "", "", [Line("", falling[:10])]).svg)
    assert all(0 < y < 220 for _, y in line)
    rising = [(step, 4 - value) for step, value in falling]
    (line,) = drawn(Chart("", "", "", [Line("", [(0.0, 0.1), *rising[1:]])]).svg)
    assert all(0 < y < 198 for _, y in line), "only upwards: below is the axis"


def test_a_logarithmic_axis_puts_factors_at_equal_distances() -> None:
    (line,) = drawn(Chart("", "", "", [Line("", [(0.0, 1.0), (1.0, 10.0), (2.0, 100.0)])], log=True).svg)
    assert line[0][1] - line[1][1] == pytest.approx(line[1][1] - line[2][1], abs=0.2)


def test_intervals_lie_around_their_values() -> None:
    svg = interval_chart([Interval("a", 2.0, [1.5, 2.5], True), Interval("b & c", 3.0, None)], "bits")
    (whisker,) = re.findall(r'<line class="line c0" x1="([\d.]+)" x2="([\d.]+)"', svg)
    dots = [float(x) for x in re.findall(r'<circle [^>]*cx="([\d.]+)"', svg)]
    assert float(whisker[0]) < dots[0] < float(whisker[1]) < dots[1] and "b &amp; c" in svg


def test_ticks_and_numbers_are_round() -> None:
    assert ticks(0, 10, 5) == [0, 2, 4, 6, 8, 10]
    assert ticks(1.63, 2.09, 4) == [1.8, 2.0]
    assert log_ticks(1, 1000) == [1, 10, 100, 1000]
    assert all(30 <= tick <= 90 for tick in log_ticks(30, 90)) and len(log_ticks(30, 90)) >= 3
    shown = {0: "0", 1.5: "1.5", 1500: "1.5k", 2_202_345: "2.2M", 3e15: "3P", 5e-4: "5e-4", 0.02: "0.02"}
    shown |= {999_999: "1M", 999_400: "999k", 999.7: "1k", -2e4: "-20k"}
    assert {value: short(value) for value in shown} == shown
    assert [duration(value) for value in (None, 42, 390, 11_520)] == ["–", "42 s", "6.5 min", "3.2 h"]


def test_many_points_become_few_with_the_same_mean() -> None:
    points: list[tuple[float, float]] = [(float(x), math.sin(x)) for x in range(4000)]
    few = thinned(points)
    assert len(few) == 400 and few[0][0] == 4.5
    assert np.mean([y for _, y in few]) == pytest.approx(np.mean([y for _, y in points]))
    assert thinned(few) == few


def test_damaged_files_are_named(world: World, tmp_path: Path) -> None:
    run = tmp_path / "tiny"
    shutil.copytree(world.run, run, ignore=shutil.ignore_patterns("checkpoints"))
    (run / "summary.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"summary\.json is damaged"):
        write_report(Run(run))


def test_hostile_names_and_texts_stay_text(world: World, tmp_path: Path) -> None:
    run = tmp_path / "tiny"
    shutil.copytree(world.run, run, ignore=shutil.ignore_patterns("checkpoints"))
    summary: dict[str, Any] = json.loads(
        (run / "summary.json").read_text(encoding="utf-8").replace("python", "<svg onload=x>")
    )
    write_json(run / "summary.json", summary)
    source = write_report(Run(run)).read_text(encoding="utf-8")
    assert "<svg onload" not in source and "&lt;svg onload" in source
