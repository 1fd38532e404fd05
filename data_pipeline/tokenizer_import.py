"""Tokenizers of others as a `tokenizer.model`: a Hugging Face directory or model, Llama 3's or GPT-2's own files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from common.errors import UserError
from common.files import read_json
from common.hub import local_tokenizer
from data_pipeline.huggingface_tokenizer import HuggingFaceModel, byte_level_content
from data_pipeline.tiktoken_files import END_OF_TEXT, gpt2_content, llama3_content
from data_pipeline.tokenizer import HEADER, SentencePieceModel

# GPT-2's two files have two names each.
_GPT2_FILES = (("merges.txt", "vocab.json"), ("vocab.bpe", "encoder.json"))


def pack(place: str | Path) -> bytes:
    """The content of a `tokenizer.model` for the tokenizer at `place`: a file, a directory or an address of the hub.

    Beside the tokenizer itself, `tokenizer_config.json`, `generation_config.json` and `chat_template.jinja` are read
    for what begins and ends a text and for the chat template.

    Raises:
        UserError: there is no tokenizer, it is damaged, or nothing says what ends a text.
    """
    path = local_tokenizer(place)
    directory = path if path.is_dir() else path.parent
    if not path.exists():
        raise UserError(f"there is no tokenizer at {path}")
    try:
        if path.name == "tokenizer.json" or (path.is_dir() and (path / "tokenizer.json").is_file()):
            return _huggingface(directory, (directory / "tokenizer.json").read_bytes())
        model = path / "tokenizer.model" if path.is_dir() else path
        if model.is_file():
            return _model_file(model)
        for merges, vocabulary in _GPT2_FILES:
            if (directory / merges).is_file() and (directory / vocabulary).is_file():
                return _gpt2(directory, directory / merges, directory / vocabulary)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise UserError(f"the tokenizer in {directory} is damaged: {error}") from error
    raise UserError(
        f"no tokenizer in {directory}: expected tokenizer.json, tokenizer.model, or vocab.json with merges.txt"
    )


def _huggingface(directory: Path, content: bytes) -> bytes:
    model = HuggingFaceModel({}, content)
    names = {number: token for token, number in model.fast.get_vocab(with_added_tokens=True).items()}
    first = list(model.fast.encode("a").ids)[:1]  # with the special tokens that this tokenizer adds by itself
    added = [token for token, number in model.special_ids.items() if [number] == first]
    settings = _settings(directory, "tokenizer_config.json")
    if not added and settings.get("add_bos_token") and settings.get("bos_token"):
        added = [str(_text_of(settings["bos_token"]))]
    header = {
        "format": "huggingface",
        "bos_token": added[0] if added else None,
        "eos_tokens": _eos_tokens(directory, names, model),
        **_chat_of(directory),
    }
    return _with_header(header, content)


def _gpt2(directory: Path, merges: Path, vocabulary: Path) -> bytes:
    """GPT-2's own vocabulary, or one that was trained as GPT-2's, whose special tokens may stand anywhere."""
    added = _settings(directory, "added_tokens.json")
    if not added:
        with suppress(UserError):
            return gpt2_content(merges, vocabulary, _chat_of(directory))
    named = _settings(directory, "special_tokens_map.json").values()
    special = [text for value in named if isinstance(text := _text_of(value), str)]
    return _huggingface(directory, byte_level_content(merges, vocabulary, [*special, END_OF_TEXT], added))


def _model_file(path: Path) -> bytes:
    """A `tokenizer.model`: ours already, Llama 3's ranks, or a SentencePiece model."""
    content = path.read_bytes()
    if content.startswith(HEADER):
        return content
    siblings = _chat_of(path.parent)
    first = content.split(b"\n", 1)[0].split(b" ")
    if len(first) == 2 and first[1].isdigit():
        eos = ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"]
        return llama3_content(path, {"bos_token": "<|begin_of_text|>", "eos_tokens": eos, **siblings})
    model = SentencePieceModel({}, content)
    if not (path.parent / "tokenizer_config.json").is_file():
        return content  # as this project trains them: no token of its own begins a text
    settings = _settings(path.parent, "tokenizer_config.json")
    bos = _text_of(settings.get("bos_token")) if settings.get("add_bos_token", True) else None
    names = {number: model.piece(number) for number in range(model.vocab_size)}
    header = {"bos_token": bos, "eos_tokens": _eos_tokens(path.parent, names, model), **siblings}
    return _with_header({"format": "sentencepiece", **header}, content)


def _eos_tokens(directory: Path, names: Mapping[int, str], model: HuggingFaceModel | SentencePieceModel) -> list[str]:
    """What ends a text, the end of a document first.

    Raises:
        UserError: no file says so, or what it names is not in the vocabulary.
    """
    ids = _ids(_settings(directory, "generation_config.json").get("eos_token_id"))
    own = [
        token
        for name in ("tokenizer_config.json", "special_tokens_map.json")
        if isinstance(token := _text_of(_settings(directory, name).get("eos_token")), str)
    ]
    if not ids and not own:  # config.json is copied from model to model, so it is asked last
        ids = _ids(_settings(directory, "config.json").get("eos_token_id"))
    missing = [str(number) for number in ids if number not in names]
    tokens = list(dict.fromkeys([*(names[number] for number in ids if number in names), *own]))
    missing += [token for token in tokens if model.token_id(token) is None]
    if not tokens or missing:
        raise UserError(
            f"{directory}: nothing says which token ends a text (eos_token in tokenizer_config.json, or eos_token_id "
            "in generation_config.json)"
            + (f", or the vocabulary does not have it: {', '.join(missing)}" if missing else "")
        )
    return tokens


def _ids(value: Any) -> list[int]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _chat_of(directory: Path) -> dict[str, str]:
    """The chat template, if there is one; of several the default."""
    file = directory / "chat_template.jinja"
    if file.is_file():
        return {"chat_template": file.read_text(encoding="utf-8")}
    template = _settings(directory, "tokenizer_config.json").get("chat_template")
    if isinstance(template, list):
        named = {entry["name"]: entry["template"] for entry in template}
        template = named.get("default")
    return {"chat_template": template} if isinstance(template, str) else {}


def _settings(directory: Path, name: str) -> dict[str, Any]:
    path = directory / name
    if not path.is_file():
        return {}
    values = read_json(path)
    if not isinstance(values, dict):
        raise ValueError(f"{path} is no JSON object")
    return values


def _text_of(token: Any) -> str | None:
    """A token in tokenizer_config.json is a string, or an object with its content."""
    return token.get("content") if isinstance(token, dict) else token


def _with_header(header: dict[str, Any], content: bytes) -> bytes:
    line = json.dumps(header).encode() + b"\n"
    assert line.startswith(HEADER)
    return line + content
