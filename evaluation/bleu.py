"""BLEU of a corpus (Papineni et al. 2002), with the conventions of sacrebleu (Post 2018), and chrF++ beside it.

BLEU belongs to a task with references: to translation, not to a text that is freely written on. Its value means nothing
without its signature, which says how the words were cut and what was done about n-grams that never match.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from common.errors import UserError
from evaluation.references import References, check_references
from evaluation.resampling import Comparison, Interval, bootstrap_interval, paired_bootstrap

ORDERS = 4  # n-grams of one to four words
TOKENIZERS = ("13a", "none", "char", "intl")
SMOOTHING_VALUES = {"none": None, "floor": 0.1, "add-k": 1.0, "exp": None}

Tokenizer = Literal["13a", "none", "char", "intl"]
Smoothing = Literal["none", "floor", "add-k", "exp"]

# The rules of NIST's mteval-v13a, in their order: marks are words of their own, but not inside a number.
_13A_ENTITIES = (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))
_13A_RULES = (
    (re.compile(r"([!-&(-+:-@\[-`{-~/])"), r" \1 "),
    (re.compile(r"([^0-9])([.,])"), r"\1 \2 "),
    (re.compile(r"([.,])([^0-9])"), r" \1 \2"),
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
)


@dataclass(frozen=True)
class BleuOptions:
    """How words are cut and unmatched n-grams smoothed; the defaults are those of sacrebleu."""

    tokenizer: Tokenizer = "13a"
    """13a: of WMT's mteval; none: what stands between spaces; char: characters; intl: Unicode (sacrebleu's own)."""
    lowercase: bool = False
    smoothing: Smoothing = "exp"
    """Chen and Cherry 2014: none; floor puts a value for no match (method 1); add-k adds it above one word (2); exp
    halves the precision with every length that never matches (3)."""
    smoothing_value: float | None = None
    """Of floor (0.1 by default) and add-k (1)."""
    effective_order: bool = False
    """Leave out lengths that no prediction reaches; needed for single sentences, which otherwise score 0 when short."""

    def __post_init__(self) -> None:
        if self.tokenizer not in TOKENIZERS:
            raise UserError(f"BLEU has no tokenizer {self.tokenizer!r}; choose one of {', '.join(TOKENIZERS)}")
        if self.smoothing not in SMOOTHING_VALUES:
            raise UserError(f"BLEU has no smoothing {self.smoothing!r}; choose one of {', '.join(SMOOTHING_VALUES)}")

    @property
    def value(self) -> float | None:
        """The smoothing value in force; None where the smoothing has none."""
        return SMOOTHING_VALUES[self.smoothing] if self.smoothing_value is None else self.smoothing_value


@dataclass(frozen=True)
class Bleu:
    """BLEU of a corpus, and what it is made of."""

    score: float
    """From 0 to 100."""
    precisions: tuple[float, ...]
    """Share of the predictions' n-grams that a reference has, for 1 to 4 words, before smoothing, from 0 to 100."""
    brevity_penalty: float
    prediction_length: int
    reference_length: int
    """Words of the references that are nearest in length to their predictions."""
    signature: str
    """What must be equal for two scores to be comparable, in the form of sacrebleu."""
    interval: Interval | None = None


def corpus_bleu(
    predictions: Sequence[str],
    references: References,
    options: BleuOptions | None = None,
    resamples: int = 0,
    seed: int = 0,
) -> Bleu:
    """BLEU of all predictions together; it is not the mean over sentences.

    Args:
        references: one list a prediction.
        resamples: of the bootstrap for `interval`; 0 for none.

    Raises:
        UserError: the references do not fit the predictions, or a package is missing.
    """
    options = options or BleuOptions()
    statistics = bleu_statistics(predictions, references, options)
    sums = statistics.sum(0)
    length, reference_length = int(sums[0]), int(sums[1])
    return Bleu(
        score=float(bleu_of(sums, options)),
        precisions=tuple(
            100 * int(matched) / int(count) if count else 0.0
            for matched, count in zip(sums[2 : 2 + ORDERS], sums[2 + ORDERS :], strict=True)
        ),
        brevity_penalty=float(_brevity_penalty(np.array(length), np.array(reference_length))),
        prediction_length=length,
        reference_length=reference_length,
        signature=bleu_signature(references, options),
        interval=bootstrap_interval(statistics, lambda drawn: bleu_of(drawn, options), resamples, seed)
        if resamples
        else None,
    )


