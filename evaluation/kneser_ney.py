"""Interpolated modified Kneser-Ney models of every order up to a highest one, scored while they are counted.

Chen & Goodman 1999, section 4.1.6 and equation 26; below the unigrams lies the uniform distribution. An n-gram has a
number, the rank of its key among the keys of its order, and its key is the number of its first n - 1 tokens with its
last token behind it. So keys fit 63 bits at any order and vocabulary. What is to be scored is known beforehand, so
only one order and the counts of the one below are in memory at a time: about 50 bytes a training token.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from common.errors import UserError

MOST_TOKENS = (1 << 31) - 1  # numbers of n-grams are int32


def ngram_nll(
    train: np.ndarray,  # (tokens,) ids
    stream: np.ndarray,  # (scored,) ids
    vocab_size: int,
    eos_id: int,
    highest: int,
) -> dict[int, np.ndarray]:
    """Negative log-likelihood in nats of every token of `stream`, (scored,) float32, by order from 2 to `highest`.

    Both streams run on over document borders, as in packed training. `stream` begins after end-of-text ids; `train` is
    a ring, whose first tokens follow its last, so that every n-gram has one before it and one after it.

    Raises:
        UserError: there are no training tokens, or more than can be numbered.
    """
    if len(train) == 0:
        raise UserError("the training split is empty, so there is no baseline; make the data again")
    if len(train) > MOST_TOKENS:
        raise UserError(f"at most {MOST_TOKENS:,} tokens can be counted, not {len(train):,}; lower --baseline-tokens")
    padding = highest - 1
    asked = np.concatenate([np.full(padding, eos_id, np.int64), stream])
    numbers = np.zeros(len(train), np.int32)  # of the n-gram that ends at each token; the empty one is number 0
    contexts = np.zeros(len(asked), np.int64)  # likewise of the one before each token of `asked`, -1 for a new one
    probability = np.full(len(asked), 1 / vocab_size)  # of continuations, one order below
    shorter: _Order | None = None
    result = {}
    for length in range(1, highest + 1):
        order, followed = _count(numbers, train, vocab_size, asked, contexts)
        if shorter is not None:
            # Shorter n-grams count the different tokens they were seen after, not how often (Kneser & Ney 1995).
            continuations = np.bincount(numbers[order.places], minlength=len(shorter.counts)).astype(np.int32)
            probability = shorter.interpolate(continuations, probability)
            result[length] = (-np.log(order.interpolate(order.counts, probability)[padding:])).astype(np.float32)
        contexts = np.concatenate([[-1], order.asked[:-1]])
        numbers, shorter = followed, order
    return result


@dataclass(frozen=True)
class _Order:
    """The n-grams of one length, in the order of their numbers, and where those that are asked for are among them."""

    counts: np.ndarray  # (types,) int32, how often each was seen
    places: np.ndarray  # (types,) int32, a training token that each ends at
    first: np.ndarray  # (contexts,) int64, the first n-gram behind each context
    asked: np.ndarray  # (asked,) int64, numbers, -1 for an n-gram that was not seen
    contexts: np.ndarray  # (asked,) int64, numbers of what stands before the last token, -1 likewise

    def interpolate(self, counts: np.ndarray, shorter: np.ndarray) -> np.ndarray:  # (types,), (asked,) -> (asked,)
        """Probability of each asked n-gram's last token by `counts`, given `shorter`, that of the order below."""
        discounts = modified_discounts(counts)
        totals = np.add.reduceat(counts, self.first, dtype=np.int64)[self.contexts]
        reserved = sum(
            discount * np.add.reduceat(counts == count if count < 3 else counts >= 3, self.first, dtype=np.int32)
            for count, discount in enumerate(discounts.tolist())
            if count
        )
        count = np.where(self.asked >= 0, counts[self.asked], 0)
        taken = count - discounts[np.minimum(count, 3)]
        return np.where(self.contexts >= 0, (taken + np.asarray(reserved)[self.contexts] * shorter) / totals, shorter)


def _count(
    numbers: np.ndarray, train: np.ndarray, vocab_size: int, asked: np.ndarray, contexts: np.ndarray
) -> tuple[_Order, np.ndarray]:
    """The n-grams one token longer than those with `numbers`, and the number of the one that ends at each token."""
    keys = np.roll(numbers, 1).astype(np.int64)
    keys *= vocab_size
    keys += train
    by_key = np.argsort(keys)
    keys = keys[by_key]
    new = np.concatenate([[True], keys[1:] != keys[:-1]])
    starts = np.flatnonzero(new)
    keys = keys[starts]
    counts = np.diff(starts, append=len(train)).astype(np.int32)
    places = by_key[starts].astype(np.int32)
    del starts
    followed = np.empty(len(train), np.int32)
    followed[by_key] = np.cumsum(new, dtype=np.int32) - 1
    del by_key
    wanted = contexts * vocab_size + asked
    number = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    number[keys[number] != wanted] = -1
    keys //= vocab_size
    first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    return _Order(counts, places, first, number, contexts), followed


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
