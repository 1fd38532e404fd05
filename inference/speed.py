"""What generation costs: tokens, seconds, and how much of the memory's speed it uses."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from model import Decoder
from model.slots import QuantizedWeight


@dataclass
class Speed:
    """Tokens and seconds spent, the reading of contexts (prefill) and token-by-token writing (decode) apart."""

    prefill_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_tokens: int = 0
    decode_seconds: float = 0.0
    decode_passes: int = 0
    decode_positions: int = 0
    """Keys that the queries of these passes could see; those of every layer count as one."""
    first_token_seconds: list[float] = field(default_factory=list)
    """Of each sample, from its request on."""
    token_seconds: list[float] = field(default_factory=list)
    """Between two tokens of a sample; tokens that come together share the time."""

    def report(self, model: Decoder, element_bytes: int = 4) -> list[str]:
        """Lines for people. Measures how fast memory can be read, which takes a moment.

        Args:
            element_bytes: of the keys and values in the cache.
        """
        lines = [f"prefill {_rate(self.prefill_tokens, self.prefill_seconds)}"]
        if self.first_token_seconds:
            lines.append(f"time to first token {_milliseconds(self.first_token_seconds)}")
        lines.append(f"decode {_rate(self.decode_tokens, self.decode_seconds)}")
        if self.token_seconds:
            lines.append(f"between tokens {_milliseconds(self.token_seconds)}")
        if self.decode_tokens and self.decode_seconds:
            config = model.config
            position = 2 * config.layers * config.key_value_heads * config.head_size * element_bytes
            read = self.decode_passes * weight_bytes(model) + self.decode_positions * position
            bandwidth, peak = read / self.decode_seconds, read_bandwidth(model.device)
            lines.append(
                f"reads {read / self.decode_tokens / 1e6:,.1f} MB a token (weights and cache), {bandwidth / 1e9:,.1f} "
                f"GB/s: {bandwidth / peak:.0%} of the {peak / 1e9:,.1f} GB/s measured here"
            )
        return lines


class SampleClock:
    """Notes when the tokens of one sample come."""

    def __init__(self, speed: Speed) -> None:
        self.speed, self._last, self._began = speed, time.perf_counter(), False

    def note(self, tokens: int) -> None:
        """So many tokens have come just now."""
        if not tokens:
            return
        now = time.perf_counter()
        if self._began:
            self.speed.token_seconds += [(now - self._last) / tokens] * tokens
        else:
            self.speed.first_token_seconds.append(now - self._last)
        self._began, self._last = True, now


def weight_bytes(model: Decoder) -> int:
    """What a pass reads of the weights: all but the tables of which it looks up single rows."""
    tables = ("position_embedding.", "value_embeddings.", *([] if model.head is None else ["embedding."]))
    bits = [
        tensor.nbytes
        for name, module in model.named_modules()
        if isinstance(module, QuantizedWeight) and not name.startswith(tables)
        for tensor in (*module.parameters(), *module.buffers())
    ]
    dense = [
        parameter.nbytes
        for name, parameter in model.named_parameters()
        if not name.startswith(tables) and ".quantized." not in name
    ]
    return sum(bits) + sum(dense)


def read_bandwidth(device: torch.device, megabytes: int = 256) -> float:
    """Bytes a second at which memory is read, the best of a few times."""
    block, best = torch.zeros(megabytes * 2**18, device=device), 0.0
    for _ in range(5):
        began = time.perf_counter()
        block.sum().item()  # waits for the device
        best = max(best, block.nbytes / (time.perf_counter() - began))
    return best


def _rate(tokens: int, seconds: float) -> str:
    return f"{tokens} tokens in {seconds:.2f} s" + (f" ({tokens / seconds:,.0f} tokens/s)" if seconds else "")


def _milliseconds(seconds: Sequence[float]) -> str:
    if len(seconds) < 2:
        return f"{1000 * seconds[0]:.1f} ms"
    cuts = statistics.quantiles(seconds, n=20, method="inclusive")
    return f"p50 {1000 * statistics.median(seconds):.1f} ms, p95 {1000 * cuts[-1]:.1f} ms"
