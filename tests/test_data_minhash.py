"""MinHash signatures, shingles and similarity."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_data_helpers import prose, replace_words, shingle_set

from data_pipeline.dedup import minhash


def random_sets(seed: int, count: int) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    sizes = generator.integers(1, 400, count)
    sizes[:3] = (1, 2, 250_000)  # the largest takes more than one block
    return [np.unique(generator.integers(0, 1 << 32, size, dtype=np.uint64)).astype(np.uint32) for size in sizes]


@pytest.mark.parametrize("seed", [1, 7])
def test_signatures_equal_those_of_datasketch(seed: int) -> None:
    datasketch = pytest.importorskip("datasketch")
    sets = random_sets(seed, 40)
    sizes = np.array([len(items) for items in sets])
    ours = minhash.signatures(np.concatenate(sets), np.cumsum(sizes) - sizes, count=112, seed=seed)
    theirs = datasketch.MinHash.bulk(
        [items.tolist() for items in sets], num_perm=112, seed=seed, hashfunc=int, scheme="affine32"
    )
    assert ours.dtype == np.uint32
    for row, reference in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(row, reference.hashvalues)


def test_signatures_estimate_the_similarity() -> None:
    one = shingle_set(prose(1, 900), 5)
    other = shingle_set(replace_words(prose(1, 900), 5, 30), 5)
    true = minhash.jaccard(one, other)
    rows = minhash.sketch([one, other], 512)
    assert 0.6 < true < 0.9
    assert abs(float((rows[0] == rows[1]).mean()) - true) < 0.08


def test_shingles_ignore_case_and_layout_but_not_order() -> None:
    text = "One two three four five six seven"
    same = shingle_set("one  TWO, three\nfour: five six seven!", 5)
    np.testing.assert_array_equal(shingle_set(text, 5), same)
    assert len(same) == 3
    backwards = shingle_set(" ".join(reversed(text.split())), 5)
    assert not np.intersect1d(same, backwards).size


@pytest.mark.parametrize("text", ["", "...", "word", "two words", "四字成語 很好"])
def test_short_texts_have_one_shingle(text: str) -> None:
    shingles = shingle_set(text, 5)
    assert shingles.shape == (1,) and shingles.dtype == np.uint64
    assert minhash.jaccard(shingles, shingle_set(text, 5)) == 1.0


@given(st.lists(st.text(st.sampled_from("ab_1 .-\né中"), max_size=30), min_size=1, max_size=5), st.integers(1, 4))
def test_shingles_of_many_texts_are_those_of_each(texts: list[str], words: int) -> None:
    """Two runs of words have one hash exactly where the words are equal, wherever they stand."""
    found = minhash.shingles(texts, words)
    names: dict[int, tuple[str, ...]] = {}
    for text, hashes in zip(texts, found, strict=True):
        inside = re.findall(r"\w+", text.lower())
        size = min(words, len(inside))
        runs = [tuple(inside[start : start + size]) for start in range(len(inside) - size + 1)] if size else [()]
        assert len(runs) == len(hashes)
        for run, value in zip(runs, hashes.tolist(), strict=True):
            assert names.setdefault(value, run) == run
    assert len(set(names.values())) == len(names)


def test_jaccard_is_that_of_the_sets() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        one = np.unique(generator.integers(0, 60, 40, dtype=np.uint64))
        other = np.unique(generator.integers(0, 60, 40, dtype=np.uint64))
        expected = len(set(one.tolist()) & set(other.tolist())) / len(set(one.tolist()) | set(other.tolist()))
        assert minhash.jaccard(one, other) == pytest.approx(expected)
        assert minhash.overlaps(one, [other, one]).tolist() == [minhash.overlap(one, other), len(one)]


def test_bands_agree_exactly_where_rows_agree() -> None:
    generator = np.random.default_rng(3)
    signature = generator.integers(0, 1 << 32, (2, 12), dtype=np.uint32)
    signature[1, 4:8] = signature[0, 4:8]
    keys = minhash.band_keys(signature, bands=3, rows=4)
    assert (keys[0] == keys[1]).tolist() == [False, True, False]


def test_exact_key_sees_words_only() -> None:
    assert minhash.exact_key("A  b\nc") == minhash.exact_key("a b C")
    assert minhash.exact_key("a b c") != minhash.exact_key("a b, c")
