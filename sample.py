"""Continue a prompt with a trained run: python sample.py --prompt "The river" [--run RUN] [--help].

Only text goes to standard output; what is loaded, and how fast it writes, goes to standard error.
"""

from __future__ import annotations

from common.threads import bind_threads, keep_freed_memory

bind_threads()
keep_freed_memory()

import json  # noqa: E402
import sys  # noqa: E402
from collections.abc import Iterator, Sequence  # noqa: E402
from dataclasses import dataclass, fields  # noqa: E402
from io import TextIOWrapper  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Literal  # noqa: E402

import tyro  # noqa: E402

from common.cli import run_command  # noqa: E402
from common.errors import UserError  # noqa: E402
from common.runs import find_run  # noqa: E402
from inference import Completion, LoadedRun, SamplingOptions, Speed, generate, load_run  # noqa: E402
from inference.asking import AskingStyle, chat_ids, prompt_style, style_in  # noqa: E402
from inference.passes import Compile, wants_native  # noqa: E402
from inference.proposers import DraftModel, PromptLookup  # noqa: E402
from inference.slots import cache_dtype  # noqa: E402
from inference.speculation import Proposer  # noqa: E402
from model import Decoder  # noqa: E402
from model.adapters.files import load_adapter  # noqa: E402
from model.device import DeviceName  # noqa: E402
from model.quantization import Bits, quantize  # noqa: E402


@dataclass(frozen=True)
class SampleCommand(SamplingOptions):
    """Continue a prompt with a trained run. Only the text goes to standard output."""

    temperature: float = 0.8
    """Logits are divided by it; below 1 sharper, above 1 flatter, 0 always takes the likeliest token."""
    top_k: int | None = 50
    """Keep only the K likeliest tokens; "None" keeps all."""
    prompt: str = ""
    """The beginning of the text; "-" reads it from standard input. Without one the model begins a document."""
    prompts: str | None = None
    """A file of prompts, one a line, as they are or as JSON strings (which begin with a quotation mark)."""
    ask: str | None = None
    """A question for a fine-tuned run or --adapter, asked as its training examples ask; instead of a prompt."""
    chat: bool = False
    """A conversation: every line of standard input is a turn, every answer is written when it comes. By the
    tokenizer's chat template; a run that learned single questions is asked the last one as its examples ask."""
    run: str | None = None
    """Name below runs/, or path, of the run; by default the newest one."""
    checkpoint: str = "best"
    """"best" (lowest validation loss), "last", or a step."""
    adapter: str | None = None
    """A directory that PEFT or train.py wrote, to put on the run's model."""
    num_samples: int = 1
    """How many continuations of each prompt; several are separated by a line of three hyphens."""
    speculate: Literal["prompt-lookup", "draft"] | None = None
    """Check proposed tokens in one pass, which is faster where they are mostly right and changes nothing else: what
    followed the last tokens before, or what the run --draft writes."""
    draft: str | None = None
    """A small run of the same tokenizer, for --speculate draft."""
    speculate_tokens: int = 5
    """Tokens proposed at a time, at most."""
    quantize: Bits | None = None
    """Keep the weights in bf16, int8 or int4, which on a CPU is two to five times as fast and costs some accuracy."""
    compile: Compile = "auto"
    """Write by a step that is compiled for this CPU, once, in seconds: always, never, or where that is repaid."""
    device: DeviceName = "auto"
    """Where to compute."""

    def sampling(self) -> SamplingOptions:
        return SamplingOptions(**{field.name: getattr(self, field.name) for field in fields(SamplingOptions)})

    def check(self) -> None:
        given = [self.ask is not None, bool(self.prompt), self.prompts is not None, self.chat]
        if sum(given) > 1:
            raise UserError("--prompt, --prompts, --ask and --chat exclude each other: give one of them")
        if self.chat and self.num_samples != 1:
            raise UserError(f"--num-samples {self.num_samples} is for prompts: a conversation has one answer to a turn")
        if (self.speculate == "draft") != (self.draft is not None):
            raise UserError("--speculate draft and --draft RUN belong together: the run that drafts is to be named")
        if self.speculate_tokens < 1:
            raise UserError(f"--speculate-tokens {self.speculate_tokens} is out of range: it must be at least 1")


