"""How good translations are: BLEU (Papineni et al. 2002) and chrF++ (Popović 2017), with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from common.errors import UserError
from evaluation.bleu import compare_bleu, corpus_bleu, corpus_chrf, sacrebleu_metrics
from evaluation.resampling import RESAMPLES


@dataclass(frozen=True)
class SystemScore:
    """What one system's translations are worth."""

    bleu: float
    """Of the whole corpus, 0 to 100, against the first reference of each sentence."""
    low: float
    high: float
    """95 % interval of BLEU by bootstrap over sentences (Koehn 2004)."""
    p: float | None
    """Of the paired bootstrap that BLEU does not differ from the baseline's; None for the baseline itself."""
    all_references: float
    """BLEU against all references."""
    chrf: float
    """chrF++, against the first reference."""
    length_ratio: float
    """Words of the translations over words of the references."""


@dataclass(frozen=True)
class Scores:
    """Scores by system, and how they were made, as sacrebleu writes it."""

    systems: dict[str, SystemScore]
    signatures: dict[str, str]


def check(references: Sequence[Sequence[str]]) -> None:
    """Whether translations can be scored against these, one list a sentence: to be asked before any are made.

    Raises:
        UserError: sacrebleu is not installed, or the numbers of references differ.
    """
    sacrebleu_metrics()
    for number, of_sentence in enumerate(references):
        if len(of_sentence) != len(references[0]):
            raise UserError(
                f"sentences have different numbers of references: the first has {len(references[0])}, sentence "
                f"{number + 1} has {len(of_sentence)}; give each as many"
            )


def score(systems: Mapping[str, Sequence[str]], references: Sequence[Sequence[str]], baseline: str) -> Scores:
    """Compare the translations of several systems.

    Args:
        systems: by name, one translation a sentence.
        references: one list a sentence; all of the same length.
        baseline: the system that all others are compared with.

    Raises:
        UserError: as `check` does.
        ValueError: a system has more or fewer translations than there are sentences.
    """
    check(references)
    if any(len(texts) != len(references) for texts in systems.values()):
        raise ValueError(f"every system must have {len(references)} translations, one a list of references")
    first = [of_sentence[:1] for of_sentence in references]
    results, signatures = {}, {}
    for name, texts in systems.items():
        bleu = corpus_bleu(texts, first, resamples=RESAMPLES)
        chrf, signatures["chrF2++"] = corpus_chrf(texts, first)
        assert bleu.interval is not None
        results[name] = SystemScore(
            bleu=bleu.score,
            low=bleu.interval.low,
            high=bleu.interval.high,
            p=None if name == baseline else compare_bleu(texts, systems[baseline], first, resamples=RESAMPLES).p,
            all_references=corpus_bleu(texts, references).score,
            chrf=chrf,
            length_ratio=bleu.prediction_length / bleu.reference_length,
        )
        signatures["BLEU"] = bleu.signature
    return Scores(results, signatures)
