"""Sums over documents, and how sure figures and differences are."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from common.errors import UserError
from data_pipeline.shards import INDEX_DTYPE
from evaluation.document_scores import DocumentScores, intervals
from evaluation.perplexity import score_split
from evaluation.resampling import resampled_sums


def make_scores(
    documents: int = 200, gap: float = 0.05, seed: int = 0
) -> tuple[DocumentScores, dict[str, np.ndarray], np.ndarray]:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(5, 60, documents)
    starts = np.cumsum(lengths) - lengths
    index = np.array(list(zip(starts, lengths, lengths * 4, rng.integers(0, 2, documents), strict=True)), INDEX_DTYPE)
    hardness = np.repeat(rng.normal(3, 1, documents), lengths)  # what documents share, both models meet
    first = (hardness + rng.normal(0, 0.3, len(hardness))).astype(np.float32)
    nll = {"model": first, "near": (first + gap + rng.normal(0, 0.2, len(first))).astype(np.float32)}
    return DocumentScores.of(nll, index, ["a", "b"], "f" * 64), nll, index


def test_sums_of_documents_are_the_score_of_the_split() -> None:
    scores, nll, index = make_scores()
    for name, values in nll.items():
        expected, found = score_split(values, index, ["a", "b"]), scores.split_scores(name)
        assert found.total.loss == pytest.approx(expected.total.loss, rel=1e-6)
        assert found.total.tokens == expected.total.tokens and list(found.per_source) == ["a", "b"]
        for source, score in expected.per_source.items():
            assert found.per_source[source].bits_per_byte == pytest.approx(score.bits_per_byte, rel=1e-6)


def test_a_paired_interval_is_much_narrower_than_two_single_ones() -> None:
    entry = intervals(make_scores()[0])["all"]
    low, high = entry["model"]["bits_per_byte"]
    below, above = entry["near"]["behind_interval"]
    assert 0 < below < entry["near"]["behind"] < above
    assert above - below < (high - low) / 5
    assert entry["near"]["bits_per_byte"][0] < high  # which alone would have told nothing


def test_equal_models_differ_by_chance_only() -> None:
    found = [intervals(make_scores(gap=0.0, seed=seed)[0])["all"]["near"]["behind_interval"] for seed in range(20)]
    assert sum(low <= 0 <= high for low, high in found) >= 17


def test_intervals_cover_the_mean_as_often_as_they_say() -> None:
    """Of samples from a distribution whose mean is known, 95 in 100 intervals hold it."""
    rng, held = np.random.default_rng(3), 0
    for seed in range(200):
        values = rng.exponential(2.0, 150)
        sums = resampled_sums(np.stack([values, np.ones(150)]), 300, seed)
        low, high = np.quantile(sums[:, 0] / sums[:, 1], [0.025, 0.975])
        held += low <= 2.0 <= high
    assert 178 <= held <= 198


def test_draws_are_shared_and_repeatable() -> None:
    values = np.random.default_rng(0).random((3, 50))
    sums = resampled_sums(np.concatenate([values, 2 * values]), 100)
    np.testing.assert_allclose(sums[:, 3:], 2 * sums[:, :3])
    np.testing.assert_array_equal(sums, resampled_sums(np.concatenate([values, 2 * values]), 100))
    assert sums[:, 0].std() > 0


def test_a_file_gives_back_what_was_saved(tmp_path: Path) -> None:
    scores, _, _ = make_scores()
    scores = scores.adding("other", scores.nll[0] * 1.1, scores.tokens[0] * 2)
    scores.save(tmp_path / "scores.npz")
    loaded = DocumentScores.load(tmp_path / "scores.npz")
    assert loaded.names == ("model", "near", "other") and loaded.sources == ("a", "b")
    np.testing.assert_allclose(loaded.nll, scores.nll, rtol=1e-6)
    np.testing.assert_array_equal(loaded.tokens, scores.tokens)
    assert (tmp_path / "scores.npz").stat().st_size < 200 * 40
    found = loaded.split_scores("other").total
    bits = loaded.nll[2].sum() / (loaded.bytes.sum() * math.log(2))
    assert found.bits_per_byte == pytest.approx(bits) and found.tokens == 2 * loaded.split_scores("model").total.tokens
    with pytest.raises(UserError, match="cannot be read"):
        DocumentScores.load(tmp_path / "nothing.npz")


def test_a_damaged_file_is_told_and_no_crash(tmp_path: Path) -> None:
    path = tmp_path / "scores.npz"
    make_scores(documents=20)[0].save(path)
    whole = path.read_bytes()
    damaged = [whole[:length] for length in range(0, len(whole), 97)]
    for place in range(0, len(whole), 11):
        damaged.append(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
    refused = 0
    for content in damaged:
        path.write_bytes(content)
        try:
            DocumentScores.load(path)  # a flipped date of a member, for example, does no harm
        except UserError as error:
            refused += "cannot be read" in str(error)
    assert refused > 0.6 * len(damaged)
