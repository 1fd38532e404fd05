"""A tokenizer as the engines that load an exported model read it: `tokenizer.json`, or what a GGUF file holds.

A SentencePiece model and an encoding of tiktoken are byte-pair encodings of which only the order of the merged tokens
is stored; a `tokenizer.json` lists the pairs. They follow from the order: a token is made of two tokens that come
before it.
"""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from common.errors import UserError
from common.files import write_json
from data_pipeline.huggingface_tokenizer import HuggingFaceModel
from data_pipeline.tiktoken_files import GPT2_PATTERN, LLAMA3_PATTERN, TiktokenModel
from data_pipeline.tokenizer import SentencePieceModel, Tokenizer

TEXT, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # types of tokens in GGUF
# How Llama 3 cuts text, as Hugging Face writes it; ours is another expression for the same.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
SPACE = "\u2581"  # how SentencePiece writes a space


def byte_characters() -> dict[int, str]:
    """The character that stands for each byte in byte-level vocabularies (GPT-2, Radford et al. 2019).

    Printable Latin-1 characters stand for themselves, the other bytes for characters from U+0100 on.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


_LETTERS = byte_characters()


def write_tokenizer(tokenizer: Tokenizer, directory: Path, context_length: int) -> None:
    """Write `tokenizer.json`, `tokenizer_config.json`, and a SentencePiece model as it is, into `directory`.

    Raises:
        UserError: a SentencePiece model of a kind that `tokenizer.json` would not reproduce.
    """
    model = tokenizer.model
    if isinstance(model, HuggingFaceModel):
        content = model.fast.to_str()
    elif isinstance(model, TiktokenModel):
        content = json.dumps({**_of_tiktoken(model), **_beginning(tokenizer)}, ensure_ascii=False)
    else:
        assert isinstance(model, SentencePieceModel)
        content = json.dumps({**_of_sentencepiece(tokenizer, model), **_beginning(tokenizer)}, ensure_ascii=False)
        (directory / "tokenizer.model").write_bytes(model.processor.serialized_model_proto())
    (directory / "tokenizer.json").write_text(content, encoding="utf-8")
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokenizer.piece(tokenizer.bos_id),
        "eos_token": tokenizer.piece(tokenizer.eos_id),
        "unk_token": _unknown(tokenizer),
        "clean_up_tokenization_spaces": False,
        "model_max_length": context_length,
    }
    if tokenizer.chat_template is not None:
        settings["chat_template"] = tokenizer.chat_template
    write_json(directory / "tokenizer_config.json", settings)


def _beginning(tokenizer: Tokenizer) -> dict[str, Any]:
    """Every text begins with the token that the model saw before one."""
    token, number = tokenizer.piece(tokenizer.bos_id), tokenizer.bos_id
    first, text = {"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [first, text],
            "pair": [first, text, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {token: {"id": token, "ids": [number], "tokens": [token]}},
        }
    }


def _unknown(tokenizer: Tokenizer) -> str:
    """What stands for text that there is no token for; where that cannot be, what GPT-2 says to engines that ask."""
    model = tokenizer.model
    if isinstance(model, SentencePieceModel):
        return model.piece(model.processor.unk_id())
    return tokenizer.piece(tokenizer.eos_id)


def _spelt(token: bytes) -> str:
    return "".join(_LETTERS[byte] for byte in token)


def pairs_of_ranks(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The merge that makes each token of more than one byte, in the order of the ranks.

    It is the last that byte-pair encoding makes of the token's bytes with only the tokens before it.
    """
    pairs = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) == 1:
            continue
        parts = [bytes([byte]) for byte in token]
        while len(parts) > 2:
            ranked = [(ranks.get(a + b, rank), place) for place, (a, b) in enumerate(itertools.pairwise(parts))]
            best, place = min(ranked)
            if best >= rank:
                break
            parts[place : place + 2] = [parts[place] + parts[place + 1]]
        if len(parts) == 2:  # a token that merging never makes is only found whole
            pairs.append((parts[0], parts[1]))
    return pairs


def _of_tiktoken(model: TiktokenModel) -> dict[str, Any]:
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_special(token, number) for token, number in model.special_ids.items()],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": _portable(model.pattern)},
                    "behavior": "Isolated",
                    "invert": False,
                },
                {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
            ],
        },
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,  # as tiktoken, which looks for the whole word first
            # The special tokens too: the library gives those that it does not find here other ids.
            "vocab": {**{_spelt(token): rank for token, rank in model.ranks.items()}, **model.special_ids},
            "merges": [[_spelt(a), _spelt(b)] for a, b in pairs_of_ranks(model.ranks)],
        },
    }


def _portable(pattern: str) -> str:
    """A pattern of tiktoken as the regular expressions of Hugging Face's library read it.

    Possessive quantifiers only save time in these patterns, and `{1,3}+` means something else there; `$` would match
    at the end of every line.
    """
    return re.sub(r"([+?*]|\{[\d,]+\})\+", r"\1", pattern).replace("$", r"\z")


