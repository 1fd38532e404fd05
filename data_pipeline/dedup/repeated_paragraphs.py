"""Which paragraphs go because they stand in a better document too.

Documents are visited best first, so that a paragraph stays in the best document that stays itself. One that would be
left a torso is dropped whole, and nothing that it holds is then taken out of another.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from data_pipeline.config import DeduplicationConfig
from data_pipeline.dedup.sketches import Sketches

_SHARED = np.dtype([("paragraph", "<i8"), ("document", "<i8"), ("position", "<u4"), ("bytes", "<u4")])
_SORTED_AT_ONCE = 20_000_000  # paragraphs, about 100 bytes each while they are sorted


def find_repeated(sketches: Sketches, config: DeduplicationConfig, verdicts: np.ndarray, torso: int) -> np.ndarray:
    """Which paragraphs go, (2, paragraphs) int64: their documents, ascending, and their positions in these.

    Documents with a verdict neither lose paragraphs nor count as places where one stands. Those that would lose more
    than `paragraph_max_loss` get the verdict `torso`. Beside the sketches, memory holds the paragraphs that stand in
    several documents, about 100 bytes each.
    """
    shared = shared_paragraphs(sketches, verdicts == 0)
    rank = np.empty(len(sketches), np.int64)
    rank[sketches.by_preference()] = np.arange(len(sketches))
    shared = shared[np.lexsort((shared["position"], rank[shared["document"]]))]
    claimed = np.zeros(int(shared["paragraph"].max(initial=-1)) + 1, bool)
    limits = config.paragraph_max_loss * sketches.documents["bytes"]
    goes = np.zeros(len(shared), bool)
    starts = np.flatnonzero(np.diff(shared["document"], prepend=-1))
    for start, stop in pairwise([*starts.tolist(), len(shared)]):
        own = shared[start:stop]
        again = claimed[own["paragraph"]]
        document = own["document"][0]
        if own["bytes"][again].sum() > limits[document]:
            verdicts[document] = torso
        else:
            claimed[own["paragraph"]] = True
            goes[start:stop] = again
    gone = np.sort(shared[goes], order=("document", "position"))
    return np.stack([gone["document"], gone["position"].astype(np.int64)])


def shared_paragraphs(sketches: Sketches, staying: np.ndarray, sorted_at_once: int = _SORTED_AT_ONCE) -> np.ndarray:
    """The paragraphs that stand in at least two of the documents that stay, numbered alike where they are equal.

    They are sorted a range of keys at a time, which bounds memory.
    """
    shards = list(zip(sketches.paragraphs(), sketches.first.tolist(), strict=False))
    ranges = 1 + sum(len(shard) for shard, _ in shards) // sorted_at_once
    found, first = [np.empty(0, _SHARED)], 0
    for number in range(ranges):
        keys, rows = [np.empty(0, np.uint64)], [np.empty(0, _SHARED)]
        for shard, start in shards:
            own = (shard["key"] >> np.uint64(32)) * np.uint64(ranges) >> np.uint64(32) == number
            chosen = shard[own & staying[start + shard["document"].astype(np.int64)]]
            keys.append(chosen["key"])
            row = np.zeros(len(chosen), _SHARED)
            row["document"] = start + chosen["document"].astype(np.int64)
            row["position"], row["bytes"] = chosen["position"], chosen["bytes"]
            rows.append(row)
        together = _in_several_documents(np.concatenate(keys), np.concatenate(rows))
        together["paragraph"] += first
        first += len(np.unique(together["paragraph"]))
        found.append(together)
    return np.concatenate(found)


def _in_several_documents(keys: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The rows whose key stands in several documents; `paragraph` numbers the keys from 0."""
    order = np.lexsort((rows["document"], keys))
    keys, rows = keys[order], rows[order]
    same = keys[1:] == keys[:-1]
    number = np.cumsum(np.concatenate(([0], ~same)))[: len(rows)]
    elsewhere = same & (rows["document"][1:] != rows["document"][:-1])
    several = np.zeros(len(rows), bool)
    several[number[1:][elsewhere]] = True  # by number of the key, of which there are no more than rows
    chosen = several[number]
    rows = rows[chosen]
    rows["paragraph"] = np.unique(number[chosen], return_inverse=True)[1]
    return rows
