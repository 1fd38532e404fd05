"""What every predictor makes of every document of a split: enough to say how far a difference is more than chance."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from common.errors import UserError
from common.files import atomic_write
from evaluation.perplexity import Score, SplitScores
from evaluation.resampling import bounds, resampled_sums

FILE = "document_scores.npz"
ALL = "all"  # the row of the whole split beside those of its sources


@dataclass(frozen=True)
class DocumentScores:
    """Sums over every document of a split, for one or several predictors, of which the first is the model."""

    names: tuple[str, ...]
    nll: np.ndarray  # (predictors, documents) float64, nats
    tokens: np.ndarray  # (predictors, documents) int64, each predictor's own, end-of-text ids included
    bytes: np.ndarray  # (documents,) int64, of the text
    source: np.ndarray  # (documents,) uint16, position in `sources`
    sources: tuple[str, ...]
    data_fingerprint: str
    """Of the data: equal ones hold the same documents in the same order."""

    @staticmethod
    def of(
        nll: dict[str, np.ndarray], documents: np.ndarray, sources: Sequence[str], fingerprint: str
    ) -> DocumentScores:
        """From the nats of every token, (tokens,) by predictor, and the index of the documents."""
        starts = documents["start"].astype(np.int64)
        return DocumentScores(
            tuple(nll),
            np.array([np.add.reduceat(values, starts, dtype=np.float64) for values in nll.values()]),
            np.tile(documents["tokens"].astype(np.int64), (len(nll), 1)),
            documents["bytes"].astype(np.int64),
            documents["source"],
            tuple(sources),
            fingerprint,
        )

    def adding(self, name: str, nll: np.ndarray, tokens: np.ndarray) -> DocumentScores:
        """The same with another predictor, of which nats and tokens of every document are given, (documents,) each."""
        return replace(
            self,
            names=(*self.names, name),
            nll=np.concatenate([self.nll, nll[None]]),
            tokens=np.concatenate([self.tokens, tokens[None]]),
        )

    def split_scores(self, name: str, words: np.ndarray | None = None) -> SplitScores:
        """The score of a predictor on the split and on each source in it; `words` are those of every document."""
        row = self.names.index(name)
        scores = {
            group: Score.of(
                float(self.nll[row, chosen].sum()),
                int(self.tokens[row, chosen].sum()),
                int(self.bytes[chosen].sum()),
                0 if words is None else int(words[chosen].sum()),
            )
            for group, chosen in self.groups().items()
        }
        return SplitScores(scores.pop(ALL), scores)

    def groups(self) -> dict[str, np.ndarray]:
        """(documents,) bool of the whole split and of every source that has documents."""
        of_sources = {name: self.source == number for number, name in enumerate(self.sources)}
        return {ALL: np.ones(len(self.bytes), bool), **{name: one for name, one in of_sources.items() if one.any()}}

    def save(self, path: Path) -> None:
        with atomic_write(path, "wb") as file:
            np.savez_compressed(
                file,
                names=np.array(self.names),
                nll=self.nll.astype(np.float32),  # far finer than any interval
                tokens=self.tokens.astype(np.uint32),
                bytes=self.bytes.astype(np.uint32),
                source=self.source,
                sources=np.array(self.sources),
                data_fingerprint=np.array(self.data_fingerprint),
            )

    @staticmethod
    def load(path: Path) -> DocumentScores:
        """Raises UserError when there is no such file, or it is damaged."""
        try:
            with np.load(path, allow_pickle=False) as file:
                return DocumentScores(
                    tuple(file["names"].tolist()),
                    file["nll"].astype(np.float64),
                    file["tokens"].astype(np.int64),
                    file["bytes"].astype(np.int64),
                    file["source"],
                    tuple(file["sources"].tolist()),
                    str(file["data_fingerprint"]),
                )
        except (OSError, ValueError, KeyError, EOFError, RuntimeError, BadZipFile, zlib.error) as error:
            raise UserError(
                f"{path} cannot be read ({error}); make it with: python -m evaluation {path.parent}"
            ) from error


def intervals(scores: DocumentScores) -> dict[str, Any]:
    """Intervals by resampling documents (the bootstrap, Efron 1979), for the whole split ("all") and every source.

    Returns:
        By group and predictor `loss` and `bits_per_byte`, each [low, high], and but for the first predictor `behind`:
        by how many bits per byte the first one is lower, with an interval of this difference on the same documents.
    """
    found: dict[str, Any] = {}
    for group, chosen in scores.groups().items():
        nll, tokens, size = scores.nll[:, chosen], scores.tokens[:, chosen], scores.bytes[chosen]
        if not size.sum():
            continue
        sums = resampled_sums(np.concatenate([nll, tokens, size[None]]))
        count = len(scores.names)
        loss, bits = sums[:, :count] / sums[:, count:-1], sums[:, :count] / (sums[:, -1:] * np.log(2))
        exact = nll.sum(axis=1) / (size.sum() * np.log(2))
        found[group] = {}
        for number, name in enumerate(scores.names):
            entry: dict[str, Any] = {"loss": bounds(loss[:, number]), "bits_per_byte": bounds(bits[:, number])}
            if number:
                entry["behind"] = float(exact[number] - exact[0])
                entry["behind_interval"] = bounds(bits[:, number] - bits[:, 0])
            found[group][name] = entry
    return found
