"""One engine with one set of weights in a process of its own: it generates whenever it is asked, and reports.

Every engine is a function from a prompt and a number of tokens to the ids that it writes greedily, whatever stands for
the end of a text. What is measured is the time of such calls, so all are measured alike: the first token is a text of
one token, and the speed of those after it is that of a longer text less the time of one token.
"""

from common.threads import bind_threads, keep_freed_memory

bind_threads()

import json  # noqa: E402
import os  # noqa: E402
import random  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable, Sequence  # noqa: E402
from dataclasses import asdict, dataclass  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any, NamedTuple, Protocol  # noqa: E402

from pydantic import TypeAdapter  # noqa: E402

Write = Callable[[list[int], int], list[int]]
"""From a prompt, the id that begins a text included, and a number of tokens to so many ids."""


class Writer(Protocol):
    """An engine that has loaded its weights."""

    @property
    def weight_bytes(self) -> float:
        """What is read of them for a token."""

    @property
    def write(self) -> Write: ...


class Peer(NamedTuple):
    """A `Writer` of others."""

    write: Write
    weight_bytes: float


@dataclass(frozen=True)
class Task:
    """What one worker measures."""

    engine: str
    """One of `PEERS`, "ours", or "memory"."""
    mode: str = ""
    """Number format of the weights, as the engine calls it."""
    weights: str = ""
    """The run, or what was exported from it for this engine."""
    threads: int = 1
    vocab_size: int = 0
    bos_id: int = 0
    first: int = 512
    """Tokens of the prompt to whose first token the time is taken."""
    prompt: int = 64
    """Tokens of the prompts behind which decoding is timed."""
    new: int = 64
    """Tokens that are timed."""
    sources: tuple[str, ...] = ()
    """For speculation: the sources of validation texts that are continued."""
    draft: str = ""
    """What proposes tokens: nothing, "lookup" for the text itself, or a run."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))


def transformers(task: Task) -> Peer:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(task.threads)
    model: Any = AutoModelForCausalLM.from_pretrained(task.weights, dtype=getattr(torch, task.mode)).eval()
    model.generation_config.eos_token_id = None

    @torch.inference_mode()
    def write(prompt: list[int], tokens: int) -> list[int]:
        ids = torch.tensor([prompt])
        # Its cache that grows: the static one is no faster here.
        whole = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False, pad_token_id=0
        )
        return list(whole[0, len(prompt) :].tolist())

    return Peer(write, float(sum(weight.nbytes for weight in model.parameters())))


def ctranslate2(task: Task) -> Peer:
    import ctranslate2 as engine

    names = json.loads((Path(task.weights) / "vocabulary.json").read_text(encoding="utf-8"))
    generator = engine.Generator(
        task.weights, device="cpu", compute_type=task.mode, intra_threads=task.threads, inter_threads=1
    )

    def write(prompt: list[int], tokens: int) -> list[int]:
        (result,) = generator.generate_batch(
            [[names[token] for token in prompt]],
            max_length=tokens,
            min_length=tokens,
            sampling_topk=1,
            include_prompt_in_result=False,
        )
        return list(result.sequences_ids[0])

    stored = (Path(task.weights) / "model.bin").stat().st_size  # in fp32; it is converted when it is loaded
    return Peer(write, stored / (4 if task.mode == "int8" else 1))


def llama_cpp(task: Task) -> Peer:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.verbosity = task.weights, -1
    params.n_ctx, params.n_parallel, params.n_gpu_layers, params.warmup = 1024, 1, 0, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = task.threads
    if task.mode == "f32":
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    server = xllamacpp.Server(params)
    greedy = {"temperature": 0, "samplers": ["top_k"], "top_k": 1, "ignore_eos": True, "cache_prompt": False}
    told = {"return_tokens": True, "verbose": True}  # or there would be a text only

    def write(prompt: list[int], tokens: int) -> list[int]:
        answer = server.handle_completions({"prompt": prompt, "max_tokens": tokens, **greedy, **told})
        answer = answer if isinstance(answer, dict) else json.loads(answer)
        return list(answer["__verbose"]["tokens"])

    return Peer(write, float(Path(task.weights).stat().st_size))


PEERS: dict[str, Callable[[Task], Peer]] = {
    "transformers": transformers,
    "CTranslate2": ctranslate2,
    "llama.cpp": llama_cpp,
}
PACKAGES = {"transformers": "transformers", "CTranslate2": "ctranslate2", "llama.cpp": "xllamacpp"}


class Stepper:
    """Times the calls of one engine. All engines get the same prompts, a new one a call: some keep what they read."""

    def __init__(self, task: Task, writer: Writer) -> None:
        self.task, self.writer, self._random = task, writer, random.Random(0)

    def prompt(self, length: int) -> list[int]:
        return [self.task.bos_id, *(self._random.randrange(self.task.vocab_size) for _ in range(length - 1))]

    def seconds(self, length: int, tokens: int) -> float:
        prompt, began = self.prompt(length), time.perf_counter()
        written = self.writer.write(prompt, tokens)
        spent = time.perf_counter() - began
        assert len(written) == tokens, f"{len(written)} tokens were written, {tokens} were asked for"
        return spent

    def step(self) -> dict[str, Any]:
        task = self.task
        first = self.seconds(task.first, 1)
        one, all_of_them = self.seconds(task.prompt, 1), self.seconds(task.prompt, 1 + task.new)
        return {"tokens/s": task.new / (all_of_them - one), "first token ms": 1000 * first}

    def greedy(self) -> dict[str, Any]:
        prompt = [self.task.bos_id, *range(100, 99 + self.task.prompt)]
        return {"ids": self.writer.write(prompt, self.task.new), "weight bytes": self.writer.weight_bytes}


def bandwidth(threads: int) -> Callable[[], dict[str, Any]]:
    import torch

    from inference.speed import read_bandwidth

    torch.set_num_threads(threads)
    return lambda: {"bytes/s": read_bandwidth(torch.device("cpu"))}


def questions(task: Task) -> dict[str, Callable[[], dict[str, Any]]]:
    """What a worker answers, by the line that asks for it."""
    if task.engine == "memory":
        return {"step": bandwidth(task.threads)}
    if task.engine in PEERS:
        stepper = Stepper(task, PEERS[task.engine](task))
        return {"step": stepper.step, "greedy": stepper.greedy}
    from benchmarks.our_engine import OurEngine, Speculation

    keep_freed_memory()  # as sample.py and serve.py do
    if task.sources:
        return {"step": Speculation(task).step}
    engine = OurEngine(task)
    stepper = Stepper(task, engine)
    return {"step": stepper.step, "greedy": stepper.greedy, "crowd": engine.crowd, "perplexity": engine.perplexity}


def serve(task: Task) -> None:
    """Answer every line on standard input with the figures that it asks for."""
    answers = questions(task)
    for line in sys.stdin:
        print(json.dumps(answers[line.strip()]()), flush=True)
    if task.engine == "llama.cpp":
        os._exit(0)  # its threads would wait for each other


def main(argv: Sequence[str]) -> None:
    task = TypeAdapter(Task).validate_python(json.loads(argv[0]))
    os.environ["OMP_NUM_THREADS"] = str(task.threads)
    serve(task)


if __name__ == "__main__":
    main(sys.argv[1:])
