"""Filters and draws on logits."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from common.errors import UserError
from inference.choosing import BatchOptions, RowState, next_ids, penalized
from inference.sampling import (
    SamplingOptions,
    draw,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalize_counts,
    penalize_repetition,
    sample_generator,
)


def logits_of(*probabilities: float) -> torch.Tensor:
    return torch.tensor([probabilities]).log()


def survivors(logits: torch.Tensor) -> list[list[int]]:
    return [row.isfinite().nonzero().flatten().tolist() for row in logits]


def test_top_k_keeps_exactly_k_and_of_equal_ones_the_lowest_ids() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0, 2.0, 3.0, 0.0], [0.0] * 6])
    assert survivors(keep_top_k(logits, 2)) == [[1, 2], [0, 1]]
    assert survivors(keep_top_k(logits, 4)) == [[1, 2, 3, 4], [0, 1, 2, 3]]
    assert torch.equal(keep_top_k(logits, 6), logits)
    assert torch.equal(keep_top_k(logits, 100), logits)


def test_top_p_keeps_one_token_when_it_alone_reaches_p() -> None:
    assert survivors(keep_top_p(logits_of(0.1, 0.6, 0.2, 0.1), 0.5)) == [[1]]
    assert survivors(keep_top_p(logits_of(0.1, 0.6, 0.2, 0.1), 1e-9)) == [[1]]


def test_top_p_keeps_the_smallest_set_that_reaches_p() -> None:
    assert survivors(keep_top_p(torch.zeros(1, 4), 0.5)) == [[0, 1]]  # exact in binary: two reach one half
    assert survivors(keep_top_p(torch.zeros(1, 4), 0.51)) == [[0, 1, 2]]
    logits = logits_of(0.125, 0.5, 0.25, 0.125)
    assert survivors(keep_top_p(logits, 0.51)) == [[1, 2]]
    assert survivors(keep_top_p(logits, 0.76)) == [[0, 1, 2]]  # of the two equal ones the lower id
    assert survivors(keep_top_p(logits, 1.0)) == [[0, 1, 2, 3]]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-20, 20), min_size=2, max_size=30), st.floats(0.01, 0.999))
def test_top_p_set_is_minimal(values: list[float], p: float) -> None:
    logits = torch.tensor([values], dtype=torch.float64)
    probability = logits.softmax(-1)[0]
    kept = keep_top_p(logits, p)[0].isfinite()
    mass = probability[kept].sum()
    assert mass >= p - 1e-9
    assert mass - probability[kept].min() < p + 1e-9  # without its least likely member it would not reach p
    if (~kept).any():
        assert probability[kept].min() >= probability[~kept].max()


def test_min_p_is_relative_to_the_likeliest() -> None:
    logits = logits_of(0.5, 0.26, 0.2, 0.04)
    assert survivors(keep_min_p(logits, 0.5)) == [[0, 1]]
    assert survivors(keep_min_p(logits, 1.0)) == [[0]]
    assert survivors(keep_min_p(logits, 0.0)) == [[0, 1, 2, 3]]


def test_repetition_penalty_lowers_positive_and_negative_logits() -> None:
    logits = torch.tensor([[2.0, -2.0, 2.0, -2.0]])
    seen = torch.tensor([[True, True, False, False]])
    assert penalize_repetition(logits, seen, 2.0).tolist() == [[1.0, -4.0, 2.0, -2.0]]


def choose(logits: torch.Tensor, options: SamplingOptions, uniforms: torch.Tensor | None = None) -> torch.Tensor:
    """One token a row, all with the same options."""
    if uniforms is None:
        uniforms = torch.rand(len(logits), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return next_ids(logits, BatchOptions([options] * len(logits)), uniforms)


def test_temperature_zero_is_argmax_whatever_the_filters() -> None:
    logits = torch.randn(8, 50, generator=torch.Generator().manual_seed(0))
    assert torch.equal(choose(logits, SamplingOptions(temperature=0, top_k=3, top_p=0.1)), logits.argmax(-1))


def test_tiny_temperature_does_not_overflow() -> None:
    assert choose(torch.tensor([[80.0, 79.0, -80.0]]), SamplingOptions(temperature=1e-30)).tolist() == [0]


def test_draw_inverts_the_cumulative_distribution() -> None:
    logits = logits_of(0.25, 0.5, 0.25).repeat(5, 1)
    assert draw(logits, torch.tensor([0.0, 0.249, 0.25, 0.749, 0.76])).tolist() == [0, 0, 1, 1, 2]


def test_impossible_ids_are_never_drawn() -> None:
    logits = torch.tensor([[-math.inf, 0.0, -math.inf, 0.0, -math.inf]]).repeat(3, 1)
    largest = 1 - 2**-53
    assert draw(logits, torch.tensor([0.0, 0.5, largest], dtype=torch.float64)).tolist() == [1, 3, 3]


def test_frequencies_are_those_of_the_distribution() -> None:
    count = 20_000
    probability = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05])
    chosen = choose(probability.log().repeat(count, 1), SamplingOptions(temperature=0.5))
    expected = probability.square() / probability.square().sum()  # temperature 1/2 squares
    found = torch.bincount(chosen, minlength=5).numpy()
    assert chisquare(found, expected.double().numpy() / expected.double().sum().item() * count).pvalue > 1e-3


def test_first_draws_of_different_samples_are_independent() -> None:
    generators = [sample_generator(3, number) for number in range(4000)]
    uniforms = torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in generators])
    found = torch.histc(uniforms, bins=10, min=0, max=1).numpy()
    assert chisquare(found).pvalue > 1e-3


def test_generators_depend_on_seed_and_number_alone() -> None:
    def first(seed: int, number: int) -> float:
        return torch.rand((), generator=sample_generator(seed, number)).item()

    assert first(5, 1) == first(5, 1) and first(5, 1) != first(6, 1)
    assert len({first(-1, number) for number in range(50)}) == 50


OPTIONS = [
    SamplingOptions(temperature=0),
    SamplingOptions(),
    SamplingOptions(temperature=0.7, top_k=5),
    SamplingOptions(temperature=1.3, top_p=0.6),
    SamplingOptions(top_k=40, top_p=0.9, min_p=0.02),
    SamplingOptions(min_p=0.1),
    SamplingOptions(top_k=1),
    SamplingOptions(temperature=0, top_k=3),
]


@pytest.mark.parametrize("ties", [False, True])
def test_rows_with_other_options_beside_them_get_what_they_get_alone(ties: bool) -> None:
    logits = 3 * torch.randn(len(OPTIONS), 3000, generator=torch.Generator().manual_seed(0))
    logits = logits.round() if ties else logits
    uniforms = torch.linspace(0.05, 0.95, len(OPTIONS), dtype=torch.float64)
    together = next_ids(logits, BatchOptions(OPTIONS), uniforms).tolist()
    for number, options in enumerate(OPTIONS):
        alone = choose(logits[number : number + 1], options, uniforms[number : number + 1])
        assert together[number] == alone.item(), options


@pytest.mark.parametrize("ties", [False, True])
def test_what_is_looked_at_first_does_not_change_the_result(ties: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Top-k looks at the likeliest tokens alone, top-p at the first part of the vocabulary; both fall back on all."""
    logits = torch.randn(300, 2000, generator=torch.Generator().manual_seed(0))
    logits = (2 * logits).round() if ties else logits
    for options in (SamplingOptions(top_k=50, top_p=0.95), SamplingOptions(top_p=0.5), SamplingOptions(top_p=0.999)):
        quick = choose(logits, options)
        with monkeypatch.context() as patched:
            patched.setattr("inference.choosing._likeliest", lambda *_: None)
            patched.setattr("inference.sampling.NUCLEUS", 2000)
            assert torch.equal(quick, choose(logits, options)), options


