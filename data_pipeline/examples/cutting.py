"""Makes examples no longer than a model can read."""

from __future__ import annotations

import dataclasses

import numpy as np

from data_pipeline.examples.rendering import Rendered
from data_pipeline.tokenizer import Tokenizer


def cut(example: Rendered, tokenizer: Tokenizer, max_length: int) -> Rendered:
    """The first `max_length` tokens. Its end is gone, so it does not teach where to stop; all targets may be gone."""
    ids, learned = example.ids[:max_length], example.learned[:max_length]
    return Rendered(ids, learned, len(tokenizer.decode(ids[learned].tolist()).encode()))


def divide(document: Rendered, max_length: int) -> list[Rendered]:
    """Consecutive parts of at most `max_length` tokens, so that each token of the document is predicted once.

    Each part begins with the id that a model sees before a text. The bytes are counted with the first part, because a
    part may end within a character.
    """
    step = max_length - 1
    pieces = [document.ids[start : start + step] for start in range(1, len(document.ids), step)]
    parts = [Rendered(np.concatenate([document.ids[:1], piece]), np.arange(len(piece) + 1) > 0, 0) for piece in pieces]
    return [dataclasses.replace(parts[0], text_bytes=document.text_bytes), *parts[1:]]
