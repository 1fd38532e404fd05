"""Tokens as texts, for log-probabilities."""

from __future__ import annotations

from collections.abc import Sequence

from data_pipeline.tokenizer import REPLACEMENT, Tokenizer
from inference import TokenLogprob
from inference.streaming import TextStream
from serving.answers import ChatLogprob, ChatLogprobs, CompletionLogprobs, TopLogprob

LEAST = -9999.0  # instead of minus infinity, which JSON does not have; as in vLLM


class TokenTexts:
    """What a client reads of single tokens.

    A token is its text in the middle of a sentence, the name of a special one, or, where it is only a part of a
    character, `token_id:NUMBER`, as vLLM has it. So different tokens never look alike by accident of decoding.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._special = {number: name for name, number in tokenizer.special_ids.items()}
        # Some tokenizers drop a space at the beginning of a text, so tokens are decoded behind another one.
        self._before = next((ids for ids in ([number] for number in tokenizer.encode("a")[-1:])), [])
        self._skipped = len(tokenizer.decode(self._before))
        self._known: dict[int, str] = {}

    def __getitem__(self, token: int) -> str:
        if token not in self._known:
            text = self.tokenizer.decode([*self._before, token])[self._skipped :]
            whole = text and REPLACEMENT not in text
            self._known[token] = text if whole else self._special.get(token, f"token_id:{token}")
        return self._known[token]

    def completion(
        self, tokens: Sequence[int], logprobs: Sequence[TokenLogprob | None], alternatives: int, offsets: Sequence[int]
    ) -> CompletionLogprobs:
        """The lists of /v1/completions, one entry a token; None, for the first token of a text, stays null."""
        tops = [None if entry is None else self._named(entry, alternatives) for entry in logprobs]
        return CompletionLogprobs(
            tokens=[self[token] for token in tokens],
            token_logprobs=[None if entry is None else finite(entry.logprob) for entry in logprobs],
            top_logprobs=tops if alternatives else None,
            text_offset=list(offsets),
        )

    def _named(self, entry: TokenLogprob, alternatives: int) -> dict[str, float]:
        """The likeliest tokens and the one that stands there, which may not be among them."""
        named: dict[str, float] = {}
        for token, value in dict((*entry.top[:alternatives], (entry.token, entry.logprob))).items():
            name = self[token]  # which a byte can share with a longer piece
            named[f"token_id:{token}" if name in named else name] = finite(value)
        return named

    def chat(self, logprobs: Sequence[TokenLogprob], alternatives: int) -> ChatLogprobs:
        """The list of /v1/chat/completions."""
        content = []
        for entry in logprobs:
            top = [self._top(token, value) for token, value in entry.top[:alternatives]]
            own = self._top(entry.token, entry.logprob)
            content.append(ChatLogprob(**own.model_dump(), top_logprobs=top))
        return ChatLogprobs(content=content)

    def _top(self, token: int, value: float) -> TopLogprob:
        text = self[token]
        known = not text.startswith("token_id:")
        return TopLogprob(token=text, logprob=finite(value), bytes=list(text.encode()) if known else None)


class Offsets:
    """Where every token begins in its text, in characters."""

    def __init__(self, tokenizer: Tokenizer, before: Sequence[int]) -> None:
        """`before`: tokens that the text follows, its prompt where that is no part of it."""
        self._stream = TextStream(tokenizer, before=before)

    def add(self, tokens: Sequence[int]) -> list[int]:
        """One offset a token; the parts of a character have the same."""
        offsets = []
        for token in tokens:
            offsets.append(len(self._stream.text))
            self._stream.add(token)
        return offsets


def finite(value: float) -> float:
    return max(value, LEAST)
