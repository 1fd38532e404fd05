"""Documents get their tables and pictures from the files of runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from inference_fixtures import ROOT, World, make_run, make_world, run_all
from PIL import Image

from common.files import read_json, write_json
from evaluation.results import KINDS, fill, main

SYSTEM = {
    "bleu": 14.83,
    "low": 14.0,
    "high": 15.6,
    "p": None,
    "all_references": 18.9,
    "chrf": 39.2,
    "length_ratio": 1.0,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Two evaluated runs, the first of which has translated, and a scaling law."""
    world = make_world(tmp_path_factory.mktemp("results"))
    fingerprint = read_json(world.data / "manifest.json")["fingerprint"]
    make_run(world.run.parent / "wider", fingerprint=fingerprint, width=64, heads=4)
    for name in ("tiny", "wider"):
        ((code, _, err),) = run_all("evaluation.__main__", [[name]], world.root)
        assert code == 0, err
    systems = {"word by word": SYSTEM, "model": {**SYSTEM, "bleu": 21.0, "p": 0.0004}}
    found = {"systems": systems, "verses": 773, "signatures": {"BLEU": "nrefs:1|case:mixed"}}
    write_json(world.run / "translation.json", found)
    run = {"name": "small", "parameters": 1e6, "tokens": 2e6, "loss": 4.5, "fitted": 4.4, "left_out_error": 0.012}
    asked = {**run, "name": "large", "predicted": 3.3, "interval": [3.1, 3.5], "loss": 3.4, "within": True}
    law = {"law": "parameters-tokens", "constants": {"E": 1.7}, "runs": [run], "predictions": [asked]}
    directory = world.run.parent / "scaling"
    directory.mkdir()
    write_json(directory / "scaling.json", law)
    Image.new("RGB", (2, 2)).save(directory / "scaling.png")
    return world


