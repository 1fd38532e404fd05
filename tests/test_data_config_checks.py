"""Values that make no sense are refused with their names, before any work."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, get_args, get_type_hints

import pytest

from common.cli import to_dict
from common.errors import UserError
from data_pipeline.config import DataConfig
from data_pipeline.config_checks import RANGES, SOURCE_RANGES, check
from data_pipeline.report.rules import flatten
from data_pipeline.sources.config import PackagedWikipedia, PythonCode, Source, TextFiles, WebPages


def changed(name: str, value: Any) -> DataConfig:
    """The default config with one field set, given its dotted name."""

    def change(part: Any, names: list[str]) -> Any:
        inner = change(getattr(part, names[0]), names[1:]) if len(names) > 1 else value
        return replace(part, **{names[0]: inner})

    config: DataConfig = change(DataConfig(), name.split("."))
    return config


def test_every_number_has_a_range() -> None:
    config = flatten({name: value for name, value in to_dict(DataConfig()).items() if name != "sources"})
    may_be_none = {"filters.max_length", "filters.prose.max_bits_per_character", "shards.target_tokens"}
    seeds = {"split.seed", "shards.seed"}
    numbers = {
        name
        for name, value in config.items()
        for item in (value if isinstance(value, list) else [value])
        if isinstance(item, int | float) and not isinstance(item, bool)
    }
    listed = [name for names in RANGES.values() for name in names]
    assert sorted(listed) == sorted(numbers - seeds | may_be_none) == sorted(set(listed))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("split.leak_threshold", 50.0, "above 0 and at most 1"),
        ("split.validation_fraction", 1.0, "above 0 and below 1"),
        ("deduplication.threshold", 0.0, "above 0 and at most 1"),
        ("decontamination.max_documents", 0, "at least 1"),
        ("cleaning.max_blank_lines", -1, "at least 0"),
        ("filters.prose.max_bits_percentile", -5.0, "at least 0 and at most 100"),
        ("filters.prose.max_short_lines", math.nan, "at least 0 and at most 1"),
        ("shards.target_tokens", 0, "at least 1"),
    ],
)
def test_a_value_outside_its_range_is_named(name: str, value: float, message: str) -> None:
    with pytest.raises(UserError) as error:
        check(changed(name, value))
    assert str(error.value) == f"{name} is {value}; it must be {message}"


def test_every_number_of_a_source_has_a_range() -> None:
    numbers = {
        name
        for kind in get_args(Source)
        for name, hint in get_type_hints(kind).items()
        if {int, float} & {hint, *get_args(hint)}
    }
    listed = [name for names in SOURCE_RANGES.values() for name in names]
    assert sorted(listed) == sorted(numbers - {"namespaces"}) == sorted(set(listed))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (WebPages(urls=("https://a.example/",), timeout=-1), "timeout is -1; it must be above 0 and at most 86400"),
        (WebPages(urls=("https://a.example/",), delay=-0.5), "delay is -0.5; it must be at least 0 and at most 86400"),
        (PackagedWikipedia(max_bytes=0), "max_bytes is 0; it must be at least 1"),
        (PythonCode(max_package_share=0), "max_package_share is 0; it must be above 0 and at most 1"),
    ],
)
def test_a_number_of_a_source_outside_its_range_is_named(source: Source, message: str) -> None:
    with pytest.raises(UserError) as error:
        check(DataConfig(sources=(TextFiles(patterns=("*.txt",)), source)))
    assert str(error.value) == f"sources[1].{message}"


def test_no_source_has_the_name_of_them_all() -> None:
    with pytest.raises(UserError, match="the name 'all' stands for all sources together"):
        check(DataConfig(sources=(TextFiles(patterns=("*.txt",), name="all"),)))


def test_items_of_a_tuple_are_checked_too() -> None:
    with pytest.raises(UserError, match=r"filters.prose.max_duplicate_ngrams\[1\] is 1.5; it must be at least 0 and"):
        check(changed("filters.prose.max_duplicate_ngrams", (0.1, 1.5, 0.1, 0.1, 0.1, 0.1)))


@pytest.mark.parametrize(
    ("name", "value"),
    [("split.leak_threshold", 1.0), ("cleaning.max_blank_lines", 0), ("filters.prose.max_bits_percentile", 100.0)],
)
def test_the_ends_of_a_range_belong_to_it(name: str, value: float) -> None:
    check(changed(name, value))
