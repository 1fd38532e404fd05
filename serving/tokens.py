"""Addresses about tokens, as vLLM has them: for clients that count or score tokens without a tokenizer of their own."""

from __future__ import annotations

from serving.answers import Text, TokenizerInfo, Tokens
from serving.schemas import DetokenizeRequest, TokenizeRequest
from serving.service import Service


def tokenize(service: Service, asked: TokenizeRequest) -> Tokens:
    """Ids of a text; the name of a special token alone is that token, as clients look up which one ends a text.

    Raises ApiError for an unknown model.
    """
    room, tokenizer = service.model(asked.model).room, service.tokenizer
    named = {tokenizer.piece(number): number for number in (tokenizer.bos_id, *tokenizer.eos_ids)}
    special = {**named, **tokenizer.special_ids}.get(asked.prompt)
    ids = tokenizer.encode(asked.prompt) if special is None else [special]
    if asked.add_special_tokens:
        ids = [tokenizer.bos_id, *ids]
    return Tokens(tokens=ids, count=len(ids), max_model_len=room)


def detokenize(service: Service, asked: DetokenizeRequest) -> Text:
    """Text of ids. Raises ApiError for an unknown model, or an id that is no token."""
    service.model(asked.model)
    service.check_ids(asked.tokens, "tokens")
    return Text(prompt=service.tokenizer.decode(asked.tokens))


def tokenizer_info(service: Service) -> TokenizerInfo:
    tokenizer = service.tokenizer
    return TokenizerInfo(
        tokenizer_class=tokenizer.kind,
        vocab_size=tokenizer.vocab_size,
        model_max_length=service.default.room,
        bos_token=tokenizer.piece(tokenizer.bos_id),
        eos_token=tokenizer.piece(tokenizer.eos_id),
        chat_template=tokenizer.chat_template,
    )
