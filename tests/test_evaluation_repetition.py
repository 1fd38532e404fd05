"""Repetition: each measure equals what a slow count finds, and a loop is told from a text that merely repeats words."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.repetition import Loop, find_loop, measure_loops, rep_n, rep_w

PROSE = (
    "The river rises in the hills and falls slowly to the sea. Fishermen leave before dawn, while fog still hides the "
    "boats, and come back with full nets. On the square a woman sells oranges, bread and flowers; children chase a dog."
)


def slow_loop(tokens: list[str], rounds: int, shortest: int) -> Loop | None:
    """Every length and every period, longest first."""
    for length in range(len(tokens), shortest - 1, -1):
        end = tokens[-length:]
        for period in range(1, length // rounds + 1):
            if all(end[place] == end[place - period] for place in range(period, length)):
                return Loop(period, length)
    return None


@given(st.lists(st.sampled_from("ab"), max_size=40), st.integers(2, 4), st.integers(1, 6))
def test_a_loop_is_the_longest_periodic_end(tokens: list[str], rounds: int, shortest: int) -> None:
    assert find_loop(tokens, rounds, shortest) == slow_loop(tokens, rounds, shortest)


def test_loops_by_hand() -> None:
    assert find_loop("start a b c".split() + "x y z w".split() * 3) == Loop(4, 12)
    assert find_loop("start".split() + "x y z w".split() * 3 + ["x"]) == Loop(4, 13)  # the last round is cut short
    assert find_loop("x y z w".split() * 3 + ["end"]) is None
    assert find_loop(["!"] * 11) is None and find_loop(["!"] * 12) == Loop(1, 12)
    assert find_loop([]) is None


def test_rep_n() -> None:
    assert rep_n("a b a b a".split(), 2) == 1 - 2 / 4
    assert rep_n("a b c d".split(), 4) == 0
    assert rep_n("a b".split(), 4) is None


@given(st.lists(st.lists(st.sampled_from("abcdef"), max_size=30), max_size=4), st.integers(1, 8))
def test_rep_w_equals_looking_back(texts: list[list[str]], window: int) -> None:
    repeated = [
        token in tokens[max(0, place - window) : place] for tokens in texts for place, token in enumerate(tokens)
    ]
    assert rep_w(texts, window) == (pytest.approx(sum(repeated) / len(repeated)) if repeated else None)


def test_a_loop_stands_out_in_every_measure() -> None:
    loop = "The river is long. " * 12
    prose, looping = (measure_loops([text.split()], [text]) for text in (PROSE, loop))
    assert prose.looping == 0 and looping.looping == 1
    for name in ("rep_2", "rep_3", "seq_rep_4", "rep_w"):
        assert getattr(prose, name) < 0.4 < 0.9 < getattr(looping, name)
    assert prose.compression_ratio < 2 < 5 < looping.compression_ratio  # type: ignore[operator]
    assert (prose.texts, prose.tokens) == (1, len(PROSE.split()))


def test_measures_of_several_texts_are_means_over_them() -> None:
    texts = ["a a a a a".split(), "b c d e f".split(), []]
    found = measure_loops(texts, [" ".join(text) for text in texts])
    assert found.seq_rep_4 == (1 - 1 / 2) / 2
    assert found.rep_w == 4 / 10
    assert (found.texts, found.tokens) == (3, 10)


def test_nothing_has_no_figures() -> None:
    found = measure_loops([[]], [""])
    assert (found.rep_2, found.rep_w, found.looping, found.compression_ratio) == (None,) * 4


def test_repetition_grows_with_the_share_of_loops() -> None:
    rng = random.Random(0)
    free = [[rng.randrange(1000) for _ in range(60)] for _ in range(8)]
    loops = [[rng.randrange(1000)] * 60 for _ in range(8)]
    shares = [measure_loops(free[:k] + loops[k:], [""] * 8).seq_rep_4 for k in (8, 4, 0)]
    assert shares == sorted(shares) and shares[0] < 0.01 < 0.9 < shares[2]  # type: ignore[type-var, operator]
