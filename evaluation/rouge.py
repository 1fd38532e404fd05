"""ROUGE-1, -2, -L and -Lsum (Lin 2004), with the conventions of the rouge-score package.

A figure without its tokenizer and stemmer says little: the usual tokenizer knows the letters a to z alone, so every
word of another script is lost, and "café" is "caf".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np

from common.errors import UserError
from evaluation.bleu import count_ngrams
from evaluation.diversity import split_words
from evaluation.references import References, check_references
from evaluation.resampling import Interval, mean_interval
from evaluation.sentences import split_sentences

KINDS = ("rouge1", "rouge2", "rougeL", "rougeLsum")

Cut = Callable[[str], list[str]]


@dataclass(frozen=True)
class RougeOptions:
    """How texts are cut into words and sentences."""

    tokenizer: Literal["ascii", "unicode"] = "ascii"
    """ascii: that of rouge-score, runs of a-z and 0-9; unicode: words of any script, for all languages but English."""
    stemmer: bool = False
    """Porter's stems of English words of more than three letters (ascii only)."""
    sentences: Literal["split", "newline"] = "split"
    """For Lsum: split at the ends of sentences and lines, or at line breaks alone, as rouge-score does."""

    def __post_init__(self) -> None:
        if self.tokenizer not in ("ascii", "unicode") or self.sentences not in ("split", "newline"):
            raise UserError(
                f"ROUGE has no tokenizer {self.tokenizer!r} with sentences {self.sentences!r}; tokenizers are ascii "
                "and unicode, sentences split and newline"
            )
        if self.stemmer and self.tokenizer == "unicode":
            raise UserError("the Porter stemmer is made for English; use it with the tokenizer ascii, or leave it out")

    @property
    def signature(self) -> str:
        """What must be equal for two figures to be comparable."""
        return f"tok:{self.tokenizer}|stem:{'porter' if self.stemmer else 'no'}|sents:{self.sentences}"


@dataclass(frozen=True)
class RougeScore:
    """Overlap of one prediction with one reference, each from 0 to 1."""

    precision: float
    recall: float
    f: float

    @staticmethod
    def of(hits: int, predicted: int, wanted: int) -> RougeScore:
        """From the number of words (or n-grams) that are shared, predicted, and in the reference."""
        precision, recall = hits / max(predicted, 1), hits / max(wanted, 1)
        return RougeScore(precision, recall, 2 * precision * recall / (precision + recall) if hits else 0.0)


@dataclass(frozen=True)
class MeanRouge:
    """The plain mean of one kind of ROUGE over all predictions."""

    precision: float
    recall: float
    f: float
    interval: Interval | None
    """Of the mean F; a seeded bootstrap, so it is the same every time."""


def corpus_rouge(
    predictions: Sequence[str],
    references: References,
    options: RougeOptions | None = None,
    resamples: int = 0,
    seed: int = 0,
) -> dict[str, MeanRouge]:
    """Mean ROUGE by kind. Of several references each prediction is scored with the one of the highest F, for each kind.

    Args:
        references: one list a prediction.
        resamples: of the bootstrap for `interval`; 0 for none.

    Raises:
        UserError: the references do not fit the predictions, or a package is missing.
    """
    options = options or RougeOptions()
    scored = [
        rouge(prediction, own, options)
        for prediction, own in zip(predictions, check_references(predictions, references), strict=True)
    ]
    found = {}
    for kind in KINDS:
        table = np.array([[one[kind].precision, one[kind].recall, one[kind].f] for one in scored])
        precision, recall, f = (float(mean) for mean in table.mean(0))
        interval = mean_interval(table[:, 2], resamples, seed) if resamples else None
        found[kind] = MeanRouge(precision, recall, f, interval)
    return found


def rouge(prediction: str, references: Sequence[str], options: RougeOptions | None = None) -> dict[str, RougeScore]:
    """ROUGE of one prediction by kind, with the best of its references for each (the first of equally good ones)."""
    options = options or RougeOptions()
    scores = [_rouge_pair(prediction, reference, options) for reference in references]
    return {kind: max((score[kind] for score in scores), key=lambda score: score.f) for kind in KINDS}


def _rouge_pair(prediction: str, reference: str, options: RougeOptions) -> dict[str, RougeScore]:
    cut = _cutter(options)
    predicted, wanted = cut(prediction), cut(reference)
    common = _longest_common(wanted, predicted)
    return {
        "rouge1": _rouge_n(predicted, wanted, 1),
        "rouge2": _rouge_n(predicted, wanted, 2),
        "rougeL": RougeScore.of(len(common), len(predicted), len(wanted)),
        "rougeLsum": _rouge_lsum(
            [cut(sentence) for sentence in _sentences(prediction, options)],
            [cut(sentence) for sentence in _sentences(reference, options)],
        ),
    }


def _rouge_n(predicted: list[str], wanted: list[str], n: int) -> RougeScore:
    ours, theirs = count_ngrams(predicted, n), count_ngrams(wanted, n)
    return RougeScore.of((ours & theirs).total(), ours.total(), theirs.total())


def _rouge_lsum(predicted: list[list[str]], wanted: list[list[str]]) -> RougeScore:
    """Of every sentence of the reference, the words that a common subsequence with any predicted sentence covers.

    As in ROUGE 1.5.5, no word counts more often than both texts have it.
    """
    left = Counter(word for sentence in predicted for word in sentence)
    left &= Counter(word for sentence in wanted for word in sentence)
    hits = 0
    for sentence in wanted:
        covered = set[int]().union(*(_longest_common(sentence, other) for other in predicted))
        for place in sorted(covered):
            if left[sentence[place]] > 0:
                left[sentence[place]] -= 1
                hits += 1
    return RougeScore.of(hits, sum(map(len, predicted)), sum(map(len, wanted)))


def _longest_common(wanted: Sequence[str], predicted: Sequence[str]) -> list[int]:
    """Places in `wanted` of one longest common subsequence, last first; of several, the one that rouge-score finds.

    The table of lengths is kept as its steps, one integer a row (Hyyrö 2004, "Bit-parallel LCS-length computation
    revisited"): in row i, bit j is 0 where the length grows between the columns j and j + 1.
    """
    full = (1 << len(predicted)) - 1
    places: dict[str, int] = {}
    for column, word in enumerate(predicted):
        places[word] = places.get(word, 0) | 1 << column
    rows = [full]
    for word in wanted:
        matches = rows[-1] & places.get(word, 0)
        rows.append(((rows[-1] + matches) | (rows[-1] - matches)) & full)

    def length(row: int, column: int) -> int:
        return column - (rows[row] & ((1 << column) - 1)).bit_count()

    found = []
    row, column = len(wanted), len(predicted)
    while row and column:
        if wanted[row - 1] == predicted[column - 1]:
            row, column = row - 1, column - 1
            found.append(row)
        elif length(row, column - 1) > length(row - 1, column):
            column -= 1
        else:
            row -= 1
    return found


def _sentences(text: str, options: RougeOptions) -> Iterator[str]:
    for line in text.split("\n"):
        yield from split_sentences(line) if options.sentences == "split" else [line]


@cache
def _cutter(options: RougeOptions) -> Cut:
    """From a text to its words."""
    if options.tokenizer == "unicode":
        return split_words
    try:
        from rouge_score.tokenizers import DefaultTokenizer
    except ImportError as error:
        raise UserError(
            f"ROUGE with the tokenizer ascii needs a package that is not here ({error.name}): "
            "pip install -c constraints.txt -e '.[metrics]'"
        ) from error
    tokenize: Cut = DefaultTokenizer(use_stemmer=options.stemmer).tokenize
    return tokenize