def test_counted_penalties_are_those_of_openai() -> None:
    counts = torch.tensor([[0.0, 1.0, 3.0]])
    found = penalize_counts(torch.tensor([[1.0, 1.0, 1.0]]), counts, frequency=0.5, presence=0.25)
    assert found.tolist() == [[1.0, 0.25, -0.75]]


def test_penalties_of_a_row_are_its_own_and_count_what_they_should() -> None:
    options = [
        SamplingOptions(),
        SamplingOptions(repetition_penalty=2.0),
        SamplingOptions(frequency_penalty=1.0, presence_penalty=0.5),
        SamplingOptions(repetition_penalty=2.0, frequency_penalty=-1.0),
    ]
    rows = [RowState(each, 0, prompt=[0, 0], vocab_size=4) for each in options]
    for row in rows:
        row.add(1)
        row.add(1)
    found = penalized(torch.tensor([[4.0, 4.0, -4.0, 4.0]]).repeat(4, 1), rows)
    assert found.tolist() == [
        [4.0, 4.0, -4.0, 4.0],
        [2.0, 2.0, -4.0, 4.0],
        [4.0, 4.0 - 2.0 - 0.5, -4.0, 4.0],  # the prompt does not count
        [2.0, 2.0 + 2.0, -4.0, 4.0],
    ]


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -0.1}, {"temperature": math.nan}, {"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}, {"min_p": 2.0},
        {"repetition_penalty": 0.0}, {"max_new_tokens": -1}, {"stop": ("",)},
        {"frequency_penalty": math.inf}, {"presence_penalty": math.nan}, {"frequency_penalty": 1e308}, {"top_k": 2**63},
        {"repetition_penalty": 1e-45}, {"repetition_penalty": 1e-160}, {"repetition_penalty": 1e39},
    ],
)  # fmt: skip
def test_options_out_of_range_are_named(values: dict[str, object]) -> None:
    flag = "--" + next(iter(values)).replace("_", "-")
    with pytest.raises(UserError, match=f"{flag} .* must be"):
        SamplingOptions(**values)  # type: ignore[arg-type]
