"""python -m evaluation as a user runs it: the summary, the report, and doing nothing twice."""

from __future__ import annotations

import math
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from inference_fixtures import HOSTILE, SOURCES, World, command, make_checkpoint, make_world, run_all, tiny_model

from common.errors import UserError
from common.files import read_json, write_json
from common.runs import Run, choose_checkpoint
from data_pipeline.shards import Dataset
from evaluation import plots, summary
from evaluation.__main__ import EvaluationCommand, open_dataset
from evaluation.report_facts import comparison
from evaluation.summary import is_up_to_date
from inference import load_run

MODULE = "evaluation.__main__"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """An evaluated run; its tests only read."""
    world = make_world(tmp_path_factory.mktemp("world"))
    done = command("-m", "evaluation", "tiny", "--document-context", cwd=world.root)
    assert done.returncode == 0, done.stderr
    (world.root / "output.txt").write_text(done.stdout, encoding="utf-8")
    return world


@pytest.fixture
def copy(world: World, tmp_path: Path) -> World:
    shutil.copytree(world.root, tmp_path / "world")
    return World(tmp_path / "world", tmp_path / "world/data/tiny", tmp_path / "world/runs/tiny")


def summary_of(world: World) -> dict[str, Any]:
    return read_json(world.run / "summary.json")


def test_summary_holds_what_scripts_rely_on(world: World) -> None:
    summary = summary_of(world)
    loaded = load_run(Run(world.run), device="cpu")
    expected = {
        "run": "tiny", "checkpoint_step": 10, "parameters": sum(p.numel() for p in loaded.model.parameters()),
        "tokens_trained": 640, "train_seconds": 5.0, "tokens_per_second": 128.0, "context_policy": "packed",
        "precision": "fp32", "tokenizer_sha256": loaded.tokenizer.sha256, "trained_on_this_data": True,
        "baseline_training_tokens": len(Dataset(world.data).split("train")),
    }  # fmt: skip
    assert {key: summary[key] for key in expected} == expected
    assert summary["val_perplexity"] == pytest.approx(math.exp(summary["val_loss"]))
    assert list(summary["per_source"]) == list(SOURCES)
    for scores in (summary, *summary["baselines"].values(), summary["document_context"]):
        for score in scores["per_source"].values():
            assert set(score) == {
                "loss", "perplexity", "bits_per_byte", "tokens", "bytes", "words", "word_perplexity",
            }  # fmt: skip
    for group, predictors in summary["intervals"].items():
        assert group in ("all", *SOURCES) and list(predictors) == ["model", *summary["baselines"]]
        for low, high in (entry["bits_per_byte"] for entry in predictors.values()):
            assert 0 < low <= high
    low, high = summary["intervals"]["all"]["model"]["loss"]
    assert low < summary["val_loss"] < high
    assert summary["train_flops_per_token"] == loaded.model.flops_per_token()
    assert summary["dataset"]["stages"][0]["dropped"] == {"too short": 10} and "shards" not in str(summary["dataset"])
    assert list(summary["baselines"]) == ["unigram", "bigram", "trigram", "4-gram", "5-gram", "untrained"]
    assert summary["baselines"]["trigram"]["loss"] < summary["baselines"]["unigram"]["loss"]
    tokens = sum(score["tokens"] for score in summary["per_source"].values())
    assert tokens == summary["val_tokens"] == len(Dataset(world.data).split("val"))


def test_what_is_printed_is_what_is_in_the_summary(world: World) -> None:
    text, summary = (world.root / "output.txt").read_text(encoding="utf-8"), summary_of(world)
    for figure in (summary["val_loss"], summary["val_bits_per_byte"], summary["baselines"]["trigram"]["loss"]):
        assert f"{figure:.3f}" in text
    for line in ("runs/tiny/report.html", "runs/tiny/summary.json", "python sample.py --run runs/tiny"):
        assert line in text


class Page(HTMLParser):
    """Checks that tags are closed in order, and collects text, tags and whatever could load something."""

    VOID = frozenset({"meta", "img", "br", "link", "input", "hr"})

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.references: list[str] = []
        self.text = ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.references += [value or "" for name, value in attributes if name in ("src", "href", "srcset", "action")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]} at {self.getpos()}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.text += data


def test_report_is_one_whole_page_that_loads_nothing(world: World) -> None:
    source = (world.run / "report.html").read_text(encoding="utf-8")
    page = Page(source)
    assert page.open == []
    assert "script" not in page.tags and "link" not in page.tags and "b" in page.tags
    assert all(reference.startswith("#") for reference in page.references)
    assert "url(" not in source and "@import" not in source and "http" not in source
    identifiers = re.findall(r'id="(\w+)"', source)
    assert {reference[1:] for reference in page.references} == set(identifiers) and page.references
    assert 'name="viewport"' in source


