"""Speed of generation: python -m benchmarks.inference [--config FILE] [--rounds N] [--json FILE]."""

from common.threads import bind_threads, keep_freed_memory

bind_threads()
keep_freed_memory()

import statistics  # noqa: E402
import time  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from dataclasses import dataclass, replace  # noqa: E402
from typing import NamedTuple  # noqa: E402

import torch  # noqa: E402
import tyro  # noqa: E402

from benchmarks.table import Measurement, alternate, report  # noqa: E402
from common.cli import load_config, run_command  # noqa: E402
from inference import Engine, GenerationRequest, SamplingOptions, Speed, Update  # noqa: E402
from inference.proposers import PromptLookup  # noqa: E402
from inference.speculation import Proposer  # noqa: E402
from model import Decoder, KVCache  # noqa: E402
from model.device import choose_device  # noqa: E402
from training.config import RunConfig  # noqa: E402


@dataclass(frozen=True)
class BenchmarkCommand:
    """Measure generation with and without the key-value cache and by the engine, on random weights."""

    config: str = "configs/quickstart.py"
    """Run config whose model is measured."""
    prompt_tokens: int = 64
    """Length of the prompt."""
    new_tokens: int = 64
    """Tokens to generate."""
    rounds: int = 5
    """Rounds after one that warms up."""
    json: str | None = None
    """Also write the figures to this file."""


@torch.inference_mode()
def with_cache(model: Decoder, prompt: torch.Tensor, new_tokens: int) -> Measurement:
    device = prompt.device
    cache = KVCache(model.config, prompt.shape[0], prompt.shape[1] + new_tokens, device, torch.float32)
    started = time.perf_counter()
    ids = model(prompt, cache=cache, last_only=True).argmax(-1)
    ids.sum().item()  # waits for the device
    prefilled = time.perf_counter()
    for _ in range(new_tokens - 1):
        ids = model(ids, cache=cache, last_only=True).argmax(-1)
    ids.sum().item()
    seconds = time.perf_counter() - prefilled
    return {"tokens/s": prompt.shape[0] * (new_tokens - 1) / seconds, "first token s": prefilled - started}


@torch.inference_mode()
def without_cache(model: Decoder, prompt: torch.Tensor, new_tokens: int) -> Measurement:
    started = time.perf_counter()
    ids = torch.cat([prompt, model(prompt, last_only=True).argmax(-1)], dim=1)
    ids.sum().item()  # waits for the device
    prefilled = time.perf_counter()
    for _ in range(new_tokens - 1):
        ids = torch.cat([ids, model(ids, last_only=True).argmax(-1)], dim=1)
    ids.sum().item()
    seconds = time.perf_counter() - prefilled
    return {"tokens/s": prompt.shape[0] * (new_tokens - 1) / seconds, "first token s": prefilled - started}


class Letters:
    """In place of a tokenizer, which random weights have none of: every id is a letter, none ends a text."""

    bos_id = 0
    eos_ids: tuple[int, ...] = ()

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(97 + token % 26) for token in ids)

    def unused_ids(self, rows: int) -> list[int]:
        return []


class Loaded(NamedTuple):
    model: Decoder
    tokenizer: Letters


def by_engine(
    model: Decoder, prompts: list[list[int]], options: SamplingOptions, proposer: Proposer | None = None
) -> Measurement:
    """All prompts at once."""
    speed, arrived = Speed(), [list[float]() for _ in prompts]
    engine = Engine(Loaded(model, Letters()), len(prompts), speed=speed, proposer=proposer)  # type: ignore[arg-type]

    def receiver(number: int):  # type: ignore[no-untyped-def]
        def receive(update: Update) -> None:
            arrived[number].append(time.perf_counter())

        return receive

    started = time.perf_counter()
    for number, prompt in enumerate(prompts):
        engine.submit(GenerationRequest(tuple(prompt), options, sample=number), receiver(number))
    engine.run()
    return {
        "tokens/s": speed.decode_tokens / speed.decode_seconds,
        "first token s": statistics.median(times[0] for times in arrived) - started,
    }


def main(argv: Sequence[str]) -> None:
    command = tyro.cli(BenchmarkCommand, args=argv, prog="python -m benchmarks.inference")
    config = load_config(command.config, RunConfig)
    device = choose_device(config.device)
    torch.manual_seed(0)
    shape = replace(config.model, zero_init_projections=False)  # or all logits would be equal
    model = Decoder(shape).to(device).eval()
    prompt = torch.randint(config.model.vocab_size, (1, command.prompt_tokens), device=device)
    batch, ids = prompt.repeat(8, 1), prompt[0, 1:].tolist()  # the engine puts an id before them
    mixed = [ids[: 1 + len(ids) * number // 16] for number in range(16)]
    greedy = SamplingOptions(command.new_tokens, temperature=0)
    sampled = SamplingOptions(command.new_tokens, temperature=0.8, top_k=50)
    results = alternate(
        {
            "recomputed prefix": lambda: without_cache(model, prompt, command.new_tokens),
            "cache": lambda: with_cache(model, prompt, command.new_tokens),
            "cache, 8 samples": lambda: with_cache(model, batch, command.new_tokens),
            "engine": lambda: by_engine(model, [ids], greedy),
            "engine, top-k": lambda: by_engine(model, [ids], sampled),
            "engine, 8 samples": lambda: by_engine(model, [ids] * 8, sampled),
            "engine, 16 lengths": lambda: by_engine(model, mixed, sampled),
            "engine, prompt lookup": lambda: by_engine(model, [ids], greedy, PromptLookup()),
        },
        command.rounds,
    )
    parameters = model.parameter_count() / 1e6
    report(f"{command.config}: {parameters:.1f}M parameters in fp32 on {device}", results, "tokens/s", command.json)


if __name__ == "__main__":
    run_command(main)
