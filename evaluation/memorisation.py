"""How much of generated text is training text: the longest run of tokens in common, and the most similar passage.

A small model of a small corpus can score well on everything by copying. Held-out text by people has runs in common
with the training text too, so its figures at the same length stand beside.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from common.errors import UserError
from data_pipeline.shards import TokenStream

VERBATIM = 50  # tokens in a row, from which Lee et al. 2022 call a text copied
CHUNK = 1_000_000  # training tokens that are looked through at a time
SHINGLE = 5  # tokens
PERMUTATIONS = 128
PASSAGES = 5_000
SEED = 1


@dataclass(frozen=True)
class Memorisation:
    """What texts have in common with the training text. Only texts of one length may be compared."""

    longest_mean: float
    """Mean over texts of the longest run of tokens that also stands in the training text."""
    longest_max: int
    verbatim: float
    """Share of texts with such a run of at least 50 tokens."""
    training_tokens: int
    """Training tokens that were looked through."""
    nearest_mean: float | None
    """Mean over texts of the Jaccard similarity to the most similar training passage; None without datasketch."""
    nearest_max: float | None
    passages: int
    """Training passages compared, each as long as the texts; a sample, so a similar one may have been missed."""


def measure_memorisation(
    sets: Sequence[Sequence[Sequence[int]]], stream: TokenStream, limit: int, passages: int = PASSAGES
) -> list[Memorisation | None]:
    """Compare sets of texts, given as token ids, with a training split; None for a set without a token.

    The training text is read once for all sets.

    Args:
        limit: training tokens to look through at most, in pieces at equal distances.
        passages: to estimate similarities with.
    """
    texts = [np.asarray(text, np.int64) for one in sets for text in one if len(text)]
    if not texts:
        return [None] * len(sets)
    longest_text = max(map(len, texts))
    longest = longest_overlaps(texts, training_pieces(stream, limit, longest_text))
    windows = list(_passages(stream, passages, longest_text))
    try:
        nearest = nearest_similarities(texts, windows)
    except UserError:
        nearest, windows = None, []
    borders = np.cumsum([sum(bool(len(text)) for text in one) for one in sets])[:-1]
    found: list[Memorisation | None] = []
    for places in np.split(np.arange(len(texts)), borders):
        similar = None if nearest is None else nearest[places]
        found.append(_summary(longest[places], similar, min(limit, len(stream)), len(windows)) if len(places) else None)
    return found


def _summary(longest: np.ndarray, nearest: np.ndarray | None, tokens: int, passages: int) -> Memorisation:
    return Memorisation(
        longest_mean=float(longest.mean()),
        longest_max=int(longest.max()),
        verbatim=float((longest >= VERBATIM).mean()),
        training_tokens=tokens,
        nearest_mean=None if nearest is None else float(nearest.mean()),
        nearest_max=None if nearest is None else float(nearest.max()),
        passages=passages,
    )


def longest_overlaps(texts: Sequence[np.ndarray], pieces: Iterable[np.ndarray]) -> np.ndarray:
    """Tokens of the longest run of every text, (texts,) int64, that stands in one of the pieces; exact.

    The n-grams of the texts are numbered for every n. A place in a piece that begins with n-gram i of the texts may
    begin with a longer one: the pair of i and the token behind is looked up among the pairs that the texts have. Most
    places are out after a few tokens.

    Args:
        texts: token ids, (tokens,) each.
        pieces: of the training text, (tokens,) each; a run that reaches over the border of two is not found.
    """
    tables = _ngram_tables(texts)
    for piece in pieces:
        places = np.arange(len(piece))
        state = np.zeros(len(piece), np.int64)  # the empty n-gram
        for n, table in enumerate(tables):
            inside = places + n < len(piece)
            places, state = places[inside], state[inside]
            keys = state * table.base + piece[places + n]
            found = np.minimum(np.searchsorted(table.keys, keys), len(table.keys) - 1)
            here = (table.keys[found] == keys) & (piece[places + n] < table.base)
            places, state = places[here], found[here]
            if not len(places):
                break
            table.seen[state] = True
    longest = np.zeros(len(texts), np.int64)
    for n, table in enumerate(tables, start=1):
        longest[table.owners[table.seen[table.ngrams]]] = n
    return longest


@dataclass(frozen=True)
class _NgramTable:
    """The n-grams of the texts for one n; each is known by its place in `keys`."""

    base: int
    keys: np.ndarray  # (ngrams,) sorted: the number of its first n - 1 tokens times `base`, plus its last token
    ngrams: np.ndarray  # (occurrences,) the n-gram of every place of a text that has one
    owners: np.ndarray  # (occurrences,) the text of that place
    seen: np.ndarray  # (ngrams,) whether the training text has it


def _ngram_tables(texts: Sequence[np.ndarray]) -> list[_NgramTable]:
    tokens = np.concatenate(texts)
    lengths = np.array([len(text) for text in texts])
    owners = np.repeat(np.arange(len(texts)), lengths)
    ends = np.repeat(np.cumsum(lengths), lengths)
    places, state = np.arange(len(tokens)), np.zeros(len(tokens), np.int64)
    base, tables = int(tokens.max()) + 1, []
    for n in range(int(lengths.max())):
        inside = places + n < ends[places]
        places, state = places[inside], state[inside]
        keys, state = np.unique(state * base + tokens[places + n], return_inverse=True)
        tables.append(_NgramTable(base, keys, state, owners[places], np.zeros(len(keys), bool)))
    return tables


def nearest_similarities(texts: Sequence[np.ndarray], passages: Sequence[np.ndarray]) -> np.ndarray:
    """Jaccard similarity of every text to the most similar passage, (texts,), estimated by MinHash (Broder 1997).

    Compared are sets of five tokens in a row. The estimate of a similarity has a standard error of up to 0.044.

    Raises:
        UserError: datasketch is not installed.
    """
    try:
        from datasketch import MinHash
    except ImportError as error:
        raise UserError("similarity needs datasketch: pip install -c constraints.txt -e '.[metrics]'") from error

    def signatures(sequences: Sequence[np.ndarray]) -> np.ndarray:  # (sequences, permutations)
        shingles = [
            [tokens[start : start + SHINGLE].tobytes() for start in range(max(1, len(tokens) - SHINGLE + 1))]
            for tokens in sequences
        ]
        return np.array([sketch.hashvalues for sketch in MinHash.generator(shingles, num_perm=PERMUTATIONS, seed=SEED)])

    if not len(passages):
        return np.zeros(len(texts))
    theirs = signatures(passages)
    return np.array([(theirs == own).mean(1).max() for own in signatures(texts)])


def training_pieces(stream: TokenStream, limit: int, longest: int) -> Iterator[np.ndarray]:
    """The training tokens in pieces, each reaching `longest` tokens into the next; of more than `limit`, even parts."""
    pieces = max(1, -(-min(len(stream), limit) // CHUNK))
    whole = limit >= len(stream)
    size = CHUNK if whole else max(1, limit // pieces)
    starts = np.arange(pieces) * CHUNK if whole else np.linspace(0, len(stream) - size, pieces).astype(np.int64)
    for start in starts.tolist():
        yield stream.read(start, size + (longest if whole else 0))


def _passages(stream: TokenStream, count: int, length: int) -> Iterator[np.ndarray]:
    """Up to `count` passages of `length` tokens at equal distances."""
    room = max(1, len(stream) // length)
    for start in np.linspace(0, max(0, len(stream) - length), min(count, room)).astype(np.int64).tolist():
        yield stream.read(start, length)
