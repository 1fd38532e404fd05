"""Documents that hold evaluation texts: a model that was trained on them could no longer be judged by these.

After GPT-3 (Brown et al. 2020, appendix C): texts are compared by runs of 13 words, and runs that stand in many
documents say nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from common.files import atomic_write
from data_pipeline.config import DecontaminationConfig
from data_pipeline.dedup.evaluation_index import EvaluationIndex
from data_pipeline.dedup.sketches import Sketches
from data_pipeline.documents import read_rows, write_row

# Files of the stage that finds duplicates.
CONTAMINATED = "all.contamination.jsonl"
COMMON = "all.common_ngrams.jsonl"


def find_contaminated(
    sketches: Sketches, index: EvaluationIndex, config: DecontaminationConfig, verdicts: np.ndarray, directory: Path
) -> np.ndarray:
    """The numbers of the documents without a verdict that hold an evaluation text.

    `contamination.jsonl` tells of each which text it holds, and `common_ngrams.jsonl` which n-grams were in too many
    documents to count. They are counted when near duplicates are gone: copies of a page are no sign of boilerplate.
    """
    matches = sketches.matches()
    matches = matches[verdicts[matches["document"]] == 0]
    copies = np.bincount(matches["ngram"], minlength=len(index.ngrams))
    hits = _hits(matches[copies[matches["ngram"]] <= config.max_documents], index)
    wanted = np.minimum(config.min_matches, np.bincount(index.places["text"]))[hits["text"]]
    hits = hits[hits["matches"] >= wanted]
    # Of each document the text of which it holds most.
    hits = hits[np.lexsort((hits["text"], -hits["matches"], hits["document"]))]
    hits = hits[np.unique(hits["document"], return_index=True)[1]]
    ids = sketches.ids(hits["document"].tolist())
    rows = ({"document": ids[document], "matches": count} for document, _, count, _ in hits.tolist())
    _write(directory / CONTAMINATED, index, hits["place"], rows)
    common = np.flatnonzero(copies > config.max_documents)
    places = np.searchsorted(index.places["ngram"], common)
    _write(directory / COMMON, index, places, ({"documents": count} for count in copies[common].tolist()))
    return np.asarray(hits["document"])


def _hits(matches: np.ndarray, index: EvaluationIndex) -> np.ndarray:
    """For each document and text how many n-grams they share, and the place of the first of these in `places`."""
    first = np.searchsorted(index.places["ngram"], matches["ngram"], side="left")
    count = np.searchsorted(index.places["ngram"], matches["ngram"], side="right") - first
    rows = np.empty(int(count.sum()), [("document", "<i8"), ("text", "<i8"), ("position", "<u4"), ("place", "<i8")])
    rows["document"] = np.repeat(matches["document"], count)
    rows["place"] = np.repeat(first - (np.cumsum(count) - count), count) + np.arange(len(rows))
    rows["text"], rows["position"] = (index.places[name][rows["place"]] for name in ("text", "position"))
    rows.sort(order=("document", "text", "position"))
    new = np.flatnonzero(np.diff(rows["document"], prepend=-1) | np.diff(rows["text"], prepend=-1))
    result = np.empty(len(new), [("document", "<i8"), ("text", "<i8"), ("matches", "<i8"), ("place", "<i8")])
    for name in ("document", "text", "place"):
        result[name] = rows[name][new]
    result["matches"] = np.diff(new, append=len(rows))
    return result


def _write(path: Path, index: EvaluationIndex, places: np.ndarray, rows: Iterable[dict[str, Any]]) -> None:
    """Write the rows, each with the evaluation text at its place and the words of the n-gram there."""
    chosen = index.places[places]
    wanted = set(chosen["text"].tolist())
    texts = {number: row for number, row in enumerate(read_rows(index.texts)) if number in wanted} if wanted else {}
    with atomic_write(path) as file:
        for row, (ngram, text, position) in zip(rows, chosen.tolist(), strict=True):
            words = re.findall(r"\w+", texts[text]["text"].lower())
            run = words[position : position + int(index.ngrams["words"][ngram])]
            write_row(file, {**row, "evaluation": texts[text]["origin"], "words": " ".join(run)})
