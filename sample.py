"""Continue a prompt with a trained run: python sample.py --prompt "The river" [--run RUN] [--help].

Only text goes to standard output; what is loaded, and how fast it writes, goes to standard error.
"""

from __future__ import annotations

from common.threads import bind_threads, keep_freed_memory

bind_threads()
keep_freed_memory()

import os  # noqa: E402
import sys  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from dataclasses import dataclass, fields  # noqa: E402
from io import TextIOWrapper  # noqa: E402
from pathlib import Path  # noqa: E402

import tyro  # noqa: E402

from common.cli import run_command  # noqa: E402
from common.errors import UserError  # noqa: E402
from common.runs import find_run  # noqa: E402
from inference import Completion, LoadedRun, SamplingOptions, Speed, generate, load_run  # noqa: E402
from inference.asking import asked  # noqa: E402
from model.adapters.files import load_adapter  # noqa: E402
from model.device import DeviceName  # noqa: E402


@dataclass(frozen=True)
class SampleCommand(SamplingOptions):
    """Continue a prompt with a trained run. Only the text goes to standard output."""

    temperature: float = 0.8
    """Logits are divided by it; below 1 sharper, above 1 flatter, 0 always takes the likeliest token."""
    top_k: int | None = 50
    """Keep only the K likeliest tokens; "None" keeps all."""
    prompt: str = ""
    """The beginning of the text; "-" reads it from standard input. Without one the model begins a document."""
    ask: str | None = None
    """A question for a fine-tuned run, asked as its training examples ask; instead of a prompt."""
    run: str | None = None
    """Name below runs/, or path, of the run; by default the newest one."""
    checkpoint: str = "best"
    """"best" (lowest validation loss), "last", or a step."""
    adapter: str | None = None
    """A directory that PEFT or train.py wrote, to put on the run's model."""
    num_samples: int = 1
    """How many continuations; several are separated by a line of three hyphens."""
    device: DeviceName = "auto"
    """Where to compute."""

    def sampling(self) -> SamplingOptions:
        return SamplingOptions(**{field.name: getattr(self, field.name) for field in fields(SamplingOptions)})


def main(argv: Sequence[str]) -> None:
    """Parse the command line and write the text. A bad flag or value ends the process with status 2."""
    for stream in (sys.stdin, sys.stdout):
        if isinstance(stream, TextIOWrapper):  # text is UTF-8 wherever this runs, and line ends stay as they are
            stream.reconfigure(encoding="utf-8", errors="replace", newline="")
    command = tyro.cli(SampleCommand, args=list(argv), prog="sample.py", config=(tyro.conf.UseAppendAction,))
    loaded = load_run(find_run(command.run), command.checkpoint, command.device)
    note(f"run {loaded.run.path}, {loaded.checkpoint.path.name}, on {loaded.device}")
    if command.adapter is not None:
        load_adapter(loaded.model, Path(command.adapter), "added")
        note(f"adapter {command.adapter}")
    if command.ask is not None and command.prompt:
        raise UserError("--ask and --prompt exclude each other: give the question, or the beginning of a text")
    speed = Speed()
    try:
        if command.ask is not None:
            finished = write_samples(loaded, "", asked(loaded.run, loaded.tokenizer, command.ask), command, speed)
        else:
            prompt = sys.stdin.read() if command.prompt == "-" else command.prompt
            finished = write_samples(loaded, prompt, prompt, command, speed)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough. Python would complain once more when it closes standard output.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    note("ended by: " + ", ".join(completion.finish_reason for completion in finished))
    note(f"prefill {rate(speed.prefill_tokens, speed.prefill_seconds)}")
    note(f"decode {rate(speed.decode_tokens, speed.decode_seconds)}")


def write_samples(
    loaded: LoadedRun, shown: str, prompt: str | list[int], command: SampleCommand, speed: Speed
) -> list[Completion]:
    """Write every continuation to standard output, behind what is `shown` of the prompt; a single sample appears as it
    comes into being."""
    streamed = command.num_samples == 1
    if streamed:
        show(shown)
    completions = generate(
        loaded.model,
        loaded.tokenizer,
        [prompt],
        command.sampling(),
        command.num_samples,
        on_text=(lambda _, text: show(text)) if streamed else None,
        speed=speed,
    )
    for number, completion in enumerate(completions):
        if not streamed:
            show("---\n" if number else "")
            show(shown + completion.text)
        show("\n")
    return completions


def show(text: str) -> None:
    print(text, end="", flush=True)


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def rate(tokens: int, seconds: float) -> str:
    return f"{tokens} tokens in {seconds:.2f} s" + (f" ({tokens / seconds:,.0f} tokens/s)" if seconds else "")


if __name__ == "__main__":
    run_command(main)
