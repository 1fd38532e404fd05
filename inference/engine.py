"""Continuous batching: requests of any length come and go while others write.

A step reads a piece of a waiting prompt and writes a token of every request that has been read. What a request gets
does not depend on who else is there, but for the rounding of matrix products, which differs between batch sizes.
"""

from __future__ import annotations

import itertools
import math
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from common.errors import UserError
from data_pipeline.tokenizer import Tokenizer
from inference.choosing import BatchOptions, next_ids, penalized
from inference.logprobs import token_logprobs
from inference.passes import Passes
from inference.requests import GenerationRequest, Ticket, TokenLogprob, Update
from inference.row import Row
from inference.slots import SlotTable, cache_dtype
from inference.speculation import NOTHING, Proposal, Proposer, decide
from inference.speed import Speed
from model import Decoder, KVCache
from model.adapters.attach import Switch, names

OnUpdate = Callable[[Update], None]


class HasModel(Protocol):
    """Such as a `LoadedRun`."""

    @property
    def model(self) -> Decoder: ...

    @property
    def tokenizer(self) -> Tokenizer: ...


class Engine:
    """Writes the continuations of many requests at a time. `submit` and `cancel` may be called from any thread,
    everything else from one thread only. The model is to be in evaluation mode."""

    def __init__(
        self,
        loaded: HasModel,
        slots: int = 16,
        prefill_chunk: int = 256,
        capacity: int | None = None,
        speed: Speed | None = None,
        proposer: Proposer | None = None,
        native: bool = False,
    ) -> None:
        """
        Args:
            slots: requests that are written at a time; others wait, first come, first served.
            prefill_chunk: tokens of prompts that a step reads at most, so that those who write do not wait long.
            capacity: positions of a slot, by default the model's whole context.
            speed: where to add up what everything costs.
            proposer: makes decoding speculative; the distribution of what is written stays the same.
            native: write by the native step (model/native) where it can run this model; it may be compiled now.
        """
        self.model, self.tokenizer = loaded.model, loaded.tokenizer
        config = self.model.config
        self.prefill_chunk, self.speed = prefill_chunk, speed or Speed()
        self.capacity = min(capacity or config.context_length, config.context_length)
        cache = KVCache(config, slots + 1, self.capacity, self.model.device, cache_dtype(self.model))
        self._pass = Passes(self.model, native)
        self.table = SlotTable(cache, config.vocab_size)
        self.proposer = proposer
        if proposer is not None:
            proposer.begin(self.table)
        self.kv_capacity = slots * self.capacity
        self._unused_ids = torch.tensor(self.tokenizer.unused_ids(config.vocab_size), dtype=torch.int64)
        self._switch = Switch(self.model)
        self._virtual = config.context_length - self.model.room  # of the model as it is found
        self._numbers = itertools.count()
        self._arrived: deque[Row] = deque()
        self._cancelled: deque[Ticket] = deque()
        self._again: deque[Row] = deque()  # whose context has been full, to be read again
        self._staged: Row | None = None  # the request whose prompt is being read, and
        self._read_tokens = 0  # how far that is
        self._last_read: tuple[str | None, list[int], Tensor] | None = None  # what the staging row holds whole
        self._outbox: deque[tuple[OnUpdate, Update]] = deque()
        self._options: tuple[list[Row], BatchOptions] = ([], BatchOptions([]))

    @property
    def running(self) -> int:
        """Requests that are read or written."""
        return len(self.table.rows) + len(self._again) + (self._staged is not None)

    @property
    def waiting(self) -> int:
        """Requests that wait for a slot."""
        return len(self._arrived)

    @property
    def kv_tokens(self) -> int:
        """Positions of the cache that hold something, of `kv_capacity`."""
        return sum(self.table.cache.lengths[: self.table.staging]) + (self._read_tokens if self._staged else 0)

    def submit(self, request: GenerationRequest, on_update: OnUpdate) -> Ticket:
        """Queue a request; `on_update` is called in the stepping thread whenever a step brought it something, the last
        time with a reason to finish.

        Raises:
            UserError: there is no such adapter, an id is none of the model's, or the context cannot hold the prompt.
        """
        room = self.capacity - self._virtual_positions(request.adapter)
        vocab_size, length = self.model.config.vocab_size, len(request.prompt)
        if room < 2:
            raise UserError(
                "a model with a context of one token cannot continue text; train with model.context_length > 1"
            )
        if not all(0 <= token < vocab_size for token in request.prompt):
            raise UserError(f"the prompt holds token ids that are not among the model's, which go to {vocab_size - 1}")
        if request.sampling.overflow == "stop" and length >= room:
            raise UserError(
                f"the prompt has {length} tokens, but the context holds {room}, and one of them begins the text; "
                "shorten the prompt"
            )
        if request.logprobs is not None and not 0 <= request.logprobs <= vocab_size - len(self._unused_ids):
            raise UserError(f"logprobs {request.logprobs} is out of range: there are {vocab_size} tokens")
        row = Row(Ticket(next(self._numbers)), request, on_update, self.tokenizer, vocab_size, room)
        if request.sampling.max_new_tokens == 0 and not request.prompt_logprobs:
            row.finish("length")
            self._outbox.append((on_update, row.update()))
        else:
            self._arrived.append(row)
        return row.ticket

    def _virtual_positions(self, adapter: str | None) -> int:
        if adapter is None:
            return self._virtual
        known, virtual = names(self.model), self.model.virtual
        if adapter not in known:
            raise UserError(f"there is no adapter {adapter!r}; there are {', '.join(known) or 'none'}")
        return virtual.count if virtual is not None and virtual.name == adapter else 0

    def cancel(self, ticket: Ticket) -> None:
        """End a request before the next step; nothing happens when it has ended already."""
        self._cancelled.append(ticket)

    def run(self) -> None:
        """Step until there is nothing to do."""
        while self.step():
            pass

    @torch.no_grad()
    def step(self) -> bool:
        """Write one token of every request that has been read, read on in a prompt, and tell what is new; False when
        there was nothing to do.

        What an `on_update` raises comes out of here. The updates after it are delivered by the next step.
        """
        self._drop_cancelled()
        busy = bool(self.running or self.waiting or self._outbox)
        if self.running or self.waiting:
            try:
                self._work()
            finally:
                self._switch(None)
        while self._outbox:
            on_update, update = self._outbox.popleft()
            on_update(update)
        return busy

    def _work(self) -> None:
        began = time.perf_counter()
        rows, proposals = list(self.table.rows), self._proposals()
        logits = self._decode(proposals)
        middle = time.perf_counter()
        newcomers = self._read()
        read, written = time.perf_counter(), 0
        if rows or newcomers:
            everyone = rows + [row for row, _ in newcomers]
            if proposals:
                proposals += [NOTHING] * len(newcomers)
            logits += [last for _, last in newcomers]
            written = self._choose(everyone, proposals, torch.cat(logits) if len(logits) > 1 else logits[0])
        rest, speed = time.perf_counter() - read, self.speed
        speed.prefill_seconds += read - middle + (0 if rows else rest)
        speed.decode_seconds += middle - began + (rest if rows else 0)
        speed.decode_tokens += written - len(newcomers)

    def _proposals(self) -> list[Proposal]:
        """One a row; none at all when there is none for any."""
        if self.proposer is None or not self.table.rows:
            return []
        proposals = self.proposer.propose(self.table.rows)
        return proposals if any(proposal.tokens for proposal in proposals) else []

    def _decode(self, proposals: list[Proposal]) -> list[Tensor]:
        """Logits after the last token of every row and after those proposed for it, (positions, vocab) a group."""
        logits = []
        for adapter, first, count in self.table.groups():
            self._switch(adapter)
            ids = [row.ids[-1:] for row in self.table.rows[first : first + count]]
            for own, proposal in zip(ids, proposals[first : first + count], strict=False):
                own += proposal.tokens
            self.speed.decode_passes += 1
            self.speed.decode_positions += sum(self.table.cache.lengths[first : first + count]) + sum(map(len, ids))
            logits.append(self._pass(ids, self.table.cache, first, not proposals, self._switch.adapted))
        return logits

    def _read(self) -> list[tuple[Row, Tensor]]:
        """Read one chunk, or as many whole prompts as a chunk is long. Where a prompt is cut depends on itself alone.

        Returns those that have been read to their end, with the logits (1, vocab) after it.
        """
        finished, left = [], self.prefill_chunk
        while left > 0 and self._stage():
            row = self._staged
            assert row is not None
            chunk = row.ids[self._read_tokens : self._read_tokens + self.prefill_chunk]
            if len(chunk) > left < self.prefill_chunk:
                break
            left -= len(chunk)
            logits = self._read_chunk(row, chunk)
            if self._read_tokens < len(row.ids):
                break
            self._last_read = row.request.adapter, list(row.ids), logits
            self._staged = None
            if row.request.sampling.max_new_tokens == 0:
                row.finish("length")
                self._outbox.append((row.on_update, row.update()))
                continue
            self.table.insert(row)
            finished.append((row, logits))
        return finished

    def _stage(self) -> bool:
        """Whether there is a prompt to read on in; the next in line gets its turn when a slot is free."""
        if self._staged is None and self.table.has_room and (queue := self._again or self._arrived):
            self._staged = row = queue.popleft()
            self._read_tokens = 0
            if not row.written:
                row.waited = time.perf_counter() - row.submitted
            # Samples of one prompt come one after the other: what the staging row holds is read only once.
            if self._last_read and self._last_read[:2] == (row.request.adapter, row.ids) and not _wants_prompt(row):
                self._read_tokens = len(row.ids)
            else:
                self._last_read = None
                self.table.cache.lengths[self.table.staging] = 0
        return self._staged is not None

    def _read_chunk(self, row: Row, chunk: list[int]) -> Tensor:  # (1, vocab)
        if self._last_read is not None:
            return self._last_read[2]
        self._switch(row.request.adapter)
        wanted, adapted = _wants_prompt(row), self._switch.adapted
        logits = self._pass([chunk], self.table.cache, self.table.staging, not wanted, adapted)
        if wanted:
            self._explain_prompt(row, logits)
        self._read_tokens += len(chunk)
        self.speed.prefill_tokens += len(chunk)
        return logits[-1:]

    def _explain_prompt(self, row: Row, logits: Tensor) -> None:
        """Add the log-probabilities of the tokens after those of the present chunk, whose logits these are."""
        if row.prompt_logprobs is None:
            row.prompt_logprobs = [None] * (len(row.request.prompt) - (len(row.ids) - 1))
        following = row.ids[self._read_tokens + 1 : self._read_tokens + 1 + len(logits)]
        count = row.request.logprobs or 0
        row.prompt_logprobs += token_logprobs(logits[: len(following)], following, count, self._unused_ids)

    def _choose(self, rows: list[Row], proposals: list[Proposal], logits: Tensor) -> int:
        """Give every row its next tokens, from `logits` (positions, vocab); the number of all of them."""
        states, raw = [row.state for row in rows], logits
        if len(self._unused_ids):
            logits = logits.index_fill(1, self._unused_ids, -math.inf)
        if proposals:
            taken = decide(states, proposals, logits)
        else:
            if rows != self._options[0]:
                self._options = rows, BatchOptions([state.options for state in states])
            uniforms = torch.tensor([state.uniform() for state in states], dtype=torch.float64)
            taken = [[token] for token in next_ids(penalized(logits, states), self._options[1], uniforms).tolist()]
        first = 0
        for row, tokens, proposal in zip(rows, taken, proposals or [NOTHING] * len(rows), strict=True):
            own = raw[first : first + len(tokens)]
            first += len(proposal.tokens) + 1
            row.add(tokens, self._logprobs(row, tokens, own))
            if proposal.tokens and self.proposer is not None:
                self.proposer.learn(row, len(proposal.tokens), len(tokens) - 1)
        if proposals:
            self.table.trim()
        for row in rows:
            self._tell(row)
        return sum(map(len, taken))

    def _logprobs(self, row: Row, tokens: list[int], logits: Tensor) -> list[TokenLogprob]:
        count = row.request.logprobs
        return [] if count is None else token_logprobs(logits, tokens, count, self._unused_ids)

    def _tell(self, row: Row) -> None:
        """Note what is new of a row, and free its slot when it has ended or is to be read again."""
        self._outbox.append((row.on_update, row.update()))
        if row.finish_reason is not None:
            self.table.remove(row)
        elif row.is_full:
            self.table.remove(row)
            row.slide()
            self._again.append(row)

    def _drop_cancelled(self) -> None:
        while self._cancelled:
            ticket = self._cancelled.popleft()
            waiting = [*self.table.rows, *self._again, *self._arrived, *filter(None, [self._staged])]
            row = next((row for row in waiting if row.ticket == ticket), None)
            if row is None:
                continue
            row.finish_reason = "cancelled"
            self._outbox.append((row.on_update, row.update()))
            if row in self.table.rows:
                self.table.remove(row)
            elif row is self._staged:
                self._staged = None
            else:
                (self._again if row in self._again else self._arrived).remove(row)


def _wants_prompt(row: Row) -> bool:
    """Whether the log-probabilities of its prompt are still to be found."""
    return row.request.prompt_logprobs and not row.written
