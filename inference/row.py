"""A request on its way."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from data_pipeline.tokenizer import Tokenizer
from inference.choosing import RowState
from inference.requests import FinishReason, GenerationRequest, Ticket, TokenLogprob, Update
from inference.streaming import TextStream


class Row:
    """What a request has read and written, and what of that it has not been told yet."""

    def __init__(
        self,
        ticket: Ticket,
        request: GenerationRequest,
        on_update: Callable[[Update], None],
        tokenizer: Tokenizer,
        vocab_size: int,
        room: int,
    ) -> None:
        """`room`: positions for its text, the id that begins it included."""
        self.ticket, self.request, self.on_update, self.room = ticket, request, on_update, room
        self.ids = [tokenizer.bos_id, *request.prompt[max(0, len(request.prompt) - room + 1) :]]
        """What the model sees or is to see; all of it but perhaps the last token lies in the cache."""
        self.written = 0
        self.submitted, self.waited = time.perf_counter(), 0.0
        self.finish_reason: FinishReason | None = None
        self.state = RowState(request.sampling, request.sample, request.prompt, vocab_size)
        self._ends = () if request.ignore_eos else tokenizer.eos_ids
        self._stream = TextStream(tokenizer, request.sampling.stop, request.prompt)
        self._text, self._tokens, self._logprobs = "", list[int](), list[TokenLogprob]()
        self.prompt_logprobs: list[TokenLogprob | None] | None = None  # until the first update

    def add(self, tokens: Sequence[int], logprobs: Sequence[TokenLogprob]) -> None:
        """Take chosen tokens, up to one that ends the text (`finish_reason`); `logprobs` is empty or one a token."""
        options = self.request.sampling
        for number, token in enumerate(tokens):
            if token in self._ends:
                self.finish("eos")
                return
            self.ids.append(token)
            self.written += 1
            self.state.add(token)
            self._tokens.append(token)
            self._logprobs += logprobs[number : number + 1]
            self._text += self._stream.add(token)
            if self._stream.stopped:
                self.finish_reason = "stop"
                return
            if self.written >= options.max_new_tokens or (self.is_full and options.overflow == "stop"):
                self.finish("length")
                return

    def slide(self) -> None:
        """Go on from the newest half of the text, behind the id that begins one; it is to be read again."""
        self.ids = [self.ids[0], *self.ids[-(self.room // 2) :]]

    @property
    def is_full(self) -> bool:
        """Whether there is no place for its last token."""
        return len(self.ids) > self.room

    def finish(self, reason: FinishReason) -> None:
        """End the text, unless what was held back of it turns out to hold a stop string."""
        self._text += self._stream.close()
        self.finish_reason = "stop" if self._stream.stopped else reason

    def update(self) -> Update:
        """What is new since the last one."""
        prompt, self.prompt_logprobs = self.prompt_logprobs, None
        update = Update(
            self._text,
            tuple(self._tokens),
            None if self.request.logprobs is None else tuple(self._logprobs),
            None if prompt is None else tuple(prompt),
            self.finish_reason,
            self.waited,
        )
        self._text, self._tokens, self._logprobs = "", [], []
        return update
