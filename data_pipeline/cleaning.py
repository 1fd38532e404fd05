"""Cleaning: one Unicode form, one kind of newline, no control characters, no holes in encyclopedia text."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.config import CleaningConfig
from data_pipeline.documents import Counts, Document, map_documents

# The tokenizer writes a space as U+2581 and cannot tell the two apart, so the character itself has to go. In text it
# is nearly always a bar or an underline, for which "_" stands best.
SENTENCEPIECE_SPACE = "\u2581"

_NEWLINES = re.compile("\r\n?|[\u0085\u2028\u2029\x0b\x0c]")
_CODE_NEWLINES = re.compile("\r\n?")  # U+2028 and its like are legal inside a string
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff\ufffe\uffff]")
_CODE_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f\ufeff]")
_TRAILING = re.compile(r"[^\S\n]+(?=\n|\Z)")

# Template and formula holes in encyclopedia text, and how each is closed.
_INVISIBLE = re.compile("[\u2060\u200b\u00ad]")  # word joiner, zero-width space, soft hyphen
_EMPTY_BRACKETS = re.compile(r"\s*(\(\s*[,;:/\s]*\)|\[\s*[,;:/\s]*\])")
_BRACKET_START = re.compile(r"\(\s*[,;:]\s*(?:also,\s*)?")
_BRACKET_END = re.compile(r"\s*[,;:]?\s+\)")
_SPACE_BEFORE_MARK = re.compile(r"(?<=\S) +(?=[,;:.](?:\s|\Z))")
_SPACES = re.compile(r"(?<=\S) {2,}")
# Most holes leave no trace once they are closed ("Kinkaku-ji , officially"); these leave a broken sentence.
_HOLE = re.compile(r"(?<=\w)  +(?=\w)|\b(?:is|are|by|of|at|to|in|for|from|with|and|or) [,;.](?:\s|\Z)|\n\nwhere ")


@dataclass(frozen=True)
class CleanArgument:
    path: Path
    config: CleaningConfig


def clean_shard(task: str, directory: Path, argument: CleanArgument) -> Counts:
    """Copy one shard with every text cleaned."""

    def decide(document: Document) -> str | None:
        return clean(document, argument.config)

    return map_documents(argument.path, directory / f"{task}.jsonl", directory / "dropped" / f"{task}.jsonl", decide)


def clean(document: Document, config: CleaningConfig) -> str | None:
    """Clean the text in place; return why the document is dropped, or None.

    Code keeps its indentation and tabs exactly, and its Unicode form, which string literals may rely on.
    """
    text = document.text.replace(SENTENCEPIECE_SPACE, "_")
    if document.kind == "code":
        text = _CODE_CONTROLS.sub("", _CODE_NEWLINES.sub("\n", text))
    else:
        text = unicodedata.normalize("NFC", _CONTROLS.sub("", _NEWLINES.sub("\n", text)))
    if document.kind == "wiki":
        if len(_HOLE.findall(text)) > config.max_wiki_holes * max(1.0, len(text) / 1000):
            return "missing_formulas"
        text = close_holes(text)
    text = _TRAILING.sub("", text)
    most = config.max_blank_lines + 1  # newlines in a row
    text = re.sub(rf"\n{{{most + 1},}}", "\n" * most, text)
    # A document ends without a newline, so that the end-of-text id always follows the last visible character.
    document.text = text.strip("\n")
    return None if document.text.strip() else "empty"


def close_holes(text: str) -> str:
    """Encyclopedia text without the marks of dropped templates: "A chair ( ) is" becomes "A chair is"."""
    text = _INVISIBLE.sub("", text)
    text = _EMPTY_BRACKETS.sub("", text)
    text = _BRACKET_START.sub("(", text)
    text = _BRACKET_END.sub(")", text)
    text = _SPACES.sub(" ", text)
    return _SPACE_BEFORE_MARK.sub("", text)