def main(argv: Sequence[str]) -> None:
    """Parse the command line and write the text. A bad flag or value ends the process with status 2."""
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, TextIOWrapper):  # text is UTF-8 wherever this runs, and line ends stay as they are
            stream.reconfigure(encoding="utf-8", errors="replace", newline="")
    command = tyro.cli(SampleCommand, args=list(argv), prog="sample.py", config=(tyro.conf.UseAppendAction,))
    command.check()
    loaded = load_run(find_run(command.run), command.checkpoint, command.device)
    note(f"run {loaded.run.path}, {loaded.checkpoint.path.name}, on {loaded.device}")
    if command.adapter is not None:
        load_adapter(loaded.model, Path(command.adapter), "added")
        note(f"adapter {command.adapter}")
    if command.quantize is not None:
        quantize(loaded.model, command.quantize)
        note(f"weights in {command.quantize}")
    speed, finished = Speed(), list[Completion]()
    if command.chat:
        finished += converse(loaded, command, speed)
    else:
        finished += write_samples(loaded, prompts(loaded, command), command, speed)
    sys.stdout.flush()
    note("ended by: " + ", ".join(completion.finish_reason for completion in finished))
    for line in speed.report(loaded.model, cache_dtype(loaded.model).itemsize):
        note(line)


def prompts(loaded: LoadedRun, command: SampleCommand) -> list[tuple[str, str | list[int]]]:
    """What is shown of every prompt, and what the model reads."""
    if command.ask is not None:
        style = style_of(loaded, command) or prompt_style(loaded.run)
        return [("", style.ids(loaded.tokenizer, command.ask))]
    if command.prompts is not None:
        return [(text, text) for text in read_prompts(Path(command.prompts))]
    prompt = sys.stdin.read() if command.prompt == "-" else command.prompt
    return [(prompt, prompt)]


def style_of(loaded: LoadedRun, command: SampleCommand) -> AskingStyle | None:
    """How training examples ask: those of --adapter where it says how, else those of the run; None without any."""
    found = None if command.adapter is None else style_in(Path(command.adapter))
    return found or style_in(loaded.run.path)


def read_prompts(path: Path) -> list[str]:
    """The prompts of a file; empty lines are none. Raises UserError when it holds none or is not what it should be."""
    found = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--prompts {path} cannot be read ({error}); it is to be a text file in UTF-8") from error
    for number, line in enumerate(lines, start=1):
        if line.startswith('"'):
            try:
                found.append(str(json.loads(line)))
            except ValueError as error:
                raise UserError(f"{path}, line {number} is no JSON string ({error}); quote it as a whole") from error
        elif line:
            found.append(line)
    if not found:
        raise UserError(f"{path} holds no prompts; write one a line")
    return found


def native(model: Decoder, command: SampleCommand, texts: int = 1) -> bool:
    """Whether to write so many texts by the native step."""
    return wants_native(model, command.compile, texts * command.num_samples * command.max_new_tokens)


def proposer(loaded: LoadedRun, command: SampleCommand) -> Proposer | None:
    """Where --speculate takes its proposals from."""
    if command.speculate is None:
        return None
    if command.draft is None:
        return PromptLookup(command.speculate_tokens)
    draft = load_run(find_run(command.draft), device=command.device)
    return DraftModel(draft, loaded.tokenizer, command.speculate_tokens, native(draft.model, command))


def write_samples(
    loaded: LoadedRun, asked_for: Sequence[tuple[str, str | list[int]]], command: SampleCommand, speed: Speed
) -> list[Completion]:
    """Write every continuation to standard output, behind what is shown of its prompt; a single sample appears as it
    comes into being."""
    streamed = command.num_samples == len(asked_for) == 1
    if streamed:
        show(asked_for[0][0])
    completions = generate(
        loaded.model,
        loaded.tokenizer,
        [prompt for _, prompt in asked_for],
        command.sampling(),
        command.num_samples,
        on_text=(lambda _, text: show(text)) if streamed else None,
        speed=speed,
        proposer=proposer(loaded, command),
        native=native(loaded.model, command, len(asked_for)),
    )
    for number, completion in enumerate(completions):
        if not streamed:
            show("---\n" if number else "")
            show(asked_for[number // command.num_samples][0] + completion.text)
        show("\n")
    return completions


def converse(loaded: LoadedRun, command: SampleCommand, speed: Speed) -> Iterator[Completion]:
    """Answer every line of standard input, with all that was said before; the answers go to standard output."""
    messages: list[dict[str, str]] = []
    style, drafting = style_of(loaded, command), proposer(loaded, command)
    if sys.stdin.isatty():
        note("a line is a turn; an empty one is passed over; end with Ctrl-D")
    for line in sys.stdin:
        if not line.strip():
            continue
        messages.append({"role": "user", "content": line.strip()})
        ids = chat_ids(style, loaded.tokenizer, messages)
        (answer,) = generate(
            loaded.model,
            loaded.tokenizer,
            [ids],
            command.sampling(),
            on_text=lambda _, text: show(text),
            speed=speed,
            proposer=drafting,
            native=native(loaded.model, command),
        )
        show("\n")
        messages.append({"role": "assistant", "content": answer.text})
        yield answer


def show(text: str) -> None:
    print(text, end="", flush=True)


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_command(main)
