"""The benchmark of generation: engines write the same from the same weights, and are asked through their processes."""

from __future__ import annotations

import importlib.util
import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from inference_fixtures import make_world

from benchmarks import inference, inference_worker
from benchmarks.inference import VARIANTS, BenchmarkCommand, Variant, Weights, available
from benchmarks.inference_weights import fingerprint, random_run
from benchmarks.inference_worker import PACKAGES, PEERS, Task
from benchmarks.our_engine import OurEngine, Speculation
from benchmarks.process import Worker
from common.errors import UserError
from common.files import read_json
from model.presets import preset

PROJECT = Path(__file__).resolve().parent.parent
SHAPE = replace(
    preset("mini-llama"), vocab_size=512, context_length=96, layers=2, width=64, heads=2, kv_heads=1, mlp_width=96
)
SHAPE = replace(SHAPE, init_std=None)
COMMAND = BenchmarkCommand(first_tokens=32, prompt_tokens=8, new_tokens=8, threads=(1,), rounds=1)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Weights:
    folder = tmp_path_factory.mktemp("weights")
    return Weights(random_run(folder, SHAPE), SHAPE, folder / "exports")


def exact(engine: str) -> Variant:
    return next(variant for variant in VARIANTS if variant.engine == engine and variant.mode in inference.EXACT)


def asked(task: Task, lines: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Any) -> list[dict[str, Any]]:
    """What a worker answers to `lines`, in this process."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
    capsys.readouterr()
    inference_worker.serve(task)
    return [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]


@pytest.mark.parametrize("engine", ["transformers", "CTranslate2"])
def test_another_engine_writes_the_same(
    engine: str, weights: Weights, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    pytest.importorskip(PACKAGES[engine])
    ours, theirs = (weights.task(COMMAND, exact(name), 1) for name in ("ours", engine))
    (expected,) = asked(ours, ["greedy"], monkeypatch, capsys)
    (found, step) = asked(theirs, ["greedy", "step"], monkeypatch, capsys)
    assert found["ids"] == expected["ids"] and len(set(found["ids"])) > 4
    assert 0.9 < found["weight bytes"] / expected["weight bytes"] < 1.2
    assert step["tokens/s"] != 0 < step["first token ms"]  # of so little, the former may be anything


def test_llama_cpp_writes_the_same(weights: Weights, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    pytest.importorskip("xllamacpp")
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    (expected,) = asked(weights.task(COMMAND, exact("ours"), 1), ["greedy"], monkeypatch, capsys)
    worker = Worker("benchmarks.inference_worker", weights.task(COMMAND, exact("llama.cpp"), 1).to_json())
    assert worker.ask("greedy")["ids"] == expected["ids"]
    assert worker()["first token ms"] > 0
    worker.close()
    assert worker.process.returncode == 0


@pytest.mark.parametrize("mode", ["fp32", "int8"])
def test_a_crowd_and_a_newcomer(mode: str, weights: Weights, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    variant = Variant("ours", mode, 4)
    crowd, greedy = asked(weights.task(COMMAND, variant, 1), ["crowd", "greedy"], monkeypatch, capsys)
    assert all(value > 0 for value in crowd.values())
    assert crowd["times one"] == pytest.approx(crowd["16 texts, tokens/s"] / crowd["one text, tokens/s"])
    assert "newcomer with 95 tokens, first token ms" in crowd
    assert len(greedy["ids"]) == 8  # the crowd has gone home


def test_weights_are_exported_once_and_known_by_their_content(weights: Weights, tmp_path: Path) -> None:
    first = weights.task(COMMAND, exact("transformers"), 1).weights
    before = (Path(first) / "model.safetensors").stat().st_mtime_ns
    assert weights.task(COMMAND, exact("transformers"), 2).weights == first
    assert (Path(first) / "model.safetensors").stat().st_mtime_ns == before
    again, other = random_run(tmp_path, SHAPE), random_run(tmp_path, replace(SHAPE, layers=1))
    assert fingerprint(again) == fingerprint(weights.run) != fingerprint(other)
    with pytest.raises(UserError, match="between 258 and"):
        random_run(tmp_path, replace(SHAPE, vocab_size=200))


def test_engines_that_are_missing_or_cannot_are_left_out(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "ctranslate2" else name)
    assert {variant.engine for variant in available(SHAPE)} == {"ours", *PEERS} - {"CTranslate2"}
    assert "without CTranslate2, which is not installed: pip install" in capsys.readouterr().out
    assert {variant.engine for variant in available(replace(SHAPE, activation="relu2"))} == {"ours"}
    assert "do not have this architecture" in capsys.readouterr().out


def test_speculation_and_perplexity_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On validation texts of each source; what proposals change is the number of passes."""
    world = make_world(tmp_path, context_length=64)
    monkeypatch.chdir(tmp_path)
    task = Task("ours", "fp32", str(world.run), 1, 400, 0, prompt=4, new=6, sources=("prose", "code"))
    data = read_json(world.data / "manifest.json")
    task = replace(task, sources=tuple(source["name"] for source in data["sources"]))
    plain, itself = Speculation(task).step(), Speculation(replace(task, draft=str(world.run))).step()
    lookup = Speculation(replace(task, draft="lookup")).step()
    for source in task.sources:
        assert plain[f"{source}: tokens a pass"] == 1 and f"{source}: accepted %" not in plain
        assert itself[f"{source}: tokens a pass"] > 2 and itself[f"{source}: accepted %"] == 100
        assert lookup[f"{source}: tokens a pass"] >= 1
    costs = [OurEngine(replace(task, mode=mode)).perplexity()["perplexity"] for mode in ("fp32", "int8")]
    assert costs[0] > 1 and costs[1] == pytest.approx(costs[0], rel=0.05)
    with pytest.raises(UserError, match="has no source 'poems'"):
        Speculation(replace(task, sources=("poems",)))


@pytest.mark.slow
def test_the_whole_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    run = random_run(tmp_path, SHAPE)
    flags = (
        "--threads 1 --rounds 1 --first-tokens 32 --prompt-tokens 8 --new-tokens 8 --parts speed concurrency".split()
    )
    inference.main(["--run", str(run.path), *flags, "--json", str(tmp_path / "found.json")])
    found = read_json(tmp_path / "found.json")["1"]
    assert len(found["equal"]) == 3 and all(found["equal"].values())
    assert set(found["speed"]) == {variant.name for variant in VARIANTS}
    assert all({"tokens/s", "% of bandwidth"} <= set(row) for row in found["speed"].values())
    assert set(found["ratios"]["of CTranslate2 int8"]) == {f"ours {mode}" for mode in ("fp32", "bf16", "int8", "int4")}
    assert len(found["concurrency"]) == 4
    assert "writes the same 8 ids as ours fp32" in capsys.readouterr().out
