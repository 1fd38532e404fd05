"""Ask a fine-tuned run, and the model that it began with, the questions that were held out.

python -m evaluation.questions RUN HELD_OUT.jsonl
"""

from __future__ import annotations

from common.threads import bind_threads, keep_freed_memory

bind_threads()
keep_freed_memory()

import json  # noqa: E402
from collections.abc import Iterator, Sequence  # noqa: E402
from dataclasses import asdict, dataclass  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import tyro  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import track  # noqa: E402
from rich.table import Table  # noqa: E402

from common.cli import run_command  # noqa: E402
from common.files import atomic_write, sha256_of, write_json  # noqa: E402
from common.runs import Run, find_run  # noqa: E402
from data_pipeline.questions.question import Question, sample  # noqa: E402
from data_pipeline.tokenizer import Tokenizer  # noqa: E402
from evaluation.answers import has_fact, is_exact, read_questions  # noqa: E402
from evaluation.proportions import Proportion, mcnemar  # noqa: E402
from evaluation.report import write_report  # noqa: E402
from evaluation.tuned_and_base import BothOptions, write_with_both  # noqa: E402
from inference import SamplingOptions, generate  # noqa: E402
from inference.asking import prompt_style  # noqa: E402
from model import Decoder  # noqa: E402

RESULT, ANSWERS = "questions.json", "questions.jsonl"
MEASURES = {"fact": "right fact", "exact": "exact match"}
SHOWN = 5  # rows set aside that are listed

console = Console(stderr=True, highlight=False, markup=False)


@dataclass(frozen=True)
class Answered:
    """What a model wrote to a question, and what that is worth."""

    text: str
    ended: bool
    """Whether the model ended it; else it was cut at the largest number of tokens."""
    fact: bool
    exact: bool


@dataclass(frozen=True)
class QuestionsCommand(BothOptions):
    """Ask a fine-tuned run and its base the held-out questions, and compare their answers with the right ones."""

    run: tyro.conf.Positional[str]
    """Name below runs/, or path, of the run."""
    held_out: tyro.conf.Positional[Path]
    """The held_out.jsonl that `python -m data_pipeline` wrote beside the training file."""


def main(argv: Sequence[str]) -> None:
    """Parse the command line, ask, write and print. A bad flag or value ends the process with status 2."""
    command = tyro.cli(QuestionsCommand, args=list(argv), prog="python -m evaluation.questions")
    questions, aside = read_questions(command.held_out)
    questions = sample(questions, command.limit, seed=0)
    run = find_run(command.run)
    style = prompt_style(run)

    def answer(model: Decoder, tokenizer: Tokenizer) -> list[Answered]:
        prompts = [style.ids(tokenizer, question.question, question.input) for question in questions]
        return ask(model, tokenizer, prompts, questions, command.max_new_tokens)

    both = write_with_both(run, command, answer)
    answers = {"tuned": both.tuned} | ({} if both.base is None else {"base": both.base})
    result = {
        **both.record,
        "file": str(command.held_out),
        "file_sha256": sha256_of(command.held_out),
        "limit": command.limit,
        "max_new_tokens": command.max_new_tokens,
        "set_aside": [str(problem) for problem in aside],
        "ended": {model: sum(answer.ended for answer in of) for model, of in answers.items()},
        "overall": tally(answers),
        "per_kind": {kind: tally(of_kind) for kind, of_kind in by_kind(questions, answers)},
    }
    with atomic_write(run.path / ANSWERS) as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in answer_rows(questions, answers))
    write_json(run.path / RESULT, result)  # last, so that it says that all of it was written
    write_report(run)
    show(run, result)


