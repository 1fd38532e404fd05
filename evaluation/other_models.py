"""Other models as baselines, scored on the same documents: the untrained one, other runs, and those of Hugging Face."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from common.errors import UserError
from data_pipeline.shards import Dataset
from data_pipeline.tokenizer import Tokenizer
from evaluation.perplexity import packed_windows
from model import Decoder, ModelConfig
from model.convert.opening import open_source, tokenizer_of
from model.convert.starting import base_decoder

Scorer = Callable[[Decoder, np.ndarray, np.ndarray, int], np.ndarray]
"""From a model, tokens, windows and the end-of-text id to the nats of every token, as `perplexity.token_nll`."""


def untrained(config: ModelConfig, seed: int) -> Decoder:
    """The model of a run as it was before its first step."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Decoder(config).eval()


def score_other(place: str, dataset: Dataset, device: torch.device, score: Scorer) -> tuple[np.ndarray, np.ndarray]:
    """Nats and tokens of every validation document, (documents,) each, under the model at `place`.

    A model with another tokenizer reads the same texts in its own tokens, so that bits per byte can be compared, which
    nothing else can.

    Args:
        place: a run (name or path), a Hugging Face directory, or hf://ORG/NAME.

    Raises:
        UserError: there is no model there, or it has no tokenizer.
    """
    source = open_source(place)
    tokenizer = tokenizer_of(source)
    model = base_decoder(source.config, source, device).eval()
    if tokenizer.vocab_size > source.config.vocab_size:
        raise UserError(
            f"{place}: its tokenizer has {tokenizer.vocab_size:,} ids, its weights {source.config.vocab_size:,}"
        )
    stream = dataset.split("val")
    documents = stream.documents()
    tokens, lengths = stream.read(0, len(stream)), documents["tokens"].astype(np.int64)
    if tokenizer.sha256 != dataset.tokenizer_sha256:
        texts = _texts(tokens, lengths, Tokenizer(dataset.tokenizer_path))
        tokens, lengths = _encoded(texts, tokenizer)
    nll = score(model, tokens, packed_windows(len(tokens), source.config.context_length), tokenizer.eos_id)
    starts = np.cumsum(lengths) - lengths
    if tokenizer.has_bos and tokenizer.sha256 != dataset.tokenizer_sha256:
        nll[starts] = 0  # a token that begins every text says nothing of it
    return np.add.reduceat(nll, starts, dtype=np.float64), lengths


def _texts(tokens: np.ndarray, lengths: np.ndarray, tokenizer: Tokenizer) -> list[str]:
    begins = int(tokenizer.has_bos)
    parts = np.split(tokens, np.cumsum(lengths)[:-1])
    return [tokenizer.decode(part[begins:-1].tolist()) for part in parts]  # the last one is end-of-text


def _encoded(texts: Sequence[str], tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """All texts in one stream as in curated data, and the tokens of each."""
    begins = [tokenizer.bos_id] if tokenizer.has_bos else []
    ids: list[Any] = [
        np.concatenate([begins, one, [tokenizer.eos_id]]).astype(np.int64) for one in tokenizer.encode_batch(texts)
    ]
    return np.concatenate(ids), np.array([len(one) for one in ids], np.int64)
