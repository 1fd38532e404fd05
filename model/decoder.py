"""The decoder-only transformer, from token ids to logits or losses."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.activations import Checkpointing
from model.cache import KVCache
from model.config import ModelConfig
from model.functions import linear_cross_entropy, token_losses
from model.layers import Block, Norm, chosen
from model.positions import EVERY, Positions, locate, locate_after, rotary_table
from model.slots import Embedding, Linear, QuantizedWeight
from model.virtual import Prefix, PrefixPast, Prompt, VirtualTokens


class Decoder(nn.Module):
    """A decoder-only transformer; its `config` says which family it belongs to."""

    def __init__(self, config: ModelConfig) -> None:
        """Raises UserError when the config is impossible."""
        super().__init__()
        config.check()
        self.config = config
        self.activation_checkpointing: Checkpointing = "none"  # while training; no part of the architecture
        self.rotary_cos: Tensor
        self.rotary_sin: Tensor
        self.embedding = Embedding(config.vocab_size, config.width)
        learned = config.position == "learned"
        self.position_embedding = Embedding(config.context_length, config.width) if learned else None
        self.embedding_norm = Norm(config) if config.embedding_norm else None
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        # The token's own value, learned directly (Zhou et al. 2024, arXiv 2410.17897, as an embedding).
        size = config.key_value_heads * config.head_size
        with_own = [layer for layer in range(config.layers) if config.has_value_embedding(layer)]
        self.value_embeddings = nn.ModuleDict({str(layer): nn.Embedding(config.vocab_size, size) for layer in with_own})
        self.final_norm = Norm(config)
        self.head = None if config.tied else Linear(config.width, config.vocab_size, bias=False)
        self.residual_scale = nn.Parameter(torch.ones(config.layers)) if config.residual_scalars else None
        self.embedding_scale = nn.Parameter(torch.zeros(config.layers)) if config.residual_scalars else None
        self.virtual: VirtualTokens | None  # what an adapter puts before every text
        self.register_module("virtual", None)
        self.make_tables()
        self.initialize()

    def make_tables(self) -> None:
        """Work out what follows from the config alone, and is not stored: the rotary angles of every position."""
        if self.config.position == "rope":
            device = self.embedding.weight.device
            cos, sin = rotary_table(self.config)
            self.register_buffer("rotary_cos", cos.to(device), persistent=False)
            self.register_buffer("rotary_sin", sin.to(device), persistent=False)

    @torch.no_grad()
    def initialize(self) -> None:
        """Draw fresh weights as the config says; the order of the draws is fixed, so a seed fixes the weights."""
        config = self.config
        std = config.init_std or config.width**-0.5
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif "norm" in name or name.endswith("value_gate"):
                parameter.fill_(1.0)
            elif name in ("embedding.weight", "position_embedding.weight"):
                parameter.normal_(std=config.embedding_std)
            elif name.endswith(("output.weight", "down.weight", "head.weight")):  # what the stream is written with
                if config.zero_init_projections:
                    parameter.zero_()
                else:
                    parameter.normal_(std=std if name == "head.weight" else std * (2 * config.layers) ** -0.5)
            elif parameter.ndim == 2:
                parameter.normal_(std=std)
        if self.residual_scale is not None and self.embedding_scale is not None:
            self.residual_scale.fill_(1.0)
            self.embedding_scale.fill_(0.1)

    def forward(
        self,
        ids: Tensor,  # (batch, time) int64
        targets: Tensor | None = None,  # (batch, time) int64, IGNORE where no loss is wanted
        cache: KVCache | None = None,
        last_only: bool = False,
        counts: Sequence[int] | None = None,  # with a cache: how many of each row's ids are real, the rest is padding
        documents: Tensor | None = None,  # (batch, time) int64: see `locate`
        learned: Tensor | None = None,  # (positions,) int64: the only ones, in batch * time, that have targets
    ) -> Tensor:
        """Without targets: fp32 logits (batch, time, vocab); with `last_only` (batch, 1, vocab), of the last real ids.

        With targets: the sum of the losses of all positions in nats, an fp32 scalar; the logits are never whole, and
        where `learned` says it, are worked out for its positions alone; so is what follows attention in the last block.
        Raises ValueError when the sequence, the cached part included, is longer than the context.
        """
        if targets is None:
            if last_only and ids.shape[1] > 1:
                return self.logits(self.hidden(ids, cache, counts, documents, _last(ids, counts))[:, None])
            return self.logits(self.hidden(ids, cache, counts, documents))
        targets = targets.flatten() if learned is None else targets.flatten()[learned]
        hidden = self.hidden(ids, cache, counts, documents, learned).flatten(0, -2)
        return linear_cross_entropy(hidden, self.output_weight, targets, self.config.logit_softcap)

    @torch.no_grad()
    def token_losses(self, ids: Tensor, targets: Tensor) -> Tensor:  # both (batch, time) int64
        """The loss of every position in nats, (batch, time) fp32, zero where the target is IGNORE; no gradients."""
        hidden = self.hidden(ids).flatten(0, 1)
        if self.output.quantized is None:
            losses = token_losses(hidden, self.output_weight, targets.flatten(), self.config.logit_softcap)
        else:
            parts = zip(hidden.split(256), targets.flatten().split(256), strict=True)  # not all logits at a time
            losses = torch.cat([F.cross_entropy(self.logits(part), aim, reduction="none") for part, aim in parts])
        return losses.view(targets.shape)

    @property
    def output(self) -> Linear | Embedding:
        """The layer whose weight makes the logits."""
        return self.embedding if self.head is None else self.head

    @property
    def output_weight(self) -> Tensor:  # (vocab, width)
        return self.output.weight

    @property
    def device(self) -> torch.device:
        return next(itertools.chain(self.parameters(), self.buffers())).device

    @property
    def room(self) -> int:
        """The longest text: the context without the trained positions that stand before it."""
        return self.config.context_length - (0 if self.before_text is None else self.before_text.count)

    @property
    def before_text(self) -> VirtualTokens | None:
        """The trained positions that stand before every text, where there are some and they are switched on."""
        return self.virtual if self.virtual is not None and self.virtual.active else None

    def hidden(
        self,
        ids: Tensor,  # (batch, time)
        cache: KVCache | None = None,
        counts: Sequence[int] | None = None,
        documents: Tensor | None = None,
        wanted: Tensor | None = None,  # (positions,) int64, in batch * time
    ) -> Tensor:  # (batch, time, width), or (positions, width) of the `wanted` ones
        """The normalised output of the last block."""
        dropout = self.training and self.config.dropout > 0
        rows, before = self.embedding(ids), self.before_text
        if cache is not None:
            if before is not None and cache.length == 0:
                self.begin(cache)
            cache.place(ids.shape[1], counts)
            self._check_room(cache.filled)
            x = self._through(rows, ids, locate_after(self.config, ids, cache, dropout), cache, wanted)
            cache.advance()
            return x
        virtual = 0 if before is None else before.count
        self._check_room(virtual + ids.shape[1])
        embedded = isinstance(before, Prompt)
        if isinstance(before, Prompt):
            rows = before.before(rows)
        past = PrefixPast(before) if isinstance(before, Prefix) else None
        positions = locate(self.config, ids, dropout, documents, virtual, embedded)
        if embedded and wanted is not None:
            wanted = wanted + virtual * (wanted // ids.shape[1] + 1)
        x = self._through(rows, ids, positions, past, wanted)
        return x[:, virtual:] if embedded and wanted is None else x

    @torch.no_grad()
    def begin(self, cache: KVCache) -> None:
        """Put the trained positions that stand before every text into an empty cache."""
        before = self.before_text
        if isinstance(before, Prefix):
            before.fill(cache)
        elif isinstance(before, Prompt):
            batch = cache.keys.shape[1]
            none = torch.empty(batch, 0, dtype=torch.int64, device=cache.keys.device)
            rows = before.before(self.embedding(none))
            cache.place(before.count, None)
            self._through(rows, none, locate(self.config, none, False, None, before.count, True), cache)
            cache.advance()
        if cache.documents is not None:
            cache.documents[:, : cache.length] = EVERY

    def _check_room(self, stop: int) -> None:
        if stop > self.config.context_length:
            raise ValueError(f"{stop} positions do not fit the context of {self.config.context_length}")

    def _through(
        self,
        rows: Tensor,  # (batch, queries, width), the last `time` of them the embeddings of `ids`
        ids: Tensor,  # (batch, time)
        positions: Positions,
        cache: KVCache | PrefixPast | None,
        wanted: Tensor | None = None,  # (positions,) int64, in batch * queries
    ) -> Tensor:  # (batch, queries, width), or (positions, width) of the `wanted` ones
        """All that follows the embedding of tokens."""
        x, rotary = rows, None
        # Padding may stand past the end of the context.
        index = positions.indices.clamp(max=self.config.context_length - 1)
        if self.position_embedding is not None:
            x = x + self.position_embedding(index)
        else:
            rotary = self.rotary_cos[index], self.rotary_sin[index]
            if index.ndim == 2:
                rotary = rotary[0][:, None], rotary[1][:, None]  # for all heads
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        x = first = self.dropout(x)
        checkpointing = self.activation_checkpointing if self.training else "none"
        last = self.blocks[-1]
        # A compiled block would be compiled anew for every number of positions.
        inside = wanted if last._compiled_call_impl is None else None
        for layer, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            if self.residual_scale is not None and self.embedding_scale is not None:
                x = self.residual_scale[layer] * x + self.embedding_scale[layer] * first
            own = None
            if str(layer) in self.value_embeddings:
                own = self.value_embeddings[str(layer)](ids)
                own = F.pad(own, (0, 0, rows.shape[1] - ids.shape[1], 0))  # trained positions have none
            x = block(x, positions, rotary, own, cache, checkpointing, inside if block is last else None)
        return self.final_norm(x if inside is not None else chosen(x, wanted))

    def logits(self, hidden: Tensor) -> Tensor:  # (batch, time, width) -> (batch, time, vocab) fp32
        logits = (self.embedding.product(hidden) if self.head is None else self.head(hidden)).float()
        cap = self.config.logit_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)

    def weights(self) -> Iterator[tuple[str, nn.Parameter | QuantizedWeight]]:
        """Every weight by name, however it is kept, a tied head once."""
        yield from self.named_parameters()
        for name, module in self.named_modules():
            if isinstance(module, QuantizedWeight):
                yield name.removesuffix("quantized") + "weight", module

    def parameter_count(self) -> int:
        """Parameters, a tied head counted once."""
        return sum(weight.shape.numel() for _, weight in self.weights())

    def flops_per_token(self, sequence: int | None = None) -> int:
        """Training cost: 6 per matrix weight, 4 where it is frozen, plus causal attention over half of `sequence` (by
        default the context) on average.

        Forward and backward together, as PaLM (arXiv 2204.02311, appendix B) counts, with the causal half.
        """
        config = self.config
        head = "embedding.weight" if config.tied else "head.weight"
        matrices = [
            weight
            for name, weight in self.weights()
            if name == head or ("embedding" not in name and len(weight.shape) == 2)
        ]
        products = sum((6 if is_trained(weight) else 4) * weight.shape.numel() for weight in matrices)
        sequence = sequence or config.context_length
        window = min(config.window or sequence, sequence)
        seen = 2 * window - window**2 / sequence  # twice the mean number of keys that a query sees
        return products + 6 * int(config.layers * config.heads * config.head_size * seen)


def is_trained(weight: nn.Parameter | QuantizedWeight) -> bool:
    return isinstance(weight, nn.Parameter) and weight.requires_grad


def _last(ids: Tensor, counts: Sequence[int] | None) -> Tensor:  # (batch, time) -> (batch,), in batch * time
    """The place of the last real id of every row."""
    batch, time = ids.shape
    ends = [time - 1 if counts is None else max(counts[row] - 1, 0) for row in range(batch)]
    return torch.tensor([row * time + end for row, end in enumerate(ends)], device=ids.device)
