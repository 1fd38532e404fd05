"""Memorisation: the longest run equals that of a slow search, and a planted copy is found."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import evaluation.memorisation as memorisation
from common.errors import UserError
from data_pipeline.shards import Shard, TokenStream
from evaluation.memorisation import longest_overlaps, measure_memorisation, nearest_similarities, training_pieces

ids = st.lists(st.integers(0, 3), min_size=1, max_size=12)


def slow_overlap(text: list[int], pieces: list[list[int]]) -> int:
    return max(
        (
            stop - start
            for start in range(len(text))
            for stop in range(start + 1, len(text) + 1)
            for piece in pieces
            if any(piece[at : at + stop - start] == text[start:stop] for at in range(len(piece)))
        ),
        default=0,
    )


@given(st.lists(ids, min_size=1, max_size=4), st.lists(ids, max_size=3))
def test_the_longest_run_is_exact(texts: list[list[int]], pieces: list[list[int]]) -> None:
    found = longest_overlaps([np.array(text) for text in texts], [np.array(piece) for piece in pieces])
    assert found.tolist() == [slow_overlap(text, pieces) for text in texts]


def test_ids_beyond_those_of_the_texts_are_no_match() -> None:
    # With base 3, the pair (0, 4) must not be taken for (1, 1).
    assert longest_overlaps([np.array([1, 1, 0, 2])], [np.array([0, 4, 0, 4])]).tolist() == [1]


@pytest.fixture
def stream(tmp_path: Path) -> TokenStream:
    """Three shards of random tokens."""
    rng, shards = np.random.default_rng(0), []
    for number, size in enumerate((4000, 2500, 3500)):
        path = tmp_path / f"train_{number:05}.bin"
        rng.integers(0, 500, size).astype("<u2").tofile(path)
        shards.append(Shard(path, size))
    return TokenStream(shards, np.dtype("<u2"))


def test_a_copy_is_found_wherever_it_lies(stream: TokenStream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memorisation, "CHUNK", 1000)
    rng = np.random.default_rng(1)
    for start in (0, 970, 3980, 6490, 9940):  # at the ends, over pieces, and over shards
        text = rng.integers(0, 500, 100)
        text[20:80] = stream.read(start, 60)
        (found,) = measure_memorisation([[text.tolist(), rng.integers(0, 500, 100).tolist()]], stream, limit=10**6)
        assert found is not None
        assert 60 <= found.longest_max <= 62
        assert found.verbatim == 0.5 and found.training_tokens == len(stream)
        assert 30 <= found.longest_mean < 34


def test_a_limit_takes_even_parts(stream: TokenStream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memorisation, "CHUNK", 1000)
    pieces = list(training_pieces(stream, 3000, 50))
    assert [len(piece) for piece in pieces] == [1000] * 3
    assert np.array_equal(pieces[0], stream.read(0, 1000)) and np.array_equal(pieces[-1], stream.read(9000, 1000))
    whole = list(training_pieces(stream, 10**6, 50))
    assert [len(piece) for piece in whole] == [1050] * 9 + [1000]


def test_similarity_is_near_that_of_the_sets() -> None:
    pytest.importorskip("datasketch")
    rng = np.random.default_rng(2)
    passage, other = rng.integers(0, 500, 204), rng.integers(0, 500, 204)
    half = np.concatenate([passage[:104], rng.integers(0, 500, 100)])  # 100 of 200 shingles of each, 300 in all
    found = nearest_similarities([passage, half, rng.integers(0, 500, 204)], [other, passage])
    assert found.tolist() == pytest.approx([1, 1 / 3, 0], abs=0.12)
    assert nearest_similarities([passage], []).tolist() == [0]
    assert nearest_similarities([passage[:2]], [passage[:2]]).tolist() == [1]


def test_a_loose_copy_has_no_long_run_but_is_similar(stream: TokenStream) -> None:
    pytest.importorskip("datasketch")
    copy = stream.read(3000, 100)
    copy[::20] = 501  # every twentieth token is another
    free = np.random.default_rng(3).integers(0, 500, 100)
    loose, unlike = measure_memorisation([[copy.tolist()], [free.tolist()]], stream, 10**6)
    assert loose is not None and unlike is not None
    assert loose.longest_max < 50 and loose.verbatim == 0
    assert loose.nearest_max > 0.4 > 0.1 > unlike.nearest_max  # type: ignore[operator]
    assert loose.passages == 100


def test_without_datasketch_there_is_no_similarity(stream: TokenStream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasketch", None)
    (found,) = measure_memorisation([[stream.read(0, 20).tolist()]], stream, 10**6)
    assert found is not None and (found.nearest_mean, found.passages, found.longest_max) == (None, 0, 20)
    with pytest.raises(UserError, match=r"pip install -c constraints.txt -e '\.\[metrics\]'"):
        nearest_similarities([np.arange(9)], [np.arange(9)])


def test_empty_texts_have_none(stream: TokenStream) -> None:
    assert measure_memorisation([[[], []], []], stream, 100) == [None, None]
    none, found = measure_memorisation([[[]], [[], stream.read(7, 9).tolist()]], stream, 100)
    assert none is None and found is not None and found.longest_mean == found.longest_max == 9