def ask(
    model: Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    questions: Sequence[Question],
    max_new_tokens: int,
) -> list[Answered]:
    """Let `model` answer every question, always with the likeliest token, and check the answers."""
    options = SamplingOptions(max_new_tokens, temperature=0)
    answered = []
    asking = track(
        zip(prompts, questions, strict=True),
        "asking",
        total=len(prompts),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    for prompt, question in asking:
        completion = generate(model, tokenizer, [prompt], options)[0]
        text = completion.text.strip()
        ended = completion.finish_reason == "eos"
        answered.append(Answered(text, ended, has_fact(text, question), is_exact(text, question)))
    return answered


def by_kind(
    questions: Sequence[Question], answers: dict[str, list[Answered]]
) -> Iterator[tuple[str, dict[str, list[Answered]]]]:
    """The answers of every model to the questions of each kind, in the order of their names."""
    for kind in sorted({question.kind for question in questions}):
        places = [place for place, question in enumerate(questions) if question.kind == kind]
        yield kind, {model: [of[place] for place in places] for model, of in answers.items()}


def tally(answers: dict[str, list[Answered]]) -> dict[str, Any]:
    """By measure: how many answers of each model are right, and where there is a base, how it compares."""
    result: dict[str, Any] = {}
    for measure in MEASURES:
        right = {model: [getattr(answer, measure) for answer in of] for model, of in answers.items()}
        result[measure] = {model: asdict(Proportion.count(sum(of), len(of))) for model, of in right.items()}
        if "base" in right:
            pairs = list(zip(right["base"], right["tuned"], strict=True))
            only_base, only_tuned = pairs.count((True, False)), pairs.count((False, True))
            p = mcnemar(only_base, only_tuned)
            result[measure]["paired"] = {"only_base": only_base, "only_tuned": only_tuned, "p": p}
    return result


def answer_rows(questions: Sequence[Question], answers: dict[str, list[Answered]]) -> Iterator[dict[str, Any]]:
    """A row a question: what was wanted, and what each model answered."""
    for place, question in enumerate(questions):
        row = {name: getattr(question, name) for name in ("kind", "subject", "question", "input", "fact")}
        row["wanted"] = question.answer
        for model, prefix in (("tuned", ""), ("base", "base_")):
            if model in answers:
                answer = answers[model][place]
                row |= {f"{prefix}answered": answer.text, f"{prefix}right": answer.fact, f"{prefix}exact": answer.exact}
        yield row


def show(run: Run, result: dict[str, Any]) -> None:
    """Print the table, the comparison, and where everything is."""
    table = Table(title=f"{run.name}, step {result['checkpoint_step']}", title_justify="left")
    for name in ("kind", "model"):
        table.add_column(name)
    for name in ("asked", "right fact (95 %)", "exact match (95 %)"):
        table.add_column(name, justify="right", no_wrap=True)
    kinds = result["per_kind"] if len(result["per_kind"]) > 1 else {}
    for kind, tallied in {**kinds, "all": result["overall"]}.items():
        models = [model for model in ("base", "tuned") if model in tallied["fact"]]
        for model in models:
            cells = [_share(tallied[measure][model]) for measure in MEASURES]
            first = model == models[0]
            asked = f"{tallied['fact'][model]['of']:,}" if first else ""
            table.add_row(kind if first else "", model, asked, *cells, end_section=model == models[-1])
    out = Console(highlight=False, markup=False, soft_wrap=True)
    Console(highlight=False, markup=False).print(table)
    for measure, name in MEASURES.items():
        if "paired" in result["overall"][measure]:
            paired = result["overall"][measure]["paired"]
            out.print(
                f"{name}: {paired['only_base']:,} by the base only, {paired['only_tuned']:,} by the tuned run only; "
                f"McNemar exact p = {paired['p']:.2g}"
            )
    if result["without_base"]:
        out.print(f"the base was not asked: {result['without_base']}")
    if result["set_aside"]:
        out.print(f"rows set aside: {len(result['set_aside']):,}")
        for problem in result["set_aside"][:SHOWN]:
            out.print(f"  {problem}")
    out.print(f"answers {run.path / ANSWERS}\nresult  {run.path / RESULT}")


def _share(proportion: dict[str, Any]) -> str:
    low, high = 100 * proportion["low"], 100 * proportion["high"]
    return f"{100 * proportion['share']:.1f} % ({low:.1f} to {high:.1f})"


if __name__ == "__main__":
    run_command(main)
