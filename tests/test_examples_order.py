"""The order of examples and which share a row: nothing is lost, nothing is cut, and it is the same every time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import UserError
from data_pipeline.examples.order import length_grouped, pack, shuffled

LENGTHS = st.lists(st.integers(1, 60), max_size=200).map(lambda lengths: np.array(lengths, np.int64))


@given(st.integers(0, 300), st.integers(0, 5), st.integers(0, 5))
def test_every_example_comes_once_an_epoch(count: int, seed: int, epoch: int) -> None:
    order = shuffled(count, seed, epoch)
    assert sorted(order.tolist()) == list(range(count))
    assert (order == shuffled(count, seed, epoch)).all()


def test_another_seed_or_epoch_is_another_order() -> None:
    orders = {tuple(shuffled(50, seed, epoch).tolist()) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9
    lengths = np.arange(1, 51)
    grouped = {tuple(length_grouped(lengths, 2, seed, epoch).tolist()) for seed in range(3) for epoch in range(3)}
    assert len(grouped) == 9


@given(LENGTHS, st.integers(1, 16), st.integers(0, 3), st.integers(0, 3))
def test_length_groups_hold_every_example_longest_first(lengths: np.ndarray, batch: int, seed: int, epoch: int) -> None:
    order = length_grouped(lengths, batch, seed, epoch)
    assert sorted(order.tolist()) == list(range(len(lengths)))
    assert (order == length_grouped(lengths, batch, seed, epoch)).all()
    chunk = max(1, min(len(lengths) // (4 * batch), 50)) * batch
    for start in range(0, len(lengths), chunk):
        assert (np.diff(lengths[order[start : start + chunk]]) <= 0).all()
    assert not len(lengths) or lengths[order[0]] == lengths.max()


def test_batches_of_equal_length_save_padding() -> None:
    lengths = np.random.default_rng(0).integers(10, 500, 4000)

    def padded(order: np.ndarray) -> int:
        return sum(len(part) * int(part.max()) for part in np.split(lengths[order], range(8, len(order), 8)))

    assert padded(length_grouped(lengths, 8, 0, 0)) < 1.05 * lengths.sum()
    assert padded(shuffled(len(lengths), 0, 0)) > 1.5 * lengths.sum()
    # Fifty batches are sorted, not all: what is short does not come last.
    chunks = np.split(lengths[length_grouped(lengths, 8, 0, 0)], 10)
    assert all(abs(chunk.mean() - lengths.mean()) < 40 for chunk in chunks)


@given(LENGTHS, st.integers(60, 130))
def test_rows_hold_every_example_whole(lengths: np.ndarray, capacity: int) -> None:
    rows = pack(lengths, capacity)
    assert sorted(number for row in rows for number in row) == list(range(len(lengths)))
    filled = [int(lengths[row].sum()) for row in rows]
    assert all(row for row in rows) and all(fill <= capacity for fill in filled)
    # Whatever opened a row fitted in none before it, so no two rows would fit in one.
    assert all(a + b > capacity for n, a in enumerate(filled) for b in filled[:n])
    assert rows == pack(lengths.copy(), capacity)


def best_fit_by_hand(lengths: list[int], capacity: int) -> list[int]:
    """How full the rows are, by looking through all of them for every example."""
    filled: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [fill for fill in filled if fill + length <= capacity]
        if fitting:
            filled[filled.index(max(fitting))] += length
        else:
            filled.append(length)
    return sorted(filled)


@given(LENGTHS, st.integers(60, 130))
def test_each_goes_where_it_leaves_least_room(lengths: np.ndarray, capacity: int) -> None:
    found = sorted(int(lengths[row].sum()) for row in pack(lengths, capacity))
    assert found == best_fit_by_hand(lengths.tolist(), capacity)


def first_fit(lengths: list[int], capacity: int) -> int:
    filled: list[int] = []
    for length in lengths:
        place = next((n for n, fill in enumerate(filled) if fill + length <= capacity), None)
        if place is None:
            filled.append(length)
        else:
            filled[place] += length
    return len(filled)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("spread", ["uniform", "short", "two sizes"])
def test_rows_are_as_few_as_first_fit_needs(seed: int, spread: str) -> None:
    rng = np.random.default_rng(seed)
    lengths = {
        "uniform": rng.integers(1, 513, 600),
        "short": np.minimum(512, rng.lognormal(4.5, 0.7, 600).astype(int) + 1),
        "two sizes": rng.choice([130, 300], 600),
    }[spread]
    rows = len(pack(lengths, 512))
    assert rows <= first_fit(lengths.tolist(), 512)
    assert -(-int(lengths.sum()) // 512) <= rows


def test_rows_by_hand() -> None:
    assert pack(np.array([5, 9, 1, 4, 10, 1]), 10) == [[4], [1, 5], [0, 3, 2]]
    assert pack(np.array([], np.int64), 10) == []


def test_an_example_longer_than_a_row_is_refused() -> None:
    with pytest.raises(UserError, match="1,200 tokens does not fit in a packed row of 1,024"):
        pack(np.array([3, 1200]), 1024)


def test_many_examples_are_packed_at_once() -> None:
    lengths = np.random.default_rng(0).integers(1, 2049, 20_000)
    rows = pack(lengths, 2048)
    assert lengths.sum() / (len(rows) * 2048) > 0.99
