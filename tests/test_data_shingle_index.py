"""The index of held-out shingles against counting every pair."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_pipeline.dedup.minhash import overlap
from data_pipeline.dedup.shingle_index import ShingleIndex


def random_sets(generator: np.random.Generator, count: int) -> list[np.ndarray]:
    """Sets of very different sizes over few and many elements, some of which hold a common template."""
    template = np.arange(1000, 1030)
    sets = []
    for _ in range(count):
        own = generator.integers(0, generator.choice([40, 400]), generator.integers(1, 60))
        sets.append(np.unique([*own, *(template if generator.random() < 0.3 else [])]).astype(np.uint64))
    return sets


@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.3, 0.5, 0.7, 1.0, 1.5])
def test_related_sets_are_those_that_share_enough(tmp_path: Path, threshold: float) -> None:
    generator = np.random.default_rng(int(100 * threshold))
    sets = random_sets(generator, 80)
    ShingleIndex.build(sets, threshold).save(tmp_path / "some")
    index = ShingleIndex.load(tmp_path / "some")
    found = 0
    for own in random_sets(generator, 80):
        shared = [overlap(own, other) for other in sets]
        limits = [threshold * min(len(own), len(other)) for other in sets]
        expected = [number for number in range(len(sets)) if 0 < shared[number] >= limits[number]]
        assert index.related(own, threshold).tolist() == expected
        found += len(expected)
    assert found > 20 or threshold > 1


def test_nothing_is_related_to_no_sets(tmp_path: Path) -> None:
    ShingleIndex.build([], 0.5).save(tmp_path / "none")
    assert len(ShingleIndex.load(tmp_path / "none").related(np.arange(5, dtype=np.uint64), 0.5)) == 0
