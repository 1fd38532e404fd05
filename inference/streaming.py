"""From token ids to text that will not change any more: whole characters, and nothing of a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from data_pipeline.tokenizer import REPLACEMENT, Tokenizer


class TextStream:
    """Takes the tokens of one sample one by one and gives out text as soon as it is final.

    Stop strings are searched for in the text, not in the tokens, so they may begin and end anywhere inside tokens and
    overlap with false starts of themselves ("aab" in "aaab").
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), before: Sequence[int] = ()) -> None:
        """`before`: the tokens that the sample follows, its prompt."""
        self._tokenizer = tokenizer
        self._stop = tuple(stop)
        # Tokens are decoded behind whole characters: at the beginning some tokenizers would drop a space.
        self._before = _whole_end(tokenizer, before)
        self._skipped = len(tokenizer.decode(self._before))  # characters of those
        self._ids: list[int] = []  # tokens since the last one after which every character was whole
        self._taken = 0  # characters of those tokens already moved to `_held`
        self._held = ""  # whole characters that may still turn out to be the beginning of a stop string
        self.stopped = False
        self.text = ""
        """All that was given out so far."""

    def add(self, token_id: int) -> str:
        """Append a token; return the text that became final with it, often the token's own, sometimes nothing."""
        self._ids.append(token_id)
        decoded = self._decode()
        whole = without_open_character(decoded)
        self._held += whole[self._taken :]
        self._taken = len(whole)
        if whole == decoded and (decoded or self._before):
            if decoded:
                self._before, self._skipped = self._ids, len(self._tokenizer.decode(self._ids))
            self._ids, self._taken = [], 0
        return self._release(partial_stops_wait=True)

    def close(self) -> str:
        """The sample has ended: return what was held back, bytes of an unfinished character as U+FFFD."""
        self._held += self._decode()[self._taken :]
        self._ids, self._taken = [], 0
        return self._release(partial_stops_wait=False)

    def _decode(self) -> str:
        return self._tokenizer.decode(self._before + self._ids)[self._skipped :]

    def _release(self, partial_stops_wait: bool) -> str:
        if self.stopped:
            return ""
        found = first_stop(self._held, self._stop)
        if found is not None:
            self.stopped = True
            final, self._held = self._held[:found], ""
        else:
            waiting = open_stop(self._held, self._stop) if partial_stops_wait else 0
            cut = len(self._held) - waiting
            final, self._held = self._held[:cut], self._held[cut:]
        self.text += final
        return final


def _whole_end(tokenizer: Tokenizer, ids: Sequence[int]) -> list[int]:
    """The shortest end of `ids` that is text of whole characters; nothing when there is none within a few tokens."""
    for count in range(1, min(len(ids), 8) + 1):
        text = tokenizer.decode(ids[-count:])
        if text and REPLACEMENT not in text:
            return list(ids[-count:])
    return []


def without_open_character(text: str) -> str:
    """Drop what may be the first bytes of an unfinished character; in UTF-8 these are three at most."""
    for _ in range(3):
        text = text.removesuffix(REPLACEMENT)
    return text


def first_stop(text: str, stop: Sequence[str]) -> int | None:
    """Where the stop string begins that a reader of `text` completes first; None when there is none.

    The earliest end decides, not the earliest beginning, so the result does not depend on how tokens cut the text.
    """
    spans = [(start + len(string), start) for string in stop if (start := text.find(string)) >= 0]
    return min(spans)[1] if spans else None


def open_stop(text: str, stop: Sequence[str]) -> int:
    """Length of the longest end of `text` that is the beginning of a stop string."""
    longest = max((len(string) for string in stop), default=1) - 1
    for length in range(min(longest, len(text)), 0, -1):
        if any(string.startswith(text[-length:]) for string in stop):
            return length
    return 0
