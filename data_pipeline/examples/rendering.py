"""Records as token ids, with a mask that says which of them a model learns to predict."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from common.errors import UserError
from data_pipeline.chat import Message
from data_pipeline.examples.chat_text import END_HEADER, END_OF_TURN, MARKS, START_HEADER, turns
from data_pipeline.examples.prompts import HeaderChat, Prompt
from data_pipeline.examples.records import ChatText, Completion, Conversation, PlainText, Problem, Record
from data_pipeline.tokenizer import Tokenizer

Learn = Literal["completion", "all"]
"""What is learned of a record that asks and answers: the answers and their ends, or every token."""

_NO_VARIABLES: Mapping[str, str] = {}


@dataclass(frozen=True)
class Rendered:
    """An example as a model reads it."""

    ids: np.ndarray
    """(tokens,) int32. The first is what a model sees before a text."""
    learned: np.ndarray
    """(tokens,) bool, true where the token is a target; never the first."""
    text_bytes: int
    """UTF-8 bytes of the text that is learned, without special tokens."""


def render(
    record: Record, tokenizer: Tokenizer, learn: Learn, template_variables: Mapping[str, str] = _NO_VARIABLES
) -> Rendered | Problem:
    """One record as `render_batch` renders it."""
    return render_batch([record], tokenizer, learn, template_variables)[0]


def render_batch(
    records: Sequence[Record],
    tokenizer: Tokenizer,
    learn: Learn,
    template_variables: Mapping[str, str] = _NO_VARIABLES,
) -> list[Rendered | Problem]:
    """Records as token ids, or what is wrong with one.

    Prompt and completion are encoded one by one, so a token never spans both, and an equal prompt is equal, id by id,
    when the model is used. Of a conversation the answers are learned with the token that ends each, not its header.

    Args:
        template_variables: more that the chat template may ask for, such as `date_string`.

    Raises:
        UserError: there are conversations, and the tokenizer has no chat template.
    """
    return _Renderer(tokenizer, learn, template_variables).render(records)


def render_prompt(
    prompt: Prompt, tokenizer: Tokenizer, template_variables: Mapping[str, str] = _NO_VARIABLES
) -> np.ndarray:
    """What stands before an answer, id by id as in training, (tokens,) int32; `PromptStyle.prompt` makes such prompts.

    The first id is the tokenizer's `bos_id`, so it must not be put before these ids again.

    Raises:
        UserError: the prompt is a conversation, and there is no chat template or it refuses these messages.
    """
    if isinstance(prompt, str):
        return _as_ids([tokenizer.bos_id, *tokenizer.encode(prompt)])
    if isinstance(prompt, HeaderChat) and tokenizer.special_ids.keys() >= set(MARKS):
        return _as_ids(_headers_by_hand(prompt, tokenizer))
    messages = prompt.messages if isinstance(prompt, HeaderChat) else prompt
    return _as_ids(_chat(messages, True, tokenizer, template_variables))


class _Renderer:
    """What all records of a batch have in common."""

    def __init__(self, tokenizer: Tokenizer, learn: Learn, template_variables: Mapping[str, str]) -> None:
        self.tokenizer, self.learn, self.variables = tokenizer, learn, template_variables
        self.special = tokenizer.special_ids
        self.special_ids = frozenset(self.special.values())
        longest_first = sorted(self.special, key=len, reverse=True)
        self.marks = re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")
        self.reads_headers = self.special.keys() >= set(MARKS)
        # Llama 2's puts a space of its own before whatever it encodes.
        self.adds_space = tokenizer.decode(tokenizer.encode("a") + tokenizer.encode("b")) == "a b"

    def render(self, records: Sequence[Record]) -> list[Rendered | Problem]:
        texts = [self._texts(record) for record in records]
        encoded = iter(self.tokenizer.encode_batch([text for of_one in texts for text in of_one]))
        rendered: list[Rendered | Problem] = []
        for record, of_one in zip(records, texts, strict=True):
            content = record.content
            if isinstance(content, Conversation):
                rendered.append(self._conversation(record, content.messages))
            elif isinstance(content, ChatText):
                rendered.append(self._chat_text(record, content.text))
            else:
                rendered.append(self._plain(content, [next(encoded) for _ in of_one]))
        return rendered

    def _texts(self, record: Record) -> tuple[str, ...]:
        """What of a record is encoded as plain text: prompt and completion, or a document."""
        content = record.content
        if isinstance(content, Completion):
            completion = content.completion.removeprefix(" ") if self.adds_space else content.completion
            return content.prompt, completion
        return (content.text,) if isinstance(content, PlainText) else ()

    def _plain(self, content: Completion | PlainText, parts: list[np.ndarray]) -> Rendered:
        ids = np.concatenate([_as_ids([self.tokenizer.bos_id]), *parts, _as_ids([self.tokenizer.eos_id])])
        first = 1
        text = content.text if isinstance(content, PlainText) else content.prompt + content.completion
        if isinstance(content, Completion) and self.learn == "completion":
            first += len(parts[0])
            text = content.completion
        return Rendered(ids, np.arange(len(ids)) >= first, len(text.encode("utf-8", "replace")))

    def _conversation(self, record: Record, messages: Sequence[Message]) -> Rendered | Problem:
        if self.tokenizer.chat_template is None:
            raise UserError(
                f"{record.path} holds conversations, but {self.tokenizer.path} has no chat template; take the "
                "tokenizer of a model that was trained to chat, put a chat_template.jinja beside it before it is "
                "imported, or write prompts and completions instead"
            )
        try:
            ids = self._chat(messages, False)
            learned = np.zeros(len(ids), bool)
            for number, message in enumerate(messages):
                if message["role"] != "assistant" or self.learn == "all":
                    continue
                before = self._chat(messages[:number], True)
                after = ids if number + 1 == len(messages) else self._chat(messages[: number + 1], False)
                if after[: len(before)] != before or ids[: len(after)] != after:
                    return record.problem(
                        f"the chat template writes message {number + 1}, or what stands before it, otherwise when more "
                        "follows, so nobody can tell which tokens are the answer"
                    )
                learned[len(before) : self._end_of_turn(after, len(before))] = True
        except UserError as error:
            return record.problem(str(error))
        return self._masked(record, ids, learned)

    def _chat(self, messages: Sequence[Message], add_generation_prompt: bool) -> list[int]:
        return _chat(messages, add_generation_prompt, self.tokenizer, self.variables)

    def _end_of_turn(self, ids: list[int], start: int) -> int:
        """Where the answer from `start` on ends: white space behind its last special token is the template's."""
        stop = len(ids)
        while stop > start and self._is_blank(ids[stop - 1]):
            stop -= 1
        return stop if stop > start and ids[stop - 1] in self.special_ids else len(ids)

    def _chat_text(self, record: Record, text: str) -> Rendered | Problem:
        """The ids are those of the text as it is, special tokens and white space included."""
        found = turns(text)
        if not self.reads_headers:  # the same conversation, with this tokenizer's own template
            return self._conversation(record, [{"role": turn.role, "content": turn.content} for turn in found])
        ids, learned = [self.tokenizer.bos_id], [False]
        for turn in found:
            body = self._with_marks(turn.body)
            blank = next(number for number, token in enumerate(body) if not self._is_blank(token))
            answer = turn.role == "assistant"
            for part, is_target in (
                (self._with_marks(turn.header), False),
                (body[:blank], False),
                (body[blank:], answer),
                (self._with_marks(turn.rest), False),
            ):
                ids += part
                learned += [is_target] * len(part)
        return self._masked(record, ids, np.array(learned))

    def _with_marks(self, text: str) -> list[int]:
        """Token ids of `text`, in which special tokens are meant as such."""
        ids: list[int] = []
        for part in filter(None, self.marks.split(text)):
            ids += [self.special[part]] if part in self.special else self.tokenizer.encode(part)
        return ids

    def _is_blank(self, token: int) -> bool:
        return token not in self.special_ids and not self.tokenizer.decode([token]).strip()

    def _masked(self, record: Record, ids: list[int], learned: np.ndarray) -> Rendered | Problem:
        if self.learn == "all":
            learned = np.arange(len(ids)) > 0
        if not learned.any():
            return record.problem("nothing in it is learned: no turn is the assistant's")
        array = _as_ids(ids)
        return Rendered(array, learned, len(self.tokenizer.decode(array[learned].tolist()).encode()))


