"""How good translations are: BLEU (Papineni et al. 2002) and chrF++ (Popović 2017), with intervals, by sacrebleu."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.errors import UserError

RESAMPLINGS = 1000


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
    """Scores by system, and what sacrebleu says of how they were made."""

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
    try:
        from sacrebleu.metrics import BLEU, CHRF
        from sacrebleu.significance import PairedTest
    except ImportError as error:
        raise UserError("BLEU needs sacrebleu: pip install -c constraints.txt -e '.[translation]'") from error
    count = len(references[0])
    if any(len(of_sentence) != count for of_sentence in references):
        raise ValueError("sentences have different numbers of references")
    if any(len(texts) != len(references) for texts in systems.values()):
        raise ValueError(f"every system must have {len(references)} translations, one a list of references")
    streams = [[of_sentence[number] for of_sentence in references] for number in range(count)]
    logging.getLogger("sacrebleu").setLevel(logging.ERROR)
    ordered = [baseline, *(name for name in systems if name != baseline)]
    named = [(name, list(systems[name])) for name in ordered]
    metrics = {"BLEU": BLEU(references=streams[:1]), "chrF2++": CHRF(word_order=2, references=streams[:1])}
    compare: Any = PairedTest  # whose annotations are narrower than what it takes and gives
    signatures, found = compare(named, metrics, None, "bs", RESAMPLINGS)()
    of_all = BLEU(references=streams)
    words = BLEU(references=streams[:1])
    results = {}
    for name, bleu, chrf in zip(ordered, found["BLEU"], found["chrF2++"], strict=True):
        lengths = words.corpus_score(list(systems[name]), None)
        results[name] = SystemScore(
            bleu=float(bleu.score),
            low=float(bleu.mean - bleu.ci),
            high=float(bleu.mean + bleu.ci),
            p=bleu.p_value,
            all_references=of_all.corpus_score(list(systems[name]), None).score,
            chrf=float(chrf.score),
            length_ratio=lengths.sys_len / lengths.ref_len,
        )
    return Scores({name: results[name] for name in systems}, {name: str(value) for name, value in signatures.items()})
