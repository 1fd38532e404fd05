"""What counting can do: unigram and trigram models of the training tokens, scored on the same validation tokens.

The trigram is interpolated modified Kneser-Ney (Chen & Goodman 1999, section 4.1.6 and equation 26), all in numpy: an
n-gram is one int64 key, a table is a sorted array of keys, a look-up is a binary search.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from common.errors import UserError
from data_pipeline.shards import TokenStream

ORDERS = 3
SPREAD = 100  # pieces that a part of the training tokens is taken in


def training_sample(stream: TokenStream, limit: int) -> np.ndarray:  # (tokens,) int64
    """The whole stream, or `limit` tokens of it in pieces at equal distances, so that every source has its share."""
    if len(stream) <= limit:
        return stream.read(0, len(stream))
    pieces = min(SPREAD, limit)
    starts = np.linspace(0, len(stream) - limit // pieces, pieces).astype(np.int64)
    return np.concatenate([stream.read(int(start), limit // pieces) for start in starts])


@dataclass(frozen=True)
class Unigram:
    """Relative frequencies with one added to every count, so that no token is impossible."""

    log_probability: np.ndarray  # (vocab,) float64

    @staticmethod
    def train(tokens: np.ndarray, vocab_size: int) -> Unigram:
        counts = np.bincount(tokens, minlength=vocab_size) + 1.0
        return Unigram(np.log(counts / counts.sum()))

    def nll(self, tokens: np.ndarray) -> np.ndarray:  # (tokens,) ids -> (tokens,) float32 nats
        return (-self.log_probability[tokens]).astype(np.float32)


@dataclass(frozen=True)
class _Order:
    """Discounted counts of the n-grams of one length. The key of an n-gram is its tokens as digits in base `vocab`."""

    ngrams: np.ndarray  # (types,) int64, sorted
    counts: np.ndarray  # (types,)
    contexts: np.ndarray  # (contexts,) int64, sorted: n-grams without their last token
    totals: np.ndarray  # (contexts,) float64, sum of the counts behind each context
    reserved: np.ndarray  # (contexts,) float64, the probability that discounting leaves for the shorter context
    discounts: np.ndarray  # (4,) float64, for counts 0, 1, 2, and 3 or more

    @staticmethod
    def build(ngrams: np.ndarray, counts: np.ndarray, vocab: int) -> _Order:
        discounts = modified_discounts(counts)
        contexts, first = np.unique(ngrams // vocab, return_index=True)
        taken = discounts[np.minimum(counts, 3)]
        totals = np.add.reduceat(counts, first).astype(np.float64)
        return _Order(ngrams, counts, contexts, totals, np.add.reduceat(taken, first) / totals, discounts)

    def interpolate(self, ngrams: np.ndarray, contexts: np.ndarray, shorter: np.ndarray) -> np.ndarray:
        """Probability of each n-gram's last token, given `shorter`, the one that the order below gives it."""
        known, where = _find(self.contexts, contexts)
        seen, place = _find(self.ngrams, ngrams)
        count = np.where(seen, self.counts[place], 0)
        discounted = (count - self.discounts[np.minimum(count, 3)]) / self.totals[where]
        return np.where(known, discounted + self.reserved[where] * shorter, shorter)


class Trigram:
    """Interpolated modified Kneser-Ney trigram over token ids; below the unigrams lies the uniform distribution.

    The stream runs on over document borders, as in packed training, and begins after two end-of-text ids.
    """

    def __init__(self, orders: list[_Order], vocab_size: int, eos_id: int) -> None:
        self.orders, self.vocab_size, self.eos_id = orders, vocab_size, eos_id  # orders: unigrams first

    @staticmethod
    def train(tokens: np.ndarray, vocab_size: int, eos_id: int) -> Trigram:
        """Count `tokens` (tokens,).

        Raises:
            UserError: there are no tokens, or so many ids that three do not fit 63 bits.
        """
        if len(tokens) == 0:
            raise UserError("the training split is empty, so there is no baseline; make the data again")
        if vocab_size**ORDERS >= 1 << 63:
            raise UserError(f"the trigram baseline holds at most {(1 << 21) - 1:,} token ids, not {vocab_size:,}")
        ngrams, counts = np.unique(_keys(tokens, vocab_size, eos_id)[ORDERS - 1], return_counts=True)
        orders = [_Order.build(ngrams, counts, vocab_size)]
        for length in range(ORDERS - 1, 0, -1):
            # Shorter n-grams count the different tokens they were seen after, not how often (Kneser & Ney 1995).
            ngrams, counts = np.unique(ngrams % vocab_size**length, return_counts=True)
            orders.insert(0, _Order.build(ngrams, counts, vocab_size))
        return Trigram(orders, vocab_size, eos_id)

    def nll(self, tokens: np.ndarray) -> np.ndarray:  # (tokens,) ids -> (tokens,) float32 nats
        """Negative log-likelihood of every token of a stream."""
        return (-np.log(self._probability(_keys(tokens, self.vocab_size, self.eos_id)))).astype(np.float32)

    def distribution(self, first: int, second: int) -> np.ndarray:  # (vocab,) float64
        """Probabilities of every token after the tokens `first` and `second`."""
        last, vocab = np.arange(self.vocab_size), self.vocab_size
        return self._probability([last, second * vocab + last, (first * vocab + second) * vocab + last])

    def _probability(self, keys: list[np.ndarray]) -> np.ndarray:
        probability = np.full(len(keys[0]), 1 / self.vocab_size)
        for order, ngrams in zip(self.orders, keys, strict=True):
            probability = order.interpolate(ngrams, ngrams // self.vocab_size, probability)
        return probability


def modified_discounts(counts: np.ndarray) -> np.ndarray:
    """Discounts for counts 0, 1, 2 and 3 or more, from the numbers of n-grams seen 1 to 4 times (equation 26).

    Where these are too few for the formula to give something between 0 and the count, the discount is half the count.
    """
    n1, n2, n3, n4 = np.bincount(np.minimum(counts, 5), minlength=6)[1:5].astype(float)
    discounts = np.array([0.0, 0.5, 1.0, 1.5])
    if n1 and n2:
        ratio = n1 / (n1 + 2 * n2)
        following = (n2 / n1, n3 / n2, n4 / n3 if n3 else np.inf)
        for count, growth in enumerate(following, start=1):
            estimate = count - (count + 1) * ratio * growth
            if 0 < estimate < count:
                discounts[count] = estimate
    return discounts


def _keys(tokens: np.ndarray, vocab: int, eos_id: int) -> list[np.ndarray]:
    """Keys of the n-grams of length 1, 2, 3 that end at each token."""
    padded = np.concatenate([np.full(ORDERS - 1, eos_id, np.int64), tokens.astype(np.int64)])
    first, second, third = padded[:-2], padded[1:-1], padded[2:]
    return [third, second * vocab + third, (first * vocab + second) * vocab + third]


def _find(table: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whether each wanted key is in the sorted table, and its place there (any place where it is not)."""
    place = np.minimum(np.searchsorted(table, wanted), len(table) - 1)
    return table[place] == wanted, place
