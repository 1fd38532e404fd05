"""What the benchmark of generation asks of our engine: texts, many at a time, newcomers, perplexity, speculation."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import torch

from benchmarks.inference_worker import Task
from common.errors import UserError
from common.runs import find_run
from data_pipeline.shards import Dataset
from data_pipeline.tokenizer import Tokenizer
from evaluation.perplexity import packed_windows, token_nll
from inference import Engine, GenerationRequest, SamplingOptions, Speed, Ticket, Update, load_run
from inference.proposers import DraftModel, PromptLookup
from inference.row import Row
from inference.slots import SlotTable
from inference.speculation import Proposal, Proposer
from inference.speed import weight_bytes
from model.device import Precision
from model.quantization import Bits, quantize

STREAMS = 16
NEWCOMER = 500  # tokens of a prompt that comes while others are written
SCORED = 20_000  # validation tokens of which the perplexity is taken
TEXTS = 4  # of each source that speculation continues


MODES: dict[str, Bits | None] = {"fp32": None, "bf16": "bf16", "int8": "int8", "int4": "int4"}
"""Formats that the weights are kept in."""


class OurEngine:
    """One engine, as a server has it, with one model in one of `MODES`."""

    def __init__(self, task: Task, proposer: Proposer | None = None) -> None:
        torch.set_num_threads(task.threads)
        self.task, self.loaded = task, load_run(find_run(task.weights), device="cpu")
        if (bits := MODES[task.mode]) is not None:
            quantize(self.loaded.model, bits)
        self.engine = Engine(self.loaded, STREAMS, proposer=proposer, native=True)
        self.weight_bytes = float(weight_bytes(self.loaded.model))

    def write(self, prompt: list[int], tokens: int) -> list[int]:
        return self.texts([prompt], tokens)[0]

    def texts(self, prompts: Sequence[list[int]], tokens: int) -> list[list[int]]:
        """Greedy continuations of all prompts at a time; the speed of this is then in `engine.speed`."""
        self.engine.speed = Speed()
        written: list[list[int]] = [[] for _ in prompts]
        for own, prompt in zip(written, prompts, strict=True):
            self.submit(prompt, tokens, lambda update, own=own: own.extend(update.token_ids))  # type: ignore[misc]
        self.engine.run()
        return written

    def submit(self, prompt: list[int], tokens: int, receive: Callable[[Update], None]) -> Ticket:
        request = GenerationRequest(tuple(prompt[1:]), SamplingOptions(tokens, temperature=0), ignore_eos=True)
        return self.engine.submit(request, receive)  # which puts the id before the prompt itself

    def crowd(self) -> dict[str, float]:
        """Many texts at a time beside one alone, and the wait of one that comes while the others are written."""
        prompts = torch.randint(self.task.vocab_size, (STREAMS, self.task.prompt)).tolist()
        rates = []
        for chosen in (prompts[:1], prompts):
            self.texts(chosen, self.task.new)
            rates.append(self.engine.speed.decode_tokens / self.engine.speed.decode_seconds)
        tickets = [self.submit(prompt, self.task.new + 2 * STREAMS, lambda update: None) for prompt in prompts[1:]]
        while len(self.engine.table.rows) < STREAMS - 1:
            self.engine.step()
        came: list[float] = []
        began = time.perf_counter()
        length = min(NEWCOMER, self.engine.capacity - 1)
        newcomer = torch.randint(self.task.vocab_size, (length,)).tolist()
        self.submit(newcomer, 1, lambda update: came.append(time.perf_counter()))
        while not came:
            self.engine.step()
        for ticket in tickets:
            self.engine.cancel(ticket)
        self.engine.run()
        return {
            "one text, tokens/s": rates[0],
            f"{STREAMS} texts, tokens/s": rates[1],
            "times one": rates[1] / rates[0],
            f"newcomer with {length} tokens, first token ms": 1000 * (came[0] - began),
        }

    def perplexity(self) -> dict[str, float]:
        """Of the first validation tokens, in windows of the whole context."""
        data, model = Dataset(self.loaded.config["data"]["directory"]), self.loaded.model
        tokens = data.split("val").read(0, SCORED)
        windows, cpu = packed_windows(len(tokens), model.config.context_length), torch.device("cpu")
        exact = Precision("fp32", "as the weights are")
        losses = token_nll(model, tokens, windows, data.eos_id, cpu, exact, batch_tokens=2048)
        return {"perplexity": math.exp(losses.mean(dtype=float))}


class Counted:
    """A proposer that counts what becomes of its proposals."""

    def __init__(self, proposer: Proposer) -> None:
        self.proposer, self.proposed, self.accepted = proposer, 0, 0

    def begin(self, table: SlotTable) -> None:
        self.proposer.begin(table)

    def propose(self, rows: Sequence[Row]) -> list[Proposal]:
        return self.proposer.propose(rows)

    def learn(self, row: Row, proposed: int, accepted: int) -> None:
        self.proposed, self.accepted = self.proposed + proposed, self.accepted + accepted
        self.proposer.learn(row, proposed, accepted)


class Speculation:
    """Continues the beginnings of validation texts, one at a time, with or without proposals."""

    def __init__(self, task: Task) -> None:
        self.task, self.counted = task, Counted(proposer_of(task)) if task.draft else None
        self.ours = OurEngine(task, self.counted)
        data = Dataset(self.ours.loaded.config["data"]["directory"])
        self.prompts = {source: beginnings(data, source, task) for source in task.sources}

    def step(self) -> dict[str, float]:
        """Tokens a second, tokens that a pass gives and the accepted share of the proposed ones, of every source."""
        found = {}
        for source, prompts in self.prompts.items():
            speeds = []
            if self.counted is not None:
                self.counted.proposed = self.counted.accepted = 0
            for prompt in prompts:
                self.ours.texts([prompt], self.task.new)
                speeds.append(self.ours.engine.speed)
            tokens = sum(speed.decode_tokens for speed in speeds)
            found[f"{source}: tokens/s"] = tokens / sum(speed.decode_seconds for speed in speeds)
            found[f"{source}: tokens a pass"] = tokens / sum(speed.decode_passes for speed in speeds)
            if self.counted is not None and self.counted.proposed:
                found[f"{source}: accepted %"] = 100 * self.counted.accepted / self.counted.proposed
        return found


def proposer_of(task: Task) -> Proposer:
    if task.draft == "lookup":
        return PromptLookup()
    tokenizer = Tokenizer(find_run(task.weights).tokenizer)
    return DraftModel(load_run(find_run(task.draft), device="cpu"), tokenizer, native=True)


def beginnings(data: Dataset, source: str, task: Task) -> list[list[int]]:
    """The first tokens of the first validation texts of `source` that are longer than what is written.

    Raises:
        UserError: there is no such source, or no such text.
    """
    if source not in data.sources:
        raise UserError(f"{data.directory} has no source {source!r}; it has {', '.join(data.sources)}")
    stream, number = data.split("val"), data.sources.index(source)
    index = stream.documents()
    long = index[(index["source"] == number) & (index["tokens"] > task.prompt + task.new)][:TEXTS]
    if not len(long):
        raise UserError(f"no validation text of {source} has more than {task.prompt + task.new} tokens")
    return [[task.bos_id, *stream.read(int(each["start"]), task.prompt - 1).tolist()] for each in long]