def test_report_escapes_what_models_and_data_say(world: World) -> None:
    source = (world.run / "report.html").read_text(encoding="utf-8")
    assert "<script" not in source and "&lt;script&gt;" in source
    assert HOSTILE in Page(source).text


def test_report_shows_everything(world: World) -> None:
    text = " ".join(Page((world.run / "report.html").read_text(encoding="utf-8")).text.split())
    summary = summary_of(world)
    for expected in (
        f"{summary['val_perplexity']:,.2f}", f"{summary['baselines']['trigram']['bits_per_byte']:.3f}", "too short 10",
        "licence of wikipedia", "def read_lines(path):", "The river", "model.width", "torch",
        summary["tokenizer_sha256"], "disjoint windows of 32 tokens",
    ):  # fmt: skip
        assert expected in text, expected
    for name in ("loss", "learning_rate"):
        assert (world.run / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_comparison_is_relative_to_the_unigram(world: World) -> None:
    summary = summary_of(world)
    rows = {(row["source"], row["name"]): row for row in comparison(summary)}
    assert next(iter(rows)) == ("all", "model")
    assert len(rows) == 7 + 2 * 3
    unigram = summary["baselines"]["unigram"]["per_source"]["python"]
    expected = 100 * (summary["per_source"]["python"]["bits_per_byte"] / unigram["bits_per_byte"] - 1)
    assert rows["python", "model"]["change"] == pytest.approx(expected)
    assert rows["all", "unigram"]["change"] is None


def test_nothing_is_done_twice_but_with_force(copy: World) -> None:
    before, summary = (copy.run / "summary.json").stat().st_mtime_ns, summary_of(copy)
    again, forced = run_all(
        MODULE, [["tiny", "--document-context"], ["tiny", "--document-context", "--force"]], copy.root
    )
    assert again[0] == forced[0] == 0
    assert again[1].startswith("up to date")
    assert not forced[1].startswith("up to date")
    assert (copy.run / "summary.json").stat().st_mtime_ns > before
    assert summary_of(copy) == summary


def test_whatever_changes_is_noticed(copy: World) -> None:
    results = run_all(MODULE, [["tiny", "--checkpoint", "last"], ["tiny", "--batch-tokens", "64"]], copy.root)
    assert not any(out.startswith("up to date") for _, out, _ in results)
    assert summary_of(copy)["document_context"] is None
    inputs = summary_of(copy)["inputs"]
    assert is_up_to_date(Run(copy.run), inputs)
    with open(copy.run / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write('{"step": 21, "tokens": 1344, "train/loss": 3.9, "lr": 0}\n{"step": 22, "tor')  # a torn line
    ((code, out, _),) = run_all(MODULE, [["tiny"]], copy.root)
    assert (code, out.startswith("up to date")) == (0, False)
    assert summary_of(copy)["inputs"] != inputs
    (copy.run / "report.html").unlink()
    assert not is_up_to_date(Run(copy.run), summary_of(copy)["inputs"])


def test_other_models_and_code_that_is_no_python_are_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make_world(tmp_path / "world")
    monkeypatch.chdir(world.root)
    monkeypatch.setattr(summary, "__file__", str(tmp_path / "code/evaluation/summary.py"))
    kernel = tmp_path / "code/model/native/step.cpp"
    kernel.parent.mkdir(parents=True)
    kernel.write_text("int one;")
    beside = Path("runs/beside")
    shutil.copytree(world.run, beside)
    directories = Path("theirs"), Path("classifier")
    for directory in directories:
        directory.mkdir()
        write_json(directory / "config.json", {"vocab_size": 100})
        (directory / "model.safetensors").write_bytes(bytes(2 << 20))
    run = Run(world.run)
    options = {"baseline": ["beside", "theirs", "nowhere"], "generation": {"toxicity": "hf:classifier"}}

    def inputs() -> str:
        return summary.fingerprint(run, choose_checkpoint(run), Dataset(world.data), options)

    seen = [inputs()]
    (beside / "report.html").write_text("which nothing is scored by")
    assert inputs() == seen[0]
    make_checkpoint(beside, tiny_model(3), 30, 1.0)
    seen.append(inputs())
    for directory in directories:
        write_json(directory / "config.json", {"vocab_size": 200})
        seen.append(inputs())
        os.utime(directory / "model.safetensors", (1, 1))
        seen.append(inputs())
    kernel.write_text("int two;")
    seen.append(inputs())
    assert len(set(seen)) == len(seen)


def test_changed_data_with_the_same_tokenizer_is_a_warning(copy: World) -> None:
    edit_manifest(copy.data, fingerprint="0" * 64)
    ((code, _, err),) = run_all(MODULE, [["tiny"]], copy.root)
    assert code == 0
    assert "have changed since run tiny was trained" in err
    assert summary_of(copy)["trained_on_this_data"] is False
    assert "are not the ones that the run was trained on" in (copy.run / "report.html").read_text(encoding="utf-8")


def edit_manifest(data: Path, **changes: Any) -> None:
    write_json(data / "manifest.json", {**read_json(data / "manifest.json"), **changes})


def test_mistakes_end_with_status_2_and_change_nothing(copy: World) -> None:
    """Each broken run is a copy of the evaluated one, so a summary that stays shows that nothing was written."""
    runs = {
        name: copy.run.parent / name for name in ("lost", "retokenized", "damaged", "empty", "diverged", "nameless")
    }
    for name, run in runs.items():
        shutil.copytree(copy.run, run)
        data = {"data": {"directory": f"data/{name}"}} if name != "nameless" else {"data": {}}
        write_json(run / "config.json", {**read_json(run / "config.json"), **data})
        if name != "lost":
            shutil.copytree(copy.data, copy.data.parent / name)
    edit_manifest(copy.data.parent / "retokenized", tokenizer={"file": "tokenizer.model", "sha256": "abcdef" * 6})
    splits = read_json(copy.data / "manifest.json")["splits"]
    edit_manifest(copy.data.parent / "empty", splits={**splits, "val": {**splits["val"], "shards": []}})
    for checkpoint in (runs["damaged"] / "checkpoints").iterdir():
        with open(checkpoint / "model.safetensors", "r+b") as file:
            file.truncate(100)
    model = tiny_model()
    torch.nn.init.constant_(model.embedding.weight, math.nan)
    make_checkpoint(runs["diverged"], model, 30, 1.0)
    mistakes = [
        (["nope"], "no run 'nope' (runs here: "),
        (["tiny", "--checkpoint", "15"], "no whole checkpoint '15' (steps there are: 10, 20)"),
        (["tiny", "--batch-tokens", "0"], "--batch-tokens 0 is too small"),
        (["tiny", "--ngram-order", "6"], "--ngram-order 6 is not one of 2, 3, 4, 5"),
        (["tiny", "--baseline", "nowhere", "--force"], "no run 'nowhere'"),
        (["tiny", "--presicion", "fp32"], "--precision"),
        (["lost"], "make it with: python -m data_pipeline CONFIG --out data/lost"),
        (["nameless"], "does not say what data it was trained on; name some with --data"),
        (["retokenized"], "another tokenizer (sha256 abcdefabcdef) than run retokenized was trained with"),
        (["damaged"], "no whole checkpoint 'best'"),
        (["empty"], "validation split in data/empty is empty"),
        (["diverged"], "not finite: its training has diverged"),
    ]
    results = run_all(MODULE, [arguments for arguments, _ in mistakes], copy.root)
    for (arguments, message), (code, out, err) in zip(mistakes, results, strict=True):
        assert (code, out) == (2, ""), arguments
        assert message in err
    assert all(read_json(run / "summary.json") == summary_of(copy) for run in runs.values())


@pytest.mark.parametrize("place", ["model", "untrained", "unigram", "trigram", "packed", "sliding"])
def test_a_baseline_never_stands_in_the_place_of_another_score(place: str) -> None:
    with pytest.raises(UserError, match=f"write runs/{place}"):
        EvaluationCommand(baseline=(f"runs/{place}", place))
    assert EvaluationCommand(baseline=(f"runs/{place}",)).baseline == (f"runs/{place}",)


def test_a_source_named_as_the_whole_split_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = make_world(tmp_path)
    monkeypatch.chdir(tmp_path)
    run = Run(world.run)
    assert open_dataset(run, choose_checkpoint(run), None).sources == list(SOURCES)
    edit_manifest(world.data, sources=[{"name": "wikipedia"}, {"name": "all"}])
    with pytest.raises(UserError, match="named 'all'"):
        open_dataset(run, choose_checkpoint(run), None)


def test_curves_skip_what_is_not_a_number() -> None:
    rows: list[dict[str, Any]] = [
        {"step": 1, "tokens": 64, "train/loss": float("nan"), "lr": 1.0},
        {"step": 2, "tokens": 128, "train/loss": 2.0, "val/loss": None},
        {"step": 3},
    ]
    for image in (plots.loss_curve(rows, {"unigram": 5.0}), plots.loss_curve([], {}), plots.learning_rate_curve(rows)):
        assert image.startswith(b"\x89PNG")
    assert plots.learning_rate_curve(rows) == plots.learning_rate_curve(rows)