def compare_bleu(
    first: Sequence[str],
    second: Sequence[str],
    references: References,
    options: BleuOptions | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Paired bootstrap of two systems' predictions of the same sentences. Raises UserError as `corpus_bleu` does."""
    options = options or BleuOptions()
    ours, theirs = (bleu_statistics(predictions, references, options) for predictions in (first, second))
    return paired_bootstrap(ours, theirs, lambda sums: bleu_of(sums, options), resamples, seed)


def bleu_statistics(predictions: Sequence[str], references: References, options: BleuOptions) -> np.ndarray:
    """What BLEU sums over sentences, (sentences, 10) int64.

    In columns: the length of the prediction, that of the reference nearest to it (of two equally near the shorter one),
    matched n-grams and all n-grams of the prediction for 1 to 4 words. An n-gram matches as often as the one reference
    has it that has it most.
    """
    cut = _cutter(options)
    rows = []
    for prediction, own in zip(predictions, check_references(predictions, references), strict=True):
        words, candidates = cut(prediction), [cut(reference) for reference in own]
        nearest = min((abs(len(words) - len(candidate)), len(candidate)) for candidate in candidates)[1]
        matched, counted = [], []
        for n in range(1, ORDERS + 1):
            counts, most = count_ngrams(words, n), Counter[tuple[str, ...]]()
            for candidate in candidates:
                most |= count_ngrams(candidate, n)
            matched.append((counts & most).total())
            counted.append(counts.total())
        rows.append([len(words), nearest, *matched, *counted])
    return np.array(rows, np.int64)


def bleu_of(sums: np.ndarray, options: BleuOptions) -> np.ndarray:
    """BLEU from 0 to 100 of sums over sentences as `bleu_statistics` has them, (..., 10) -> (...)."""
    sums = np.asarray(sums, np.float64)
    matched, counted = sums[..., 2 : 2 + ORDERS], sums[..., 2 + ORDERS :]
    any_match = matched.any(-1)
    if options.smoothing == "add-k":
        added = np.array([0] + [options.value or 0] * (ORDERS - 1), np.float64)
        matched, counted = matched + added, counted + added
    reached = counted > 0
    missed = reached & (matched == 0)
    if options.smoothing == "exp":
        matched = np.where(missed, 0.5 ** np.cumsum(missed, -1), matched)
    elif options.smoothing == "floor":
        matched = np.where(missed, np.float64(options.value or 0), matched)
    with np.errstate(divide="ignore"):
        logs = np.log(matched / np.where(reached, counted, 1))
    used = reached if options.effective_order else np.ones_like(reached)
    mean = np.where(used, logs, 0).sum(-1) / np.maximum(used.sum(-1), 1)
    return np.where(any_match, 100 * _brevity_penalty(sums[..., 0], sums[..., 1]) * np.exp(mean), 0.0)


def bleu_signature(references: References, options: BleuOptions) -> str:
    """References, case, effective order, tokenizer and smoothing, as sacrebleu writes them."""
    numbers = {sum(reference is not None for reference in own) for own in references}
    value = "" if options.value is None else f"[{options.value:.2f}]"
    parts = {
        "nrefs": numbers.pop() if len(numbers) == 1 else "var",
        "case": "lc" if options.lowercase else "mixed",
        "eff": "yes" if options.effective_order else "no",
        "tok": options.tokenizer,
        "smooth": options.smoothing + value,
    }
    return "|".join(f"{name}:{part}" for name, part in parts.items())


def corpus_chrf(predictions: Sequence[str], references: References) -> tuple[float, str]:
    """chrF++ (Popović 2017) from 0 to 100, and its signature; sacrebleu's, with two words beside six characters.

    Raises:
        UserError: the references do not fit the predictions, or sacrebleu is not installed.
    """
    found = check_references(predictions, references)
    most = max(map(len, found))
    streams = [[own[number] if number < len(own) else None for own in found] for number in range(most)]
    metric = sacrebleu_metrics().CHRF(word_order=2)
    return float(metric.corpus_score(list(predictions), streams).score), str(metric.get_signature())


def count_ngrams(words: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    """How often each run of `n` words occurs."""
    return Counter(zip(*(words[start:] for start in range(n)), strict=False))


def tokenize_13a(text: str) -> list[str]:
    """Words and marks as WMT's mteval-v13a cuts them."""
    text = text.replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for entity, character in _13A_ENTITIES:
        text = text.replace(entity, character)
    text = f" {text} "
    for rule, replacement in _13A_RULES:
        text = rule.sub(replacement, text)
    return text.split()


def sacrebleu_metrics() -> Any:
    """The measures of sacrebleu. Raises UserError when it is not installed."""
    try:
        from sacrebleu import metrics
    except ImportError as error:
        raise UserError("sacrebleu is not here: pip install -c constraints.txt -e '.[metrics]'") from error
    return metrics


def _brevity_penalty(length: np.ndarray, reference_length: np.ndarray) -> np.ndarray:
    ratio = reference_length / np.maximum(length, 1)
    return np.where(length >= reference_length, 1.0, np.where(length > 0, np.exp(1 - ratio), 0.0))


def _cutter(options: BleuOptions) -> Callable[[str], list[str]]:
    """From a text to its words."""
    cutters: dict[str, Callable[[str], list[str]]] = {
        "13a": tokenize_13a,
        "none": str.split,
        "char": lambda text: list("".join(text.split())),
    }
    if options.tokenizer == "intl":
        international = sacrebleu_metrics().BLEU(tokenize="intl").tokenizer
        cutters["intl"] = lambda text: international(text).split()
    cut = cutters[options.tokenizer]
    return lambda text: cut((text.lower() if options.lowercase else text).rstrip())
