"""Filters and MinHash of datatrove and datasketch, timed in an interpreter that has them installed.

Run by `benchmarks.data`, never by hand: python data_peer.py TASK DOCUMENTS. It imports nothing of ours.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

NUM_PERM, SHINGLE_WORDS = 112, 5


def filters(names: list[str], texts: list[str]) -> dict[str, Any]:
    """Seconds of one or more filters in a row, and each one's reason for every document (None where it is kept)."""
    from datatrove.data import Document
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )

    every = {
        "gopher_quality": GopherQualityFilter,
        "gopher_repetition": GopherRepetitionFilter,
        "c4": C4QualityFilter,
        "fineweb": FineWebQualityFilter,
    }
    chosen = {name: every[name]() for name in names}
    for one in chosen.values():  # loads the language
        one.filter(Document(text="A first sentence of some words. " * 20, id=""))
    reasons: dict[str, list[str | None]] = {name: [] for name in names}
    started = time.perf_counter()
    for text in texts:
        for name, one in chosen.items():
            verdict = one.filter(Document(text=text, id=""))
            reasons[name].append(None if verdict is True else verdict[1] if isinstance(verdict, tuple) else "dropped")
    return {"seconds": time.perf_counter() - started, "reasons": reasons}


def datasketch_signatures(texts: list[str]) -> dict[str, Any]:
    """datasketch's bulk path over word shingles."""
    from datasketch import MinHash

    started = time.perf_counter()
    shingles = []
    for text in texts:
        words = text.lower().split()
        count = max(1, len(words) - SHINGLE_WORDS + 1)
        shingles.append([" ".join(words[start : start + SHINGLE_WORDS]).encode() for start in range(count)])
    MinHash.bulk(shingles, num_perm=NUM_PERM)
    return {"seconds": time.perf_counter() - started}


def datatrove_signatures(texts: list[str], folder: str) -> dict[str, Any]:
    """datatrove's first stage: shingles and signatures, written to files."""
    from datatrove.data import Document
    from datatrove.pipeline.dedup import MinhashDedupSignature

    stage = MinhashDedupSignature(output_folder=f"{folder}/signatures", config=minhash_config())
    started = time.perf_counter()
    stage.run((Document(text=text, id=str(number)) for number, text in enumerate(texts)), 0, 1)
    return {"seconds": time.perf_counter() - started}


def minhash_config() -> Any:
    from datatrove.pipeline.dedup.minhash import MinhashConfig

    return MinhashConfig(n_grams=SHINGLE_WORDS, num_buckets=14, hashes_per_bucket=NUM_PERM // 14)


def datatrove_deduplication(texts: list[str], folder: str) -> dict[str, Any]:
    """All four stages of datatrove, from texts to the documents that are kept."""
    from datatrove.data import Document
    from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter

    config = minhash_config()
    total = datatrove_signatures(texts, folder)["seconds"]
    started = time.perf_counter()
    for bucket in range(config.num_buckets):
        MinhashDedupBuckets(f"{folder}/signatures", f"{folder}/buckets", config=config).run(
            rank=bucket, world_size=config.num_buckets
        )
    MinhashDedupCluster(f"{folder}/buckets", f"{folder}/removed", config=config).run()
    documents = (Document(text=text, id=str(number)) for number, text in enumerate(texts))
    kept = [document.id for document in MinhashDedupFilter(f"{folder}/removed").run(documents, 0, 1)]
    return {"seconds": total + time.perf_counter() - started, "kept": kept}


def main(task: str, documents: str, folder: str) -> None:
    with open(documents, encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line in file]
    tasks: dict[str, Callable[[], dict[str, Any]]] = {
        "datasketch_signatures": lambda: datasketch_signatures(texts),
        "datatrove_signatures": lambda: datatrove_signatures(texts, folder),
        "datatrove_deduplication": lambda: datatrove_deduplication(texts, folder),
    }
    result = tasks[task]() if task in tasks else filters(task.split("+"), texts)
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
