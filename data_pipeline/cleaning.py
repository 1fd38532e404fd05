"""Cleaning: one Unicode form, one kind of newline, no control characters, no holes in encyclopedia text."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import ftfy
from ftfy.badness import is_bad

from data_pipeline.config import CleaningConfig
from data_pipeline.documents import Counts, Document, map_documents
from data_pipeline.masking import mask_personal, mask_secrets

# The tokenizer writes a space as U+2581 and cannot tell the two apart, so the character itself has to go. In text it
# is nearly always a bar or an underline, for which "_" stands best.
SENTENCEPIECE_SPACE = "\u2581"

_MOST_ROUNDS = 5
_REPAIR = ftfy.TextFixerConfig(fix_c1_controls=False)  # these are newlines and controls here, not Windows-1252
_NEWLINES = re.compile("\r\n?|[\u0085\u2028\u2029\x0b\x0c]")
_CODE_NEWLINES = re.compile("\r\n?")  # U+2028 and its like are legal inside a string
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff\ufffe\uffff]")
_CODE_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f\ufeff]")

# Whole lines that are buttons, notices and links around a text; after RefinedWeb (Penedo et al. 2023, appendix G).
_LONGEST_BOILERPLATE = 80
_BOILERPLATE = re.compile(
    r"\W*(?:(?:read|learn|show|see|view|load) (?:more|less|all)(?: .{1,30})?|(?:log|sign)[ -]?(?:in|up|out)"
    r"|subscribe(?: now)?|share (?:this|on|via)\b.{0,40}|(?:leave|post|add) a (?:comment|reply)"
    r"|(?:no|\d+) (?:comments?|shares?|likes?|views?)|click here.{0,40}|skip to (?:main )?content|back to top"
    r"|add to (?:cart|basket|wishlist)|all rights reserved\.?|(?:©|copyright) .{1,60}|privacy policy"
    r"|terms (?:of|and) (?:use|service|conditions)|cookie (?:policy|settings)|(?:accept|reject)(?: all)? cookies"
    r"|(?:previous|next)(?: (?:page|post|article))?|advertisements?|home|menu)\W*\Z",
    re.IGNORECASE,
)

# Template and formula holes in encyclopedia text, and how each is closed.
_INVISIBLE = re.compile("[\u2060\u200b\u00ad]")  # word joiner, zero-width space, soft hyphen
_MARKS_OF_HOLES = re.compile(r"[(\[][\s,;:/]*[)\]]|\([\s,;:]|\s\)|  | [,;:.]")  # cheap: most texts have none
# Spaces are looked at from their first one only: tried from each, a long run of them would take its square in time.
_EMPTY_BRACKETS = re.compile(r"(?<!\s)\s*(?:\([,;:/\s]*\)|\[[,;:/\s]*\])")
_BRACKET_START = re.compile(r"\(\s*[,;:]\s*(?:also,\s*)?")
_BRACKET_END = re.compile(r"(?<!\s)(?:\s*[,;:]\s+|\s+)\)")
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

    repairs: Counter[str] = Counter()

    def decide(document: Document) -> str | None:
        return clean(document, argument.config, repairs)

    counts = map_documents(argument.path, directory / f"{task}.jsonl", directory / "dropped" / f"{task}.jsonl", decide)
    counts.details = dict(sorted(repairs.items()))
    return counts


def clean(document: Document, config: CleaningConfig, repairs: Counter[str]) -> str | None:
    """Clean the text in place; return why the document is dropped, or None. What was done is counted in `repairs`.

    Code keeps its indentation and tabs exactly, and its Unicode form, which string literals may rely on.
    """
    text = document.text
    if document.kind == "code":
        text = _CODE_CONTROLS.sub("", _CODE_NEWLINES.sub("\n", text)).replace(SENTENCEPIECE_SPACE, "_")
    else:
        text = normalized(text, repairs)
    if document.kind == "wiki":
        if len(_HOLE.findall(text)) > config.max_wiki_holes * max(1.0, len(text) / 1000):
            return "missing_formulas"
        text = close_holes(text)
    if document.kind == "prose" and config.drop_boilerplate:
        text = drop_boilerplate(text, repairs)
    if config.mask_personal:
        text = mask_personal(text, repairs)
    if config.mask_secrets:
        text = mask_secrets(text, repairs)
    text = "\n".join(map(str.rstrip, text.split("\n")))
    most = config.max_blank_lines + 1  # newlines in a row
    text = re.sub(rf"\n{{{most + 1},}}", "\n" * most, text)
    # A document ends without a newline, so that the end-of-text id always follows the last visible character.
    document.text = text.strip("\n")
    return None if document.text.strip() else "empty"


def normalized(text: str, repairs: Counter[str]) -> str:
    """One Unicode form and one kind of newline, without control characters, U+2581 and "mojibake".

    Mojibake is UTF-8 that was read in another encoding; ftfy (Speer 2019) undoes it where it sees signs of it. What one
    step leaves may be something for another, so they are taken in turn until nothing changes.
    """
    for _ in range(_MOST_ROUNDS):
        before = text
        if not text.isascii() and is_bad(text):
            text = ftfy.fix_encoding(text, _REPAIR)
            repairs["repaired_encodings"] += text != before
        text = _CONTROLS.sub("", _NEWLINES.sub("\n", text)).replace(SENTENCEPIECE_SPACE, "_")
        text = unicodedata.normalize("NFC", text)
        if text == before:
            break
    return text


def drop_boilerplate(text: str, repairs: Counter[str]) -> str:
    """The text without lines that belong to a web page and not to what it says."""
    lines = text.split("\n")
    kept = [line for line in lines if len(line) > _LONGEST_BOILERPLATE or not _BOILERPLATE.match(line)]
    repairs["boilerplate_lines"] += len(lines) - len(kept)
    return text if len(kept) == len(lines) else "\n".join(kept)


def close_holes(text: str) -> str:
    """Encyclopedia text without the marks of dropped templates: "A chair ( ) is" becomes "A chair is"."""
    text = _INVISIBLE.sub("", text)
    if not _MARKS_OF_HOLES.search(text):
        return text
    text = _EMPTY_BRACKETS.sub("", text)
    text = _BRACKET_START.sub("(", text)
    text = _BRACKET_END.sub(")", text)
    text = _SPACES.sub(" ", text)
    return _SPACE_BEFORE_MARK.sub("", text)
