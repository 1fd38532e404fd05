"""Medians and spreads of alternating rounds, as a table for people and as JSON for scripts."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

Measurement = dict[str, float]
Spread = dict[str, float]
"""Median, smallest and largest."""


def alternate(
    variants: Mapping[str, Callable[[], Measurement]], rounds: int, warm_up: bool = True
) -> dict[str, list[Measurement]]:
    """Run every variant once a round, so that a machine that slows down slows all of them; a first round warms up."""
    results: dict[str, list[Measurement]] = {name: [] for name in variants}
    for number in range(rounds + warm_up):
        for name, measure in variants.items():
            measured = measure()
            if number or not warm_up:
                results[name].append(measured)
    return results


def number(value: float) -> str:
    """Three significant digits, or all of a large whole number."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def spread_of(values: list[float]) -> Spread:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def spreads(rounds: list[Measurement]) -> dict[str, Spread | None]:
    """Of every figure."""
    return {figure: spread_of([measured[figure] for measured in rounds]) for figure in rounds[0]}


def ratios(mine: list[Measurement], others: list[Measurement], figure: str) -> Spread:
    """Round by round: both halves of a ratio then saw the same machine."""
    return spread_of([one[figure] / other[figure] for one, other in zip(mine, others, strict=True)])


def cell(spread: Spread | None) -> str:
    """`median (minimum to maximum)`."""
    if spread is None:
        return "n/a"
    middle, low, high = (number(spread[key]) for key in ("median", "min", "max"))
    return middle if low == high else f"{middle} ({low} to {high})"


def report(title: str, results: dict[str, list[Measurement]], ratio_of: str, json_file: str | None) -> None:
    """Print every figure of every variant, and each variant's ratio of `ratio_of` to the first.

    A figure that a variant does not have is "n/a" in the table and null in the file.
    """
    base = next(iter(results.values()))
    rows: dict[str, dict[str, Any]] = {}
    for name, rounds in results.items():
        rows[name] = {
            figure: spread_of([measured[figure] for measured in rounds]) if figure in rounds[0] else None
            for figure in base[0]
        }
        rows[name][f"{ratio_of}, ratio to first"] = ratios(rounds, base, ratio_of)
    table = Table("", *rows, title=title, title_justify="left")
    for figure in next(iter(rows.values())):
        table.add_row(figure, *(cell(row[figure]) for row in rows.values()))
    print_wide(table)
    if json_file:
        Path(json_file).write_text(json.dumps({"title": title, "variants": rows}, indent=2) + "\n", encoding="utf-8")


def show(title: str, rows: Mapping[str, Mapping[str, Spread | None]]) -> None:
    """Print a table with a line a variant; a figure that only others have is "n/a"."""
    figures = list(dict.fromkeys(figure for row in rows.values() for figure in row))
    table = Table("", *figures, title=title, title_justify="left")
    for name, row in rows.items():
        table.add_row(name, *(cell(row.get(figure)) for figure in figures))
    print_wide(table)


def print_wide(table: Table) -> None:
    console = Console()
    console = console if console.is_terminal else Console(width=200)  # a file has no width to keep to
    console.print(table)
