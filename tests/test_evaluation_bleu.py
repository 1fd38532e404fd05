"""BLEU by hand: equal to sacrebleu on thousands of made-up corpora; references the wrong way round are refused."""

from __future__ import annotations

import random
import sys

import numpy as np
import pytest

from common.errors import UserError
from evaluation.bleu import (
    SMOOTHING_VALUES,
    TOKENIZERS,
    BleuOptions,
    bleu_of,
    bleu_statistics,
    compare_bleu,
    corpus_bleu,
    corpus_chrf,
    tokenize_13a,
)

sacrebleu = pytest.importorskip("sacrebleu.metrics")

# Words, numbers, marks, entities, other scripts, combining and invisible characters, and every kind of line end.
PIECES = [
    *"the cat sat on mat Don't 3.5 1,000 a-b 5-6 € naïve 日本 é e\u0301 &amp; &lt;p&gt; <skipped> x. (y)".split(),
    *"¿qué? “q” 1. 𝔘 🙂 A \u200b ½ 2.x x,2".split(), "a\nb", "-\n", "\u00a0", "\u2028", "\x85", "",
]  # fmt: skip


def sentence(rng: random.Random) -> str:
    return " ".join(rng.choice(PIECES) for _ in range(rng.choice([0, 1, 2, 3, 5, 9])))


def corpus(rng: random.Random) -> tuple[list[str], list[list[str | None]]]:
    """One to four predictions, each with one to three references, of which some are missing and some match."""
    predictions = [sentence(rng) for _ in range(rng.randint(1, 4))]
    references = []
    for prediction in predictions:
        own: list[str | None] = [sentence(rng)]
        own += [rng.choice([sentence(rng), prediction, f"{prediction} {sentence(rng)}", None]) for _ in range(2)]
        references.append(rng.sample(own, 3)[: rng.randint(1, 3)])
        if all(reference is None for reference in references[-1]):
            references[-1][0] = sentence(rng)
    return predictions, references


def as_streams(references: list[list[str | None]]) -> list[list[str | None]]:
    return [
        [own[number] if number < len(own) else None for own in references]
        for number in range(max(map(len, references)))
    ]


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("smoothing", SMOOTHING_VALUES)
def test_equals_sacrebleu_on_made_up_corpora(tokenizer: str, smoothing: str) -> None:
    rng = random.Random(f"{tokenizer} {smoothing}")
    scored = 0
    for _ in range(250):
        predictions, references = corpus(rng)
        lowercase, effective = rng.random() < 0.5, rng.random() < 0.5
        value = rng.choice([None, 0.3]) if SMOOTHING_VALUES[smoothing] else None
        options = BleuOptions(tokenizer, lowercase, smoothing, value, effective)  # type: ignore[arg-type]
        theirs = sacrebleu.BLEU(lowercase, True, tokenizer, smoothing, value, effective_order=effective)
        expected = theirs.corpus_score(predictions, as_streams(references))
        found = corpus_bleu(predictions, references, options)
        assert found.score == pytest.approx(expected.score, abs=1e-9), (predictions, references, options)
        assert found.brevity_penalty == pytest.approx(expected.bp, abs=1e-12)
        assert (found.prediction_length, found.reference_length) == (expected.sys_len, expected.ref_len)
        assert str(theirs.get_signature()).startswith(found.signature)
        scored += expected.score > 0
    assert scored > 50, "the corpora should match somewhere"


def test_sentence_alone_needs_the_effective_order() -> None:
    short = ["the cat"], [["the cat"]]
    assert corpus_bleu(*short).score == 0
    assert corpus_bleu(*short, BleuOptions(effective_order=True)).score == pytest.approx(100)


def test_corpus_is_not_the_mean_of_sentences() -> None:
    predictions, references = ["a b c d e", "a x c d e f g h"], [["a b c d e"], ["a b c d e f g z"]]
    alone = [corpus_bleu([one], [own]).score for one, own in zip(predictions, references, strict=True)]
    together = corpus_bleu(predictions, references)
    assert together.score != pytest.approx(sum(alone) / 2, abs=1)
    # Matched 5 + 6, 4 + 4, 3 + 3, 2 + 2 of 5 + 8, 4 + 7, 3 + 6, 2 + 5.
    assert together.precisions == pytest.approx((1100 / 13, 800 / 11, 600 / 9, 400 / 7))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Hello, world! (3.5 - 1,000)", ["Hello", ",", "world", "!", "(", "3.5", "-", "1,000", ")"]),
        ("It's 5-6 &quot;x&quot;.", ["It's", "5", "-", "6", '"', "x", '"', "."]),
        ("hyphen-\nated <skipped>line\nbreak", ["hyphenated", "line", "break"]),
        ("", []),
    ],
)
def test_13a_words(text: str, words: list[str]) -> None:
    assert tokenize_13a(text) == words


