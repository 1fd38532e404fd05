"""Training the SentencePiece tokenizer on a sample of the training split."""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import sentencepiece

from common.errors import UserError
from common.files import atomic_write
from data_pipeline.config import SPECIAL_TOKENS, TokenizerConfig
from data_pipeline.documents import Counts, read_documents, stable_fraction
from data_pipeline.tiktoken_files import tiktoken_content
from data_pipeline.tokenizer_import import pack

CHUNK_BYTES = 4000  # SentencePiece skips what it takes for over-long sentences; 4192 bytes is its usual limit
_SMALLEST_VOCABULARY = 256 + 3 + len(SPECIAL_TOKENS)  # bytes, <unk>, <s>, </s>, special tokens


@dataclass(frozen=True)
class TrainArgument:
    paths: list[Path]
    source_bytes: dict[int, int]  # training text of each source
    config: TokenizerConfig


def train_tokenizer(task: str, directory: Path, argument: TrainArgument) -> Counts:
    """Write `tokenizer.model`: ready-made, or trained on a sample of `sample_bytes` that the sources share equally.

    Raises:
        UserError: tiktoken does not have the encoding that is wanted; or the sample has too few different words for
            the vocabulary, and the message names a size that fits.
    """
    config, counts = argument.config, Counts()
    ready = ready_made(config)
    if ready is not None:
        with atomic_write(directory / f"{task}.model", "wb") as file:
            file.write(ready)
        return counts
    if config.vocab_size <= _SMALLEST_VOCABULARY:
        raise UserError(
            f"--tokenizer.vocab-size {config.vocab_size} is too small: bytes and special tokens alone take "
            f"{_SMALLEST_VOCABULARY}; the least useful size is about 512"
        )
    sampled: Counter[int] = Counter()
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_sample(argument, sampled),
            model_writer=model,
            model_type="bpe",
            vocab_size=config.vocab_size,
            # Text must come back from its ids unchanged: no normalisation, and no space added or removed.
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            byte_fallback=True,
            character_coverage=config.character_coverage,
            split_digits=True,
            max_sentencepiece_length=config.max_piece_characters,
            max_sentence_length=1 << 16,
            input_sentence_size=0,
            shuffle_input_sentence=False,
            hard_vocab_limit=True,
            num_threads=1,  # stored in the model, so another number would be another file; BPE uses one anyway
            unk_id=0,
            bos_id=1,
            eos_id=2,
            pad_id=-1,
            # Control symbols are never produced from text, so that no document can forge the turns of a chat.
            control_symbols=list(SPECIAL_TOKENS),
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        raise UserError(_explain(str(error), config, sum(sampled.values()))) from error
    with atomic_write(directory / f"{task}.model", "wb") as file:
        file.write(model.getvalue())
    counts.details = {"sampled_bytes": {str(source): size for source, size in sorted(sampled.items())}}
    return counts


def ready_made(config: TokenizerConfig) -> bytes | None:
    """The tokenizer, where it has not to be trained."""
    if config.kind == "tiktoken":
        return tiktoken_content(config.encoding, SPECIAL_TOKENS)
    if config.kind == "existing":
        assert config.path is not None  # config_checks.py
        return pack(config.path)
    return None


def chunks(text: str) -> Iterator[str]:
    """`text` in pieces of at most `CHUNK_BYTES`, cut after newlines, which stay; a longer line is cut anywhere."""
    start, size = 0, 0
    position = 0
    while position < len(text):
        most = min(len(text), position + CHUNK_BYTES + 1)  # what is longer is too long, however much of it follows
        end = text.find("\n", position, most) + 1 or most
        width = len(text[position:end].encode())
        if size and size + width > CHUNK_BYTES:
            yield text[start:position]
            start, size = position, 0
        if width > CHUNK_BYTES:
            end = position + CHUNK_BYTES // 4  # a character takes four bytes at most
            yield text[position:end]
            start = end
        else:
            size += width
        position = end
    if start < len(text):
        yield text[start:]


def _sample(argument: TrainArgument, sampled: Counter[int]) -> Iterator[str]:
    """Training text: each document is in or out by a hash of its id, at the rate that fills its source's share."""
    share = argument.config.sample_bytes / max(1, len(argument.source_bytes))
    rates = {source: share / max(1, size) for source, size in argument.source_bytes.items()}
    for path in argument.paths:
        for document in read_documents(path):
            if document.split != "train" or stable_fraction("tokenizer", document.id) >= rates[document.source]:
                continue
            sampled[document.source] += document.byte_count
            yield from chunks(document.text)


def _explain(message: str, config: TokenizerConfig, size: int) -> str:
    """SentencePiece says what size it could reach, or at least needs, in terms of its own options."""
    sizes = [int(number) for number in re.findall(r"\d+", message)]
    needed = [number for number in sizes if number > config.vocab_size]
    if "required_chars" in message and needed:
        return (
            f"a vocabulary of {config.vocab_size:,} cannot hold the different characters of the text: set "
            f"--tokenizer.vocab-size to more than {max(needed)}, or lower --tokenizer.character-coverage"
        )
    reachable = [number for number in sizes if _SMALLEST_VOCABULARY < number < config.vocab_size]
    if "too high" in message and reachable:
        return (
            f"the sample of {size:,} bytes is too small for a vocabulary of {config.vocab_size:,}: "
            f"set --tokenizer.vocab-size to {max(reachable)} or less, or add text"
        )
    return f"SentencePiece could not be trained on {size:,} bytes: {message.strip()}"
