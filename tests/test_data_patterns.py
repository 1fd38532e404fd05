"""No regular expression goes back and forth: twice the text takes about twice the time, whatever it is made of."""

from __future__ import annotations

import importlib
import pkgutil
import re
import time
from collections import deque
from collections.abc import Callable

import pytest

from data_pipeline import examples, sources
from data_pipeline.quality.words import split_piece
from data_pipeline.report import clusters
from data_pipeline.sources import layout, wikitext
from data_pipeline.tokenizer_training import chunks

MODULES = (
    *("cleaning", "masking", "dedup.paragraphs"),
    *("quality.code_signals", "quality.prose_signals", "quality.words"),
    *(f"sources.{module.name}" for module in pkgutil.iter_modules(sources.__path__)),
    *(f"examples.{module.name}" for module in pkgutil.iter_modules(examples.__path__)),
)
# These only see lines of at most 80 characters, twenty characters, or pieces of at most a thousand.
BOUNDED = {"_BOILERPLATE", "_NO_ADDRESS", "_URL", "_CONTRACTION", "_SUFFIX"}
# These are only looked for at the beginning.
ANCHORED = {"_REQUIREMENT", "_REDIRECT", "_DISAMBIGUATION", "_BODY", "LABEL"}
# What has to stand before a pattern looks any further.
BEGINNINGS = {
    "examples.chat_text._HEADER": "<|start_header_id|>",
    "sources.debian._LICENCE": "License: a",
    "sources.html._CHARSET": "charset",
    "sources.html._META": "<meta ",
    "sources.licences._SPDX": "SPDX-License-Identifier: MIT",
    "sources.licences._SPELLED": "general",
    "sources.wikitext._HEADING": "==a",
    "examples.chat_text._BODY": "<|eot_id|>",
    "examples.text_files.LABEL": "question",
}
UNITS = (
    *("(", "[", "{{", ")", " ", "\n", "\t", ".", ",", ":", "-", "—", "…", "1", "a", "A", "é", "_", "'", '"', "`", "\\"),
    *("<", "#", "/", "@", "*", "=", "( ", ", ", "1.", "1 ", "a.", "a@", "a:", "/*", "{{ "),
)


def patterns() -> dict[str, re.Pattern[str]]:
    found = {}
    for module in MODULES:
        for name, value in vars(importlib.import_module(f"data_pipeline.{module}")).items():
            if isinstance(value, re.Pattern) and name not in BOUNDED:
                found[f"{module}.{name}"] = value
    return found


def seconds(function: Callable[[str], object], text: str) -> float:
    """The shorter of two runs, in seconds of this process."""
    times = []
    for _ in range(2):
        started = time.process_time()
        function(text)
        times.append(time.process_time() - started)
    return min(times)


def grows_evenly(function: Callable[[str], object], unit: str, before: str, after: str, size: int) -> bool:
    """Whether four times as long a text takes less than ten times as long; quadratic would be sixteen."""
    small, large = (f"{before}{unit * (count // len(unit))}{after}" for count in (size, 4 * size))
    return seconds(function, large) < 10 * max(seconds(function, small), 0.0005)


@pytest.mark.parametrize("name", patterns())
def test_the_time_of_a_pattern_grows_with_the_text(name: str) -> None:
    pattern = patterns()[name]

    def search(text: str) -> None:
        if name.rpartition(".")[2] in ANCHORED:
            pattern.match(text)
            pattern.fullmatch(text)
        else:
            deque(pattern.finditer(text if isinstance(pattern.pattern, str) else text.encode()), 0)

    around = [("", ""), ("word", "word"), (BEGINNINGS.get(name, "word "), "word")]
    assert not [unit for unit in UNITS for ends in around if not grows_evenly(search, unit, *ends, 1000)]


@pytest.mark.parametrize("unit", ["—", "…", "_", "@", "a@", "a.", "(", "a-", "'"])
def test_the_time_of_cutting_a_piece_grows_with_the_piece(unit: str) -> None:
    assert grows_evenly(split_piece, unit, "", "a.b", 4000)
    assert "".join(split_piece(unit * 3000 + "a.b")) == unit * 3000 + "a.b"


def test_the_time_of_comparing_texts_grows_with_their_spaces() -> None:
    assert grows_evenly(lambda text: clusters.compare(text, "other words"), " ", "word", "word", 2000)


def test_the_time_of_cutting_a_line_for_the_tokenizer_grows_with_the_line() -> None:
    assert grows_evenly(lambda text: deque(chunks(text), 0), "word ", "", "", 250_000)


def test_the_time_of_a_heading_grows_with_its_spaces() -> None:
    def text(page: str) -> str:
        return wikitext.plain_text(page, wikitext.Site())

    assert grows_evenly(text, " ", "Text.\n== Notes", "and sources ==\nA line.", 4000)
    assert text("Text.\n== Notes   and  sources ==\nA line.") == "Text."


def test_the_time_of_a_page_grows_with_its_spaces() -> None:
    assert grows_evenly(lambda text: layout.manual_page(text.encode()), " ", "<pre>a", "b</pre>", 8000)
