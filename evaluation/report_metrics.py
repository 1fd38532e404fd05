"""What the report says of generated text and of tasks: rows of tables, from the dictionaries that measuring left."""

from __future__ import annotations

from typing import Any

from evaluation.charts import is_number

Rows = list[dict[str, Any]]

# Name, place in summary.json below generation.model and generation.human, and what the number is.
GENERATION = (
    ("distinct-2", "diversity.distinct_2", "different pairs of words, of all pairs"),
    ("MATTR-50", "diversity.mattr", "different words, of 50 in a row"),
    ("MTLD", "diversity.mtld", "words in a row until a few come again and again"),
    ("self-BLEU", "self_bleu.score", "how like one another the texts are, 0 to 100"),
    ("seq-rep-4", "repetition.seq_rep_4", "runs of four tokens that came before in the same text"),
    ("rep-w", "repetition.rep_w", "tokens that came among the last ones before them"),
    ("texts that end in a loop", "repetition.looping", "of all texts"),
    ("compression ratio", "repetition.compression_ratio", "bytes for each one that zlib leaves"),
    ("coherence", "coherence.coherence", "how close neighbouring sentences are in meaning"),
    ("coherence, shuffled", "coherence.shuffled", "the same with the sentences of each text in any order"),
    ("repeated sentences", "coherence.repetition", "sentences that are nearly the one before them"),
    ("similarity to the prompt", "prompt_similarity.own", "how close the text is to its prompt"),
    ("toxic texts", "toxicity.share", "by the scorer that is named below"),
    ("longest run of training text, mean", "memorisation.longest_mean", "tokens in a row that stand there too"),
    ("longest run of training text, most", "memorisation.longest_max", "of any one text"),
)


def generation_rows(generation: dict[str, Any]) -> Rows:
    """`name`, `model`, `human` and `meaning` of every measure that there is for one of the two."""
    rows = []
    for name, place, meaning in GENERATION:
        model, human = (number_at(generation.get(side), place) for side in ("model", "human"))
        if model is not None or human is not None:
            rows.append({"name": name, "model": model, "human": human, "meaning": meaning})
    return rows


def task_rows(harness: dict[str, Any]) -> Rows:
    """`task`, `asked`, `metric`, `value`, `error` and `interval` of every metric of every task, from harness.json."""
    return [
        {
            "task": name,
            "asked": task.get("asked"),
            "metric": metric,
            "value": number_at(found, "value"),
            "error": number_at(found, "stderr"),
            "interval": found.get("interval"),
        }
        for name, task in harness.get("tasks", {}).items()
        for metric, found in task["metrics"].items()
    ]


def number_at(values: Any, place: str) -> float | None:
    """The number at a dotted place in nested dictionaries, None where something on the way is missing."""
    for key in place.split("."):
        values = values.get(key) if isinstance(values, dict) else None
    return float(values) if is_number(values) else None
