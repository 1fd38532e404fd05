"""Where speculative decoding takes its proposals from: the text itself, or a smaller model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from common.errors import UserError
from data_pipeline.tokenizer import Tokenizer
from inference.choosing import BatchOptions, kept, next_ids
from inference.loading import LoadedRun
from inference.passes import Passes
from inference.row import Row
from inference.slots import SlotTable, cache_dtype
from inference.speculation import NOTHING, Pace, Proposal
from model import KVCache
from model.adapters.attach import active_names


class PromptLookup:
    """Proposes what followed the last tokens where they stood before, in the prompt or in what has been written."""

    def __init__(self, tokens: int = 8, match: int = 3) -> None:
        """Args: tokens: proposed at most; match: so many of the last tokens must have stood there before."""
        self.tokens, self.match = tokens, match
        self._texts: WeakKeyDictionary[Row, _Text] = WeakKeyDictionary()

    def begin(self, table: SlotTable) -> None:
        """Nothing is kept a slot."""

    def propose(self, rows: Sequence[Row]) -> list[Proposal]:
        found = []
        for row in rows:
            text = self._texts.get(row)
            if text is None:
                text = self._texts[row] = _Text()
            place = text.last_place(row.ids, self.match)
            room = text.pace.room(row, self.tokens) if place else 0
            # Past the end of the text it goes on as it began: what repeats itself is mostly repeated once more.
            period = len(row.ids) - place
            found.append(Proposal([row.ids[place + number % period] for number in range(room)]) if room else NOTHING)
        return found

    def learn(self, row: Row, proposed: int, accepted: int) -> None:
        self._texts[row].pace.learn(row, proposed, accepted)


class _Text:
    """Where each run of tokens in a text was followed last."""

    def __init__(self) -> None:
        self.pace = Pace()
        self._follows: dict[tuple[int, ...], int] = {}
        self._indexed = 0  # tokens of the text

    def last_place(self, ids: Sequence[int], match: int) -> int:
        """The place after the last earlier run equal to the final `match` ids; 0 when there is none."""
        if self._indexed > len(ids):  # the text has lost its beginning
            self._follows, self._indexed = {}, 0
        for stop in range(max(self._indexed, match), len(ids)):
            self._follows[tuple(ids[stop - match : stop])] = stop
        self._indexed = len(ids)
        return self._follows.get(tuple(ids[-match:]), 0)


class DraftModel:
    """Proposes what a smaller model of the same tokenizer writes, drawn with the options of each row."""

    def __init__(self, draft: LoadedRun, tokenizer: Tokenizer, tokens: int = 4, native: bool = False) -> None:
        """`native`: as the engine's. Raises UserError when the draft has another tokenizer, or trained positions before
        a text."""
        if draft.tokenizer.sha256 != tokenizer.sha256:
            raise UserError(
                f"{draft.run.path} cannot draft: its tokenizer (sha256 {draft.tokenizer.sha256[:12]}) is not that of "
                f"the model (sha256 {tokenizer.sha256[:12]}); take a run that was trained on the same data"
            )
        if draft.model.before_text is not None:
            raise UserError(f"{draft.run.path} cannot draft: it puts trained positions before a text; take another run")
        self.model, self.tokens = draft.model, tokens
        self._pass, self._adapted = Passes(draft.model, native), bool(active_names(draft.model))
        self._paces: WeakKeyDictionary[Row, Pace] = WeakKeyDictionary()
        self._unused_ids = torch.tensor(tokenizer.unused_ids(self.model.config.vocab_size), dtype=torch.int64)

    def begin(self, table: SlotTable) -> None:
        config, slots = self.model.config, len(table.cache.lengths)
        self._table = table
        self._cache = KVCache(config, slots, config.context_length, self.model.device, cache_dtype(self.model))
        table.followers.append(self._cache)

    def learn(self, row: Row, proposed: int, accepted: int) -> None:
        self._paces[row].learn(row, proposed, accepted)

    def propose(self, rows: Sequence[Row]) -> list[Proposal]:
        counts = [self._count(row) for row in rows]
        if not any(counts):
            return [NOTHING] * len(rows)
        tokens: list[list[int]] = [[] for _ in rows]
        seen: list[list[Tensor]] = [[] for _ in rows]
        for drawn in range(max(counts)):
            asked = [number for number, count in enumerate(counts) if count > drawn]
            logits = self._logits(rows, tokens, asked)
            options = BatchOptions([rows[number].request.sampling for number in asked])
            uniforms = torch.tensor([rows[number].state.uniform() for number in asked], dtype=torch.float64)
            chosen = next_ids(logits, options, uniforms).tolist()
            sampled = [number for number in asked if rows[number].request.sampling.temperature > 0]
            if sampled:
                wanted = logits[options.sampled]
                for number, each in zip(sampled, kept(wanted, options).softmax(-1), strict=True):
                    seen[number].append(each)
            for number, token in zip(asked, chosen, strict=True):
                tokens[number].append(token)
        return [Proposal(own, torch.stack(q) if q else None) for own, q in zip(tokens, seen, strict=True)]

    def _count(self, row: Row) -> int:
        pace = self._paces.setdefault(row, Pace())
        return max(0, min(pace.room(row, self.tokens), self.model.config.context_length - len(row.ids)))

    def _logits(self, rows: Sequence[Row], tokens: list[list[int]], asked: list[int]) -> Tensor:
        """Logits (asked, vocab of the model) after the text and the drawn tokens of each row that is asked about."""
        cache = self._cache
        unread = [
            (row.ids + own)[cache.lengths[slot] :] if slot in asked else []
            for slot, (row, own) in enumerate(zip(rows, tokens, strict=True))
        ]
        for slot, ids in enumerate(unread):  # texts of their own, so that nobody is padded to their length
            if len(ids) > self.tokens + 1:
                self._pass([ids[:-1]], cache, slot, True, self._adapted)
                unread[slot] = ids[-1:]
        logits = self._pass(unread, cache, 0, True, self._adapted)[asked]
        if len(self._unused_ids):
            logits = logits.index_fill(1, self._unused_ids, -math.inf)
        missing = self._table.vocab_size - logits.shape[1]  # rows that are no tokens
        return F.pad(logits, (0, missing), value=-math.inf) if missing else logits