def test_order_of_sentences_and_of_references_does_not_matter() -> None:
    rng = random.Random(1)
    predictions, references = corpus(rng)
    turned = corpus_bleu(predictions[::-1], [own[::-1] for own in references[::-1]])
    assert turned.score == pytest.approx(corpus_bleu(predictions, references).score, abs=1e-12)


@pytest.mark.parametrize(
    ("predictions", "references", "message"),
    [
        (["a", "b", "c"], [["a", "b", "c"]], r"one list a reference; turn them with list\(zip"),
        (["a", "b", "c"], [["a", "b", "c"], ["a", "b", None]], "turn them"),
        (["a", "b"], [["a"]], "2 predictions need as many lists of references"),
        (["a", "b"], ["a", "b"], r"prediction 0 are one text, not a list; write \[text\]"),
        (["a", "b"], [["a"], [None]], "prediction 1 has no reference"),
        (["a"], [[3]], "not all texts"),
        ([None], [["a"]], "prediction 0 is no text but NoneType"),
        ([], [], "nothing to score"),
    ],
)
def test_references_that_do_not_fit_are_refused(predictions: list, references: list, message: str) -> None:
    for score in (corpus_bleu, corpus_chrf):
        with pytest.raises(UserError, match=message):
            score(predictions, references)


def test_unknown_options_are_refused() -> None:
    with pytest.raises(UserError, match="no tokenizer 'zh'; choose one of 13a"):
        BleuOptions(tokenizer="zh")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no smoothing 'add'; choose one of none, floor"):
        BleuOptions(smoothing="add")  # type: ignore[arg-type]


def test_chrf_is_sacrebleus() -> None:
    rng = random.Random(2)
    for _ in range(100):
        predictions, references = corpus(rng)
        score, signature = corpus_chrf(predictions, references)
        theirs = sacrebleu.CHRF(word_order=2).corpus_score(predictions, as_streams(references))
        assert score == theirs.score
        assert "nw:2" in signature


def test_intervals_and_comparisons() -> None:
    rng = random.Random(3)
    words = "the cat sat on a mat by an old door".split()
    references = [[" ".join(rng.choices(words, k=12))] for _ in range(80)]

    def noisy(share: float) -> list[str]:
        return [" ".join("x" if rng.random() < share else word for word in own[0].split()) for own in references]

    good, bad = noisy(0.1), noisy(0.4)
    found = corpus_bleu(good, references, resamples=500, seed=1)
    assert found.interval is not None
    assert found.interval.low < found.score < found.interval.high
    assert found.interval == corpus_bleu(good, references, resamples=500, seed=1).interval
    assert found.interval != corpus_bleu(good, references, resamples=500, seed=2).interval
    theirs = sacrebleu.BLEU().corpus_score(good, as_streams(references), n_bootstrap=500)
    assert (found.interval.high - found.interval.low) / 2 == pytest.approx(theirs._ci, rel=0.2)
    better = compare_bleu(good, bad, references)
    assert better.difference > 20 and better.interval.low > 0 and better.p < 0.01
    same = compare_bleu(good, good, references)
    assert (same.difference, same.interval.low, same.p) == (0, 0, pytest.approx(1 / 1001))
    close = compare_bleu(good, noisy(0.1), references)
    assert close.p > 0.05


def test_bleu_of_many_sums_at_once_equals_each() -> None:
    rng = random.Random(4)
    options = BleuOptions(smoothing="add-k")
    rows = [bleu_statistics(*corpus(rng), options).sum(0) for _ in range(50)]
    together = bleu_of(np.array(rows), options)
    assert together.tolist() == [float(bleu_of(row, options)) for row in rows]


def test_a_missing_package_is_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    assert corpus_bleu(["a b c d"], [["a b c d"]]).score == pytest.approx(100)
    with pytest.raises(UserError, match=r"pip install -c constraints.txt -e '\.\[metrics\]'"):
        corpus_chrf(["a"], [["a"]])