def _of_sentencepiece(tokenizer: Tokenizer, model: SentencePieceModel) -> dict[str, Any]:
    processor = model.processor
    _check_plain(tokenizer, processor)
    count = model.vocab_size
    pieces = [model.piece(number) for number in range(count)]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    special = [number for number in range(count) if processor.is_control(number) or processor.is_unknown(number)]
    # A token is the result of every merge of two tokens that gives it; the best score is merged first.
    merges = []
    for number, piece in enumerate(pieces):
        if number in special or processor.is_byte(number):
            continue
        splits = [(piece[:cut], piece[cut:]) for cut in range(1, len(piece))]
        fine = [(a, b) for a, b in splits if a in vocabulary and b in vocabulary]
        score = float(processor.get_score(number))
        merges += [(-score, vocabulary[a], vocabulary[b], a, b) for a, b in fine]
    merges.sort()
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_special(pieces[number], number) for number in special],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
        "pre_tokenizer": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": pieces[processor.unk_id()],
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": [[a, b] for *_, a, b in merges],
        },
    }


def _check_plain(tokenizer: Tokenizer, processor: Any) -> None:
    """Raises UserError unless text is encoded as it is, and by byte pairs, whose scores are numbers of merges."""
    numbers = [n for n in range(processor.vocab_size()) if not (processor.is_byte(n) or processor.is_control(n))]
    if not (
        not processor.encode("a", out_type=str)[0].startswith(SPACE)
        and processor.decode(processor.encode(" a  ﬁ½ ")) == " a  ﬁ½ "
        and all(float(processor.get_score(number)).is_integer() for number in numbers)
    ):
        raise UserError(
            f"{tokenizer.path} is a SentencePiece model that changes text before it encodes it, or no byte-pair "
            "encoding; export is for those that this project trains"
        )


def _special(token: str, number: int) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": number, "content": token, **flags}


@dataclass(frozen=True)
class GgufVocabulary:
    """What llama.cpp wants to know of a tokenizer."""

    model: Literal["llama", "gpt2"]
    """SentencePiece, or byte-level byte pairs."""
    tokens: list[str]
    types: list[int]
    scores: list[float] | None
    """Of SentencePiece."""
    merges: list[str]
    cut: str | None
    """How text is cut; not by SentencePiece."""


def gguf_vocabulary(tokenizer: Tokenizer) -> GgufVocabulary:
    """Raises UserError for a byte-level encoding that is not known to cut text in a way that llama.cpp has."""
    model = tokenizer.model
    if isinstance(model, SentencePieceModel):
        return _pieces(tokenizer, model)
    if isinstance(model, TiktokenModel):
        tokens = {number: _spelt(token) for token, number in model.ranks.items()}
        merges, cut = [(_spelt(a), _spelt(b)) for a, b in pairs_of_ranks(model.ranks)], _cut(model.pattern)
    else:
        assert isinstance(model, HuggingFaceModel)
        tokens, merges, cut = _byte_pairs(json.loads(model.fast.to_str()))
    if cut is None:
        raise UserError(
            f"{tokenizer.path} cuts text in a way that is not known to be one of llama.cpp's; only the tokenizers that "
            "this project trains and those of GPT-2 and Llama 3 can go into a GGUF file"
        )
    special = dict.fromkeys(model.special_ids.values(), CONTROL)
    added = {number: token for token, number in model.control_ids.items()}
    named = {**tokens, **added}
    types = {**dict.fromkeys(tokens, TEXT), **dict.fromkeys(added, USER_DEFINED), **special}
    numbers = range(tokenizer.vocab_size)
    return GgufVocabulary(
        "gpt2",
        [named.get(number, f"[unused {number}]") for number in numbers],
        [types.get(number, UNUSED) for number in numbers],
        None,
        [f"{a} {b}" for a, b in merges],
        cut,
    )


def _cut(pattern: str) -> str | None:
    """llama.cpp's name for the way in which `pattern` cuts text, if it has one."""
    known = {GPT2_PATTERN: "gpt-2", LLAMA3_PATTERN: "llama-bpe", _LLAMA3: "llama-bpe"}
    return {_portable(text): name for text, name in known.items()}.get(_portable(pattern))


def _pieces(tokenizer: Tokenizer, model: SentencePieceModel) -> GgufVocabulary:
    processor, numbers = model.processor, range(model.vocab_size)
    _check_plain(tokenizer, processor)

    def kind(number: int) -> int:
        if processor.is_unknown(number):
            return UNKNOWN
        return CONTROL if processor.is_control(number) else BYTE if processor.is_byte(number) else TEXT

    scores = [float(processor.get_score(number)) for number in numbers]
    return GgufVocabulary("llama", [model.piece(n) for n in numbers], [kind(n) for n in numbers], scores, [], None)


def _byte_pairs(values: dict[str, Any]) -> tuple[dict[int, str], list[tuple[str, str]], str | None]:
    """Tokens, merges and way to cut of a tokenizer.json; the last is None when it is no known one."""
    model, cutting = values["model"], values["pre_tokenizer"] or {}
    if model["type"] != "BPE":
        return {}, [], None
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    steps = cutting.get("pretokenizers", [cutting])
    patterns = [step["pattern"].get("Regex", "") for step in steps if step.get("type") == "Split"]
    last = steps[-1]
    cut = None
    plain = last.get("type") == "ByteLevel" and not last.get("add_prefix_space") and values["normalizer"] is None
    if plain and len(steps) == 1:
        cut = "gpt-2" if last.get("use_regex", True) else None
    elif plain and len(steps) == 2 and patterns and not last.get("use_regex"):
        cut = _cut(patterns[0])
    return {number: token for token, number in model["vocab"].items()}, [(a, b) for a, b in pairs], cut
