"""Generations beside human text: as many tokens of both, from the beginnings of validation documents, and seeded."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from forks import run_forks
from inference_fixtures import World, documents, make_world, run_all

from common.errors import UserError
from common.files import read_json
from common.runs import Run
from data_pipeline.shards import Dataset
from evaluation.generations import (
    GenerationOptions,
    choose_pieces,
    continue_prompts,
    evaluate_generations,
)
from evaluation.report_metrics import generation_rows
from inference import LoadedRun, load_run

OPTIONS = GenerationOptions(samples=6, prompt_tokens=5, tokens=12, seed=3)
FLAGS = ["--generation.samples", "6", "--generation.prompt-tokens", "5", "--generation.tokens", "12"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def loaded(world: World) -> LoadedRun:
    return load_run(Run(world.run), device="cpu")


def test_prompts_are_beginnings_of_different_validation_documents(world: World, loaded: LoadedRun) -> None:
    stream = Dataset(world.data).split("val")
    pieces = choose_pieces(stream, loaded.tokenizer, OPTIONS)
    texts = [text for number, (_, text) in enumerate(documents()) if number // 2 % 10 == 0]
    begun = [[text for text in texts if text.startswith(loaded.tokenizer.decode(piece))] for piece in pieces]
    assert len(pieces) == 6 and all(len(piece) == 17 for piece in pieces)
    assert all(begun) and len({found[0] for found in begun}) == 6
    assert pieces == choose_pieces(stream, loaded.tokenizer, OPTIONS)
    assert pieces != choose_pieces(stream, loaded.tokenizer, GenerationOptions(samples=6, prompt_tokens=5, tokens=12))
    assert not choose_pieces(stream, loaded.tokenizer, GenerationOptions(tokens=10_000))


def test_human_text_is_as_long_as_the_models(world: World, loaded: LoadedRun) -> None:
    options = GenerationOptions(samples=6, per_prompt=2, prompt_tokens=5, tokens=12)
    texts = continue_prompts(loaded, Dataset(world.data).split("val"), options)
    assert len(texts) == 6
    for one in texts:
        assert len(one.model) == 2 and len(one.human.ids) == len(one.model[0].ids) <= 12
        assert one.human.text == loaded.tokenizer.decode(one.human.ids)
        assert one.model[0] != one.model[1]


def test_measures_of_both_sides_are_comparable(world: World, loaded: LoadedRun) -> None:
    found = evaluate_generations(loaded, Dataset(world.data), OPTIONS)
    assert found is not None
    summary, texts = found
    model, human = summary["model"], summary["human"]
    assert model["tokens"] == human["tokens"] == sum(len(one.human.ids) for one in texts)
    assert model["diversity"]["words"] == human["diversity"]["words"] > 0
    assert summary["protocol"]["samples"] == 6 and summary["protocol"]["seed"] == 3
    assert 0 <= summary["ended"] <= 1
    for side in (model, human):
        assert side["toxicity"]["scorer"] == "lexicon en+es+fr" and side["toxicity"]["texts"] == 6
        assert side["memorisation"]["training_tokens"] == len(Dataset(world.data).split("train"))
        assert side["self_bleu"]["texts"] <= 6
    # Random weights write what nobody wrote; what people wrote has words in common with what they wrote before.
    assert human["memorisation"]["longest_mean"] > model["memorisation"]["longest_mean"] + 1
    names = [row["name"] for row in generation_rows(summary)]
    assert "seq-rep-4" in names and "longest run of training text, most" in names
    again = evaluate_generations(loaded, Dataset(world.data), OPTIONS)
    assert again is not None and json.dumps(again[0]) == json.dumps(summary)


def test_nothing_is_generated_where_nothing_is_asked(world: World, loaded: LoadedRun) -> None:
    dataset = Dataset(world.data)
    assert evaluate_generations(loaded, dataset, GenerationOptions(samples=0)) is None
    assert evaluate_generations(loaded, dataset, GenerationOptions(tokens=10_000)) is None


@pytest.mark.parametrize("wrong", [{"samples": -1}, {"tokens": 0}, {"per_prompt": 0}])
def test_options_out_of_range_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UserError, match=rf"--generation\.{next(iter(wrong)).replace('_', '-')} .* is too small"):
        GenerationOptions(**wrong)


def test_the_command_writes_them_and_two_processes_find_the_same(world: World) -> None:
    arguments = ["tiny", "--document-context", "--stride", "8", "--batch-tokens", "100", *FLAGS]
    (alone,) = run_all("evaluation.__main__", [arguments], world.root)
    assert alone[0] == 0, alone[2]
    summary = read_json(world.run / "summary.json")
    assert "6 continuations of at most 12 tokens" in alone[1] and "distinct-2" in alone[1]
    rows = [json.loads(line) for line in (world.run / "generations.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 6 and set(rows[0]) == {"prompt", "human", "model"}
    assert summary["generation"]["model"]["tokens"] > 0
    assert summary["sliding_context"]["loss"] != summary["val_loss"]
    assert "of which the last 8 are scored" in summary["context_policies"]["sliding"]
    assert summary["tokenizer"]["bytes_per_token"] == summary["val_bytes"] / summary["val_tokens"]
    assert summary["val_word_perplexity"] > summary["val_perplexity"]

    together = run_forks(
        ["-m", "evaluation", *arguments, "--force"], world.root, dict(os.environ) | {"OMP_NUM_THREADS": "1"}, 2
    )
    assert together.returncode == 0, together.stderr
    assert read_json(world.run / "summary.json") == summary
    assert together.stdout.count("report   ") == 1, "only one process speaks"


def test_mistakes_end_with_status_2(world: World, tmp_path: Path) -> None:
    mistakes = [
        (["tiny", "--stride", "33"], "--stride 33 is out of range: it must be from 1 to 32"),
        (["tiny", "--stride", "0"], "--stride 0 is out of range"),
        (["tiny", "--generation.toxicity", "api"], "no toxicity scorer 'api'"),
        (["tiny", "--generation.samples", "-1"], "--generation.samples -1 is too small"),
    ]
    results = run_all("evaluation.__main__", [arguments for arguments, _ in mistakes], world.root)
    for (arguments, message), (code, _, err) in zip(mistakes, results, strict=True):
        assert code == 2 and message in err, (arguments, err)


def test_a_budget_is_a_budget(world: World, loaded: LoadedRun) -> None:
    (piece,) = choose_pieces(
        Dataset(world.data).split("val"), loaded.tokenizer, GenerationOptions(samples=1, prompt_tokens=1, tokens=1)
    )
    assert len(piece) == 2 and np.all(np.array(piece) != loaded.tokenizer.eos_id)
