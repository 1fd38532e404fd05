"""Unigram and Kneser-Ney trigram: normalised, and equal to a plain implementation with dictionaries."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from common.errors import UserError
from data_pipeline.shards import Shard, TokenStream
from evaluation.baselines import Trigram, Unigram, modified_discounts, training_sample

VOCAB, EOS = 30, 0


def corpus(count: int = 3000, seed: int = 0) -> np.ndarray:
    """Skewed tokens with some memory, so that every count from 1 on occurs; the last ids never do."""
    rng = np.random.default_rng(seed)
    tokens = np.minimum(rng.zipf(1.5, count) - 1, VOCAB - 6)
    tokens[2::3] = (tokens[::3][: len(tokens[2::3])] * 7 + 3) % (VOCAB - 5)
    return tokens.astype(np.int64)


class PlainTrigram:
    """Chen & Goodman's formulas word for word."""

    def __init__(self, tokens: list[int]) -> None:
        padded = [EOS, EOS, *tokens]
        trigrams = Counter(zip(padded, padded[1:], padded[2:], strict=False))
        bigrams = Counter((b, c) for _, b, c in trigrams)  # different tokens before b c
        unigrams = Counter((c,) for _, c in bigrams)
        self.tables = [dict(unigrams), dict(bigrams), dict(trigrams)]
        self.discounts = [self.estimate(table) for table in self.tables]
        self.followers: list[dict[tuple[int, ...], list[int]]] = []
        for table in self.tables:
            behind = defaultdict(list)
            for ngram, count in table.items():
                behind[ngram[:-1]].append(count)
            self.followers.append(behind)

    @staticmethod
    def estimate(table: dict[tuple[int, ...], int]) -> list[float]:
        n = [sum(count == k for count in table.values()) for k in range(5)]
        discounts = [0.0, 0.5, 1.0, 1.5]
        for k in (1, 2, 3):
            if n[1] and n[2] and n[k]:
                value = k - (k + 1) * n[1] / (n[1] + 2 * n[2]) * n[k + 1] / n[k]
                discounts[k] = value if 0 < value < k else discounts[k]
        return discounts

    def probability(self, ngram: tuple[int, ...]) -> float:
        if not ngram:
            return 1 / VOCAB
        order = len(ngram) - 1
        shorter = self.probability(ngram[1:])
        behind = self.followers[order].get(ngram[:-1])
        if behind is None:
            return shorter
        discounts, total = self.discounts[order], sum(behind)
        count = self.tables[order].get(ngram, 0)
        left = sum(discounts[min(c, 3)] for c in behind) / total
        return max(count - discounts[min(count, 3)], 0) / total + left * shorter


@pytest.mark.parametrize("count", [1, 2, 7, 200, 3000])
def test_equals_the_plain_implementation(count: int) -> None:
    train, test = corpus(count), corpus(300, seed=1)
    plain = PlainTrigram(train.tolist())
    padded = [EOS, EOS, *test.tolist()]
    expected = [-math.log(plain.probability(ngram)) for ngram in zip(padded, padded[1:], padded[2:], strict=False)]
    found = Trigram.train(train, VOCAB, EOS).nll(test)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("count", [1, 50, 3000])
def test_is_a_distribution_after_every_context(count: int) -> None:
    train = corpus(count)
    model = Trigram.train(train, VOCAB, EOS)
    seen = set(zip(train[:-1].tolist(), train[1:].tolist(), strict=True))
    contexts = [(a, b) for a in range(VOCAB) for b in range(VOCAB)]
    assert any(c in seen for c in contexts) or count == 1
    assert any(c not in seen for c in contexts)
    for first, second in contexts:
        probabilities = model.distribution(first, second)
        assert probabilities.sum() == pytest.approx(1, abs=1e-12)
        assert probabilities.min() > 0


def test_distribution_is_what_streams_are_scored_with() -> None:
    model = Trigram.train(corpus(), VOCAB, EOS)
    assert model.nll(np.array([4]))[0] == pytest.approx(-math.log(model.distribution(EOS, EOS)[4]), rel=1e-6)
    assert model.nll(np.array([4, 5, 6]))[2] == pytest.approx(-math.log(model.distribution(4, 5)[6]), rel=1e-6)


def test_large_vocabularies_fit_the_keys() -> None:
    vocab = (1 << 21) - 1
    tokens = np.array([vocab - 1, vocab - 2, vocab - 1, vocab - 1, vocab - 2, vocab - 1, 3] * 3)
    model = Trigram.train(tokens, vocab, EOS)
    after = model.nll(np.array([vocab - 1, vocab - 2, vocab - 1]))
    assert after[2] < 0.5 < math.log(vocab) / 4
    with pytest.raises(UserError, match="2,097,151"):
        Trigram.train(tokens, vocab + 1, EOS)


def test_predicts_better_than_unigrams_what_has_memory() -> None:
    train, test = corpus(20_000), corpus(2_000, seed=1)
    assert Trigram.train(train, VOCAB, EOS).nll(test).mean() < Unigram.train(train, VOCAB).nll(test).mean() - 0.2


def test_unigram_adds_one() -> None:
    model = Unigram.train(np.array([1, 1, 2]), 4)
    np.testing.assert_allclose(np.exp(-model.nll(np.arange(4))), [1 / 7, 3 / 7, 2 / 7, 1 / 7], rtol=1e-6)


def test_discounts_follow_the_formula() -> None:
    counts = np.repeat([1, 2, 3, 4, 9], [40, 20, 12, 8, 5])
    ratio = 40 / (40 + 2 * 20)
    expected = [0, 1 - 2 * ratio * 20 / 40, 2 - 3 * ratio * 12 / 20, 3 - 4 * ratio * 8 / 12]
    np.testing.assert_allclose(modified_discounts(counts), expected)
    np.testing.assert_allclose(modified_discounts(np.array([5, 6])), [0, 0.5, 1, 1.5])


def test_no_training_tokens_is_a_user_error() -> None:
    with pytest.raises(UserError, match="training split is empty"):
        Trigram.train(np.empty(0, np.int64), VOCAB, EOS)


def test_training_sample_reaches_over_the_whole_stream(tmp_path: Path) -> None:
    path = tmp_path / "train_00000.bin"
    np.arange(10_000, dtype="<u2").tofile(path)
    stream = TokenStream([Shard(path, 10_000)], np.dtype("<u2"))
    np.testing.assert_array_equal(training_sample(stream, 10_000), np.arange(10_000))
    part = training_sample(stream, 1_000)
    assert len(part) == 1_000
    assert len(set(part.tolist())) == 1_000
    assert part[0] == 0
    assert part[-1] == 9_999
    assert len(training_sample(stream, 7)) == 7
