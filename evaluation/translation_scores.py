"""How good translations are: BLEU (Papineni et al. 2002) and chrF++ (Popović 2017), with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evaluation.bleu import compare_bleu, corpus_bleu, corpus_chrf
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


def score(systems: Mapping[str, Sequence[str]], references: Sequence[Sequence[str]], baseline: str) -> Scores:
    """Compare the translations of several systems.

    Args:
        systems: by name, one translation a sentence.
        references: one list a sentence; all of the same length.
        baseline: the system that all others are compared with.

    Raises:
        UserError: sacrebleu is not installed.
        ValueError: the numbers of sentences or of references differ.
    """
    count = len(references[0])
    if any(len(of_sentence) != count for of_sentence in references):
        raise ValueError("sentences have different numbers of references")
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
