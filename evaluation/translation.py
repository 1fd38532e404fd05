"""How well a run translates the verses that were held out: python -m evaluation.translation RUN."""

from __future__ import annotations

from common.threads import bind_threads, keep_freed_memory

bind_threads()
keep_freed_memory()

import json  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from dataclasses import asdict, dataclass  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import tyro  # noqa: E402
from rich import box  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from common.cli import run_command  # noqa: E402
from common.errors import UserError  # noqa: E402
from common.files import atomic_write, read_json_lines, sha256_of, write_json  # noqa: E402
from common.runs import Run, find_run  # noqa: E402
from data_pipeline.tokenizer import Tokenizer  # noqa: E402
from evaluation.dictionary import Dictionary  # noqa: E402
from evaluation.harness.task_data import drawn  # noqa: E402
from evaluation.report import write_report  # noqa: E402
from evaluation.resampling import RESAMPLES  # noqa: E402
from evaluation.translation_scores import Scores, check, score  # noqa: E402
from evaluation.tuned_and_base import BothOptions, write_with_both  # noqa: E402
from inference import SamplingOptions, generate  # noqa: E402
from model import Decoder  # noqa: E402

RESULT, TRANSLATIONS = "translation.json", "translations.jsonl"
COPY, DICTIONARY, UNTUNED, TUNED, HUMAN = (
    "source, copied", "word by word", "before tuning", "model", "another human"
)  # fmt: skip
_FIELDS = ("prompt", "source", "references")

console = Console(stderr=True, highlight=False, markup=False)


@dataclass(frozen=True, kw_only=True)
class TranslationCommand(BothOptions):
    """Translate held-out verses with a fine-tuned run, always with the likeliest token, and compare with what a
    dictionary, the base and another human translation are worth."""

    run: tyro.conf.Positional[str]
    """Name below runs/, or path, of the run."""
    data: Path = Path("data/translation_es_en")
    """Directory with train.jsonl and test.jsonl, written by `python -m data_pipeline`."""
    max_new_tokens: int = 128
    """Cut a translation after this many tokens."""


def main(argv: Sequence[str]) -> None:
    """Parse the command line, translate, write and print. A bad flag or value ends the process with status 2."""
    command = tyro.cli(TranslationCommand, args=list(argv), prog="python -m evaluation.translation")
    run = find_run(command.run)
    train, test = (read_examples(command.data / name) for name in ("train.jsonl", "test.jsonl"))
    test = drawn(test, command.limit, seed=0)
    references = [row["references"] for row in test]
    check(references)
    sources = [row["source"] for row in test]
    systems = {COPY: sources, DICTIONARY: word_by_word(train, test)}
    both = write_with_both(
        run, command, lambda model, tokenizer: translate(model, tokenizer, test, command.max_new_tokens)
    )
    if both.base is not None:
        systems[UNTUNED] = both.base
    systems[TUNED] = both.tuned
    if len(references[0]) > 1:
        systems[HUMAN] = [second for _, second, *_ in references]
    scores = score(systems, references, baseline=DICTIONARY)
    result = {
        **both.record,
        "verses": len(test),
        "limit": command.limit,
        "max_new_tokens": command.max_new_tokens,
        "test_sha256": sha256_of(command.data / "test.jsonl"),
        "resamplings": RESAMPLES,
        "signatures": scores.signatures,
        "systems": {name: asdict(found) for name, found in scores.systems.items()},
    }
    with atomic_write(run.path / TRANSLATIONS) as file:
        for number, row in enumerate(test):
            written = {name: texts[number] for name, texts in systems.items()}
            file.write(json.dumps({**row, "translations": written}, ensure_ascii=False) + "\n")
    write_json(run.path / RESULT, result)  # last, so that it says that all of it was written
    write_report(run)
    show(run, result, scores)


def read_examples(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of examples.

    Raises:
        UserError: it is not there, or a row lacks what a translation is measured with.
    """
    rows = read_json_lines(path)
    if not rows or not all(row.get(field) for row in rows for field in _FIELDS):
        raise UserError(
            f"{path} holds no translations with {', '.join(_FIELDS)}; make it with: python -m data_pipeline "
            f"configs/data/translation_es_en.py --out {path.parent}"
        )
    return rows


def word_by_word(train: Sequence[dict[str, Any]], test: Sequence[dict[str, Any]]) -> list[str]:
    """Translations by a dictionary of the examples that ask for the same as the test does.

    Raises:
        UserError: there is no such example.
    """
    asked = {_asked(row) for row in test}
    same = [row for row in train if _asked(row) in asked]
    if not same:
        raise UserError("no example to train on asks for what the test asks for; make both with one config")
    dictionary = Dictionary([row["source"] for row in same], [row["references"][0] for row in same])
    return [dictionary.translate(row["source"]) for row in test]


def _asked(row: dict[str, Any]) -> str:
    """What stands in a prompt besides the text to translate."""
    return str(row["prompt"]).replace(row["source"], "", 1)


def translate(model: Decoder, tokenizer: Tokenizer, rows: Sequence[dict[str, Any]], max_new_tokens: int) -> list[str]:
    """What the model writes to each prompt, on one line."""
    options = SamplingOptions(max_new_tokens, temperature=0.0, stop=("\n",))
    completions = generate(model, tokenizer, [row["prompt"] for row in rows], options)
    return [" ".join(completion.text.split()) for completion in completions]


def show(run: Run, result: dict[str, Any], scores: Scores) -> None:
    """Print the table, how it was made, and where everything is."""
    table = Table(
        title=f"{run.name}, step {result['checkpoint_step']}: {result['verses']} verses",
        title_justify="left",
        box=box.SIMPLE,  # whole on a terminal of 80 columns
    )
    table.add_column("translation", no_wrap=True)
    for name in ("BLEU (95 %)", "all refs", "chrF++", "length", "p"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, found in scores.systems.items():
        p = "" if found.p is None else f"{found.p:.3f}"
        # Against all references, one of them would be compared with itself.
        both = "" if name == HUMAN else f"{found.all_references:.1f}"
        bleu = f"{found.bleu:.1f} ({found.low:.1f} to {found.high:.1f})"
        table.add_row(name, bleu, both, f"{found.chrf:.1f}", f"{found.length_ratio:.2f}", p)
    out = Console(highlight=False, markup=False, soft_wrap=True)
    Console(highlight=False, markup=False).print(table)
    if result["without_base"]:
        out.print(f"the base did not translate: {result['without_base']}")
    out.print(f"p: paired bootstrap against {DICTIONARY!r}; sacrebleu {scores.signatures['BLEU']}")
    out.print(f"results       {run.path / RESULT}\ntranslations  {run.path / TRANSLATIONS}")


if __name__ == "__main__":
    run_command(main)
