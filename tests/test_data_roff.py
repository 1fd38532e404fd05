"""Manual pages that mean harm; what a sound one says is tested with the packages that they come in."""

from __future__ import annotations

import time

import pytest

from data_pipeline.sources.roff import manual_text


@pytest.mark.parametrize("unit", [r"\f[", r"\m[", r"\s[", r"\s'", r"\h'", r"\[", r"\*["])
def test_escapes_without_an_end_take_time_in_proportion(unit: str) -> None:
    def seconds(size: int) -> float:
        page = f".TH A 1\n{unit * (size // len(unit))}\n"
        started = time.process_time()
        manual_text(page)
        return time.process_time() - started

    assert seconds(80_000) < 8 * seconds(20_000) + 0.01  # four times as a rule, and sixteen where it is quadratic


@pytest.mark.parametrize(
    ("source", "text"),
    [
        (r"a \f[CB]bold\f[] \m[red]and\m[] \s[10]big\s0", "a bold and big"),
        (r"\[em] \*[x]\[lq]b\[rq]\h'2n'\X'tty: link'c", "— “b”c"),
        (r"an \f[end that never comes", "an end that never comes"),
    ],
)
def test_escapes_are_read_or_left_out(source: str, text: str) -> None:
    assert manual_text(f".TH A 1\n.PP\n{source}\n") == text
