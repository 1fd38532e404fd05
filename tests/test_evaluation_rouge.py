"""ROUGE by hand: equal to rouge-score on thousands of made-up pairs, and of use beyond English."""

from __future__ import annotations

import random
import sys

import pytest

from common.errors import UserError
from evaluation.rouge import KINDS, RougeOptions, _cutter, corpus_rouge, rouge

rouge_scorer = pytest.importorskip("rouge_score.rouge_scorer")

WORDS = "the cats cat sat sitting on mat mats running runs naïve 日本 é 42 x-y don't a b c".split()


def text(rng: random.Random) -> str:
    words = rng.choice([0, 1, 2, 5, 9, 20])
    return "".join(rng.choice(WORDS) + rng.choice([" ", " ", " ", "\n", ". "]) for _ in range(words))


@pytest.mark.parametrize("stemmer", [False, True])
def test_equals_rouge_score_on_made_up_pairs(stemmer: bool) -> None:
    rng = random.Random(stemmer)
    scorer = rouge_scorer.RougeScorer(list(KINDS), use_stemmer=stemmer)
    options = RougeOptions(stemmer=stemmer, sentences="newline")
    for _ in range(2000):
        prediction, references = text(rng), [text(rng) for _ in range(rng.randint(1, 3))]
        expected, found = scorer.score_multi(references, prediction), rouge(prediction, references, options)
        for kind in KINDS:
            assert (found[kind].precision, found[kind].recall, found[kind].f) == pytest.approx(
                tuple(expected[kind]), abs=1e-12
            ), (kind, prediction, references)


def test_lsum_splits_sentences_where_rouge_score_wants_line_breaks() -> None:
    prediction, reference = "The dog ran. The cat sat.", "The cat sat. The dog ran."
    assert rouge(prediction, [reference])["rougeLsum"].f == 1 > rouge(prediction, [reference])["rougeL"].f
    by_lines = rouge(prediction, [reference], RougeOptions(sentences="newline"))
    assert by_lines["rougeLsum"] == by_lines["rougeL"]
    scorer = rouge_scorer.RougeScorer(["rougeLsum"])
    assert scorer.score(reference.replace(". ", ".\n"), prediction.replace(". ", ".\n"))["rougeLsum"].fmeasure == 1


@pytest.mark.parametrize("same", ["Мама мыла раму", "naïve café", "猫 犬"])
def test_other_scripts_need_the_other_tokenizer(same: str) -> None:
    assert rouge(same, [same], RougeOptions("unicode"))["rouge1"].f == 1
    assert rouge(same, ["nave caf"])["rouge1"].f < 1 and rouge("café", ["cafe"])["rouge1"].f == 0


def test_stems() -> None:
    pair = "The cats were running", ["the cat runs"]
    assert rouge(*pair)["rouge1"].f < rouge(*pair, RougeOptions(stemmer=True))["rouge1"].f


def test_mean_and_its_interval_are_the_same_every_time() -> None:
    rng = random.Random(5)
    predictions, references = [text(rng) for _ in range(60)], [[text(rng)] for _ in range(60)]
    found = corpus_rouge(predictions, references, resamples=300)
    assert found == corpus_rouge(predictions, references, resamples=300)
    mean = sum(rouge(*pair)["rougeL"].f for pair in zip(predictions, references, strict=True)) / 60
    assert found["rougeL"].f == pytest.approx(mean, abs=1e-12)
    interval = found["rougeL"].interval
    assert interval is not None and interval.low < mean < interval.high
    assert corpus_rouge(predictions, references)["rougeL"].interval is None


def test_empty_texts_score_nothing() -> None:
    for prediction, reference in (("", "a b"), ("a b", ""), ("", ""), ("...", "!?")):
        assert all(score.f == 0 for score in rouge(prediction, [reference]).values())


def test_a_signature_tells_options_apart() -> None:
    assert RougeOptions().signature == "tok:ascii|stem:no|sents:split"
    assert RougeOptions(stemmer=True, sentences="newline").signature == "tok:ascii|stem:porter|sents:newline"


def test_mistakes_are_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no tokenizer 'spanish'"):
        RougeOptions(tokenizer="spanish")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="made for English"):
        RougeOptions(tokenizer="unicode", stemmer=True)
    with pytest.raises(UserError, match="turn them with"):
        corpus_rouge(["a", "b"], [["a", "b"]])
    _cutter.cache_clear()
    monkeypatch.setitem(sys.modules, "rouge_score.tokenizers", None)
    with pytest.raises(UserError, match=r"pip install -c constraints.txt -e '\.\[metrics\]'"):
        rouge("a", ["a"])
    assert rouge("a", ["a"], RougeOptions("unicode"))["rouge1"].f == 1
