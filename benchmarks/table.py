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


def alternate(variants: Mapping[str, Callable[[], Measurement]], rounds: int) -> dict[str, list[Measurement]]:
    """Run every variant once a round, so that a machine that slows down slows all of them; one round warms up."""
    results: dict[str, list[Measurement]] = {name: [] for name in variants}
    for number in range(rounds + 1):
        for name, measure in variants.items():
            measured = measure()
            if number:
                results[name].append(measured)
    return results


def number(value: float) -> str:
    """Three significant digits, or all of a large whole number."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def report(title: str, results: dict[str, list[Measurement]], ratio_of: str, json_file: str | None) -> None:
    """Print median (minimum to maximum) of every figure, and each variant's median ratio of `ratio_of` to the first."""
    first = next(iter(results))
    rows: dict[str, dict[str, Any]] = {}
    table = Table("variant", *results[first][0], f"{ratio_of}, ratio to first", title=title, title_justify="left")
    for name, rounds in results.items():
        cells, row = [], {}
        for figure in rounds[0]:
            values = [measured[figure] for measured in rounds]
            row[figure] = {"median": statistics.median(values), "min": min(values), "max": max(values)}
            cells.append(f"{number(statistics.median(values))} ({number(min(values))} to {number(max(values))})")
        # Round by round: both halves of a ratio then saw the same machine.
        ratios = [mine[ratio_of] / base[ratio_of] for mine, base in zip(rounds, results[first], strict=True)]
        row["ratio"] = {"median": statistics.median(ratios), "min": min(ratios), "max": max(ratios)}
        table.add_row(name, *cells, f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
        rows[name] = row
    console = Console()
    console = console if console.is_terminal else Console(width=200)  # a file has no width to keep to
    console.print(table)
    if json_file:
        Path(json_file).write_text(json.dumps({"title": title, "variants": rows}, indent=2) + "\n", encoding="utf-8")