def _chat(
    messages: Sequence[Message], add_generation_prompt: bool, tokenizer: Tokenizer, variables: Mapping[str, Any]
) -> list[int]:
    """What a model sees before a text comes first, once: a template may have written it already."""
    ids = tokenizer.encode_chat(messages, add_generation_prompt, **variables)
    return ids if ids[:1] == [tokenizer.bos_id] else [tokenizer.bos_id, *ids]


def _headers_by_hand(prompt: HeaderChat, tokenizer: Tokenizer) -> list[int]:
    """What is said is encoded as plain text, so nothing in it can forge a turn."""
    start, end, end_of_turn = (tokenizer.special_ids[token] for token in (START_HEADER, END_HEADER, END_OF_TURN))
    ids = [tokenizer.bos_id]
    for message in prompt.messages:
        ids += [start, *tokenizer.encode(message["role"]), end]
        ids += [*tokenizer.encode(prompt.after_header + message["content"]), end_of_turn]
        ids += tokenizer.encode(prompt.after_turn)
    # A space before an answer is part of its first token, which the model writes.
    return [*ids, start, *tokenizer.encode("assistant"), end, *tokenizer.encode(prompt.after_header.rstrip(" "))]


def _as_ids(ids: Sequence[int]) -> np.ndarray:
    return np.asarray(ids, dtype=np.int32)