@pytest.fixture(autouse=True)
def there(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(world.root)


def part(kind: str, places: str, old: str = "old") -> str:
    return f"before\n<!-- results: {kind} {places} -->\n{old}\n<!-- end -->\nbehind\n"


def drawn(kind: str, places: str, document: str = "docs/results.md") -> str:
    """What stands between the comments afterwards."""
    text, kept = fill(part(kind, places), Path(document))
    assert kept == [] and text.startswith("before\n<!-- results: ") and text.endswith("\n\n<!-- end -->\nbehind\n")
    assert fill(text, Path(document)) == (text, [])  # drawn again, it is the same
    return text.partition("-->\n\n")[2].partition("\n\n<!-- end -->")[0]


def test_losses_are_those_of_the_summary(world: World) -> None:
    found, text = read_json(world.run / "summary.json"), drawn("losses", "runs/tiny")
    model = next(line for line in text.splitlines() if line.startswith("| tiny, "))
    assert f"| {found['val_loss']:.3f} | {found['val_perplexity']:,.1f} " in re.sub(r" +", " ", model)
    for name, score in found["baselines"].items():
        line = next(line for line in text.splitlines() if line.startswith(f"| {name} "))
        assert f"{score['perplexity']:,.1f}" in line and f"{score['bits_per_byte']:.3f}" in line
    assert f"{found['val_tokens']:,} held-out tokens" in text and "`python -m evaluation runs/tiny`" in text


def test_sources_stand_beside_the_best_counted_model(world: World) -> None:
    found, text = read_json(world.run / "summary.json"), drawn("sources", "runs/tiny")
    best = min((name for name in found["baselines"] if "gram" in name and name != "unigram"),
               key=lambda name: found["baselines"][name]["loss"])  # fmt: skip
    assert f"{best}: perplexity" in text
    for source, score in found["per_source"].items():
        line = next(line for line in text.splitlines() if line.startswith(f"| {source} "))
        counted = found["baselines"][best]["per_source"][source]
        for expected in (f"{score['tokens']:,}", f"{score['perplexity']:,.1f}", f"{counted['perplexity']:,.1f}"):
            assert f" {expected} " in line
        assert "chance" in line


def test_runs_stand_with_the_best_first(world: World) -> None:
    losses = {name: read_json(world.run.parent / name / "summary.json")["val_loss"] for name in ("tiny", "wider")}
    best, other = sorted(losses, key=lambda name: losses[name])
    text = drawn("runs", "runs/tiny runs/wider")
    assert text.index(f"| {best} ") < text.index(f"| {other} ") and f"{best} is ahead of {other} by " in text


def test_what_a_run_writes_is_measured_and_shown(world: World) -> None:
    summary = read_json(world.run / "summary.json")
    part = {"diversity": {"distinct_2": 0.5}}
    write_json(world.run / "summary.json", {**summary, "generation": {"model": part, "human": part}})
    try:
        assert "| distinct-2 | 0.5   | 0.5   |" in drawn("writing", "runs/tiny")
    finally:
        write_json(world.run / "summary.json", summary)
    sample = {"step": 20, "tokens": 9, "prompt": "A ```", "text": "``` <!-- end -->\n"}
    shown = world.run / "samples.jsonl"
    old = shown.read_text()
    try:
        shown.write_text(json.dumps(sample))
        text = drawn("texts", "runs/tiny")
    finally:
        shown.write_text(old)
    assert text.splitlines()[-3:] == ["```````text", "A `````` <! -- end -->", "```````"]  # longer than any within


def test_pictures_are_copied_to_where_documents_find_them(world: World) -> None:
    assert drawn("curve", "runs/tiny") == "![Loss of tiny](images/tiny_loss.png)"
    assert drawn("curve", "runs/tiny", "README.md") == "![Loss of tiny](docs/images/tiny_loss.png)"
    assert Path("docs/images/tiny_loss.png").read_bytes() == (world.run / "loss.png").read_bytes()


def test_translations_and_a_law_are_shown() -> None:
    text = drawn("translation", "runs/tiny")
    assert "14.8 (14.0 to 15.6)" in text and "below 0.001" in text and "773 verses; sacrebleu `nrefs:1" in text
    text = drawn("scaling", "runs/scaling")
    assert "![Loss over compute, and the law](images/scaling.png)" in text and "+1.20 %" in text
    assert "3.300 (3.100 to 3.500)" in text and "3.400, within" in text


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_where_a_run_is_not_there_the_text_stays(kind: str) -> None:
    text = part(kind, "runs/nowhere")
    found, kept = fill(text, Path("README.md"))
    assert found == text and len(kept) == 1 and kept[0].startswith(f"{kind} runs/nowhere: ")


def test_what_was_not_measured_is_named() -> None:
    for kind, message in (("translation", "has not translated"), ("losses", "not evaluated")):
        bare = make_run(Path(f"runs/bare_{kind}"))
        assert message in fill(part(kind, str(bare)), Path("README.md"))[1][0]
    assert "one run, not 2" in fill(part("curve", "runs/tiny runs/wider"), Path("README.md"))[1][0]


def test_the_command_writes_what_changed(capsys: pytest.CaptureFixture[str]) -> None:
    document = Path("page.md")
    document.write_text(part("losses", "runs/tiny") + part("losses", "runs/nowhere", "as it stood"))
    main(["page.md"])
    out, err = capsys.readouterr()
    assert "page.md: written anew" in out and "losses runs/nowhere: " in err
    assert "| tiny, " in document.read_text() and "as it stood" in document.read_text()
    main(["page.md"])
    assert "page.md: as it was" in capsys.readouterr().out


def test_a_document_that_asks_for_nonsense_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    (Path("bad.md")).write_text(part("lossess", "runs/tiny"))
    ((code, _, err),) = run_all("evaluation.results", [["bad.md"]], Path.cwd())
    assert code == 2 and "bad.md asks for 'lossess'" in err
    endless = part("losses", "runs/tiny").replace("<!-- end -->", "") + part("curve", "runs/tiny")
    Path("bad.md").write_text(endless)
    ((code, _, err),) = run_all("evaluation.results", [["bad.md"]], Path.cwd())
    assert code == 2 and "needs a line <!-- end -->" in err and Path("bad.md").read_text() == endless
    ((code, _, err),) = run_all("evaluation.results", [["none.md"]], Path.cwd())
    assert code == 2 and "none.md cannot be read" in err


@pytest.mark.parametrize("document", ["README.md", "docs/results.md"])
def test_our_documents_ask_for_what_there_is(document: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    text = (ROOT / document).read_text()
    asked = re.findall(r"<!-- results: (\w+) ", text)
    assert asked and set(asked) <= set(KINDS)
    assert text.count("<!-- results: ") == len(asked) == text.count("<!-- end -->")
