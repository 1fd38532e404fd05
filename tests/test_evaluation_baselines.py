"""Unigram and Kneser-Ney models: normalised, and equal to a plain implementation with dictionaries."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest

from common.errors import UserError
from data_pipeline.shards import Shard, TokenStream
from evaluation.baselines import best_ngram, counted_nll, training_sample, unigram_nll
from evaluation.kneser_ney import modified_discounts, ngram_nll

VOCAB, EOS = 30, 0


def corpus(count: int = 3000, seed: int = 0) -> np.ndarray:
    """Skewed tokens with some memory, so that every count from 1 on occurs; the last ids never do."""
    rng = np.random.default_rng(seed)
    tokens = np.minimum(rng.zipf(1.5, count) - 1, VOCAB - 6)
    tokens[2::3] = (tokens[::3][: len(tokens[2::3])] * 7 + 3) % (VOCAB - 5)
    return tokens.astype(np.int64)


class PlainModel:
    """Chen & Goodman's formulas word for word, over a ring of tokens."""

    def __init__(self, tokens: list[int], order: int) -> None:
        ring = [tokens[number % len(tokens)] for number in range(1 - order, len(tokens))]
        highest = Counter(tuple(ring[start : start + order]) for start in range(len(tokens)))
        self.tables: list[dict[tuple[int, ...], int]] = [dict(highest)]
        while len(self.tables) < order:
            longer = set(self.tables[0])
            self.tables.insert(0, dict(Counter(ngram[1:] for ngram in longer)))  # different tokens before it
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
def test_equals_the_plain_implementation_at_every_order(count: int) -> None:
    train, test = corpus(count), corpus(300, seed=1)
    found = ngram_nll(train, test, VOCAB, EOS, 5)
    assert list(found) == [2, 3, 4, 5]
    for order, nll in found.items():
        plain = PlainModel(train.tolist(), order)
        padded = [EOS] * (order - 1) + test.tolist()
        expected = [-math.log(plain.probability(tuple(padded[i : i + order]))) for i in range(len(test))]
        assert nll.dtype == np.float32
        np.testing.assert_allclose(nll, expected, rtol=1e-5)


def test_a_lower_highest_order_changes_nothing_below() -> None:
    train, test = corpus(), corpus(300, seed=1)
    found, lower = ngram_nll(train, test, VOCAB, EOS, 5), ngram_nll(train, test, VOCAB, EOS, 3)
    for order in (2, 3):
        np.testing.assert_array_equal(found[order], lower[order])


@pytest.mark.parametrize("count", [1, 50, 3000])
def test_is_a_distribution_after_every_context(count: int) -> None:
    """Contexts seen in whole, in part and not at all; a stream holds each before every token of the vocabulary."""
    train, rng = corpus(count), np.random.default_rng(2)
    seen = [np.take(train, range(start, start + 4), mode="wrap") for start in rng.integers(0, count, 40)]
    mixed = [np.concatenate([rng.integers(0, VOCAB, 2), context[2:]]) for context in seen]
    contexts = np.array([*seen, *mixed, *rng.integers(0, VOCAB, (40, 4))])
    stream = np.concatenate([np.repeat(contexts, VOCAB, axis=0), np.tile(np.arange(VOCAB), len(contexts))[:, None]], 1)
    for order, nll in ngram_nll(train, stream.reshape(-1), VOCAB, EOS, 5).items():
        last = np.exp(-nll.reshape(stream.shape)[:, -1].astype(np.float64)).reshape(len(contexts), VOCAB)
        np.testing.assert_allclose(last.sum(axis=1), 1, rtol=1e-6, err_msg=f"order {order}")
        assert last.min() > 0


def test_a_stream_begins_after_end_of_text() -> None:
    train, test = corpus(), corpus(20, seed=1)
    alone = ngram_nll(train, test, VOCAB, EOS, 5)
    behind = ngram_nll(train, np.concatenate([[EOS] * 4, test]), VOCAB, EOS, 5)
    for order, nll in alone.items():
        np.testing.assert_array_equal(nll, behind[order][4:])


def test_large_vocabularies_fit_the_keys() -> None:
    vocab = 1 << 31
    tokens = np.array([vocab - 1, vocab - 2, vocab - 1, vocab - 1, vocab - 2, vocab - 1, 3] * 3)
    after = ngram_nll(tokens, np.array([vocab - 1, vocab - 2, vocab - 1]), vocab, EOS, 5)
    assert after[3][2] < 0.5 < math.log(vocab) / 4


def test_more_context_predicts_better_what_has_memory() -> None:
    train, test = corpus(20_000), corpus(2_000, seed=1)
    mean = {name: nll.mean() for name, nll in counted_nll(train, test, VOCAB, EOS, 5).items()}
    assert list(mean) == ["unigram", "bigram", "trigram", "4-gram", "5-gram"]
    assert mean["trigram"] < mean["bigram"] - 0.1 < mean["unigram"] + 0.1
    assert mean["trigram"] < mean["unigram"] - 0.2


def test_unigram_adds_one() -> None:
    nll = unigram_nll(np.array([1, 1, 2]), np.arange(4), 4)
    np.testing.assert_allclose(np.exp(-nll), [1 / 7, 3 / 7, 2 / 7, 1 / 7], rtol=1e-6)


def test_discounts_follow_the_formula() -> None:
    counts = np.repeat([1, 2, 3, 4, 9], [40, 20, 12, 8, 5])
    ratio = 40 / (40 + 2 * 20)
    expected = [0, 1 - 2 * ratio * 20 / 40, 2 - 3 * ratio * 12 / 20, 3 - 4 * ratio * 8 / 12]
    np.testing.assert_allclose(modified_discounts(counts), expected)
    np.testing.assert_allclose(modified_discounts(np.array([5, 6])), [0, 0.5, 1, 1.5])


def test_no_training_tokens_is_a_user_error() -> None:
    with pytest.raises(UserError, match="training split is empty"):
        ngram_nll(np.empty(0, np.int64), np.array([1]), VOCAB, EOS, 5)


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


def test_best_ngram_is_the_lowest_loss_of_those_that_were_counted() -> None:
    scores = {"unigram": {"loss": 1.0}, "trigram": {"loss": 4.0}, "4-gram": {"loss": 4.5}, "untrained": {"loss": 0.5}}
    assert best_ngram(scores) == "trigram"
    assert best_ngram({"unigram": {"loss": 1.0}}) is None
