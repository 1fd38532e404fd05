"""Wikitext made fit for parsing: everything here takes time in proportion to the text, whatever is wrong with it.

MediaWiki too takes comments, extension tags and tables apart from the rest. Without them, and with every bracket
closed, a parser that tries out alternatives has nothing left to try, and most of a page it need never see.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

from data_pipeline.sources.wiki_templates import superscript

LIST_ITEM = "\x02"  # stands for the marks at the beginning of a list item until the text is put together

# Their content is not for a reader of prose, that of <nowiki> aside.
_TAGS = (
    "nowiki ref references gallery math chem ce score timeline graph hiero imagemap mapframe maplink inputbox "
    "categorytree templatedata templatestyles section indicator includeonly style script pre syntaxhighlight source "
    "del table"
).split()
_EXTENSION = re.compile(
    rf"<!--|<(?P<close>/?)(?P<name>{'|'.join(_TAGS)})"
    r"(?P<attributes>(?![\w-])[^<>]*)>",
    re.IGNORECASE,
)
_CLOSING = {name: re.compile(rf"</{name}[^\S\n]*>", re.IGNORECASE) for name in _TAGS}
_MARKUP_CHARACTERS = re.compile(r"[\[\]{}|<>'=*#:;_!&~-]")

_HTML = re.compile(r"<(?P<close>/?)(?P<name>[a-zA-Z][a-zA-Z0-9]*)(?P<attributes>(?![\w-])[^<>]*)>")
_BREAKS = frozenset("br hr".split())
_BLOCKS = frozenset("blockquote center dd div dl dt h1 h2 h3 h4 h5 h6 li ol p poem ul".split())
_INLINE = frozenset(
    "abbr b bdi bdo big cite code data dfn em font i ins kbd mark noinclude onlyinclude q rb rp rt rtc ruby s samp "
    "small span strike strong sub sup time tt u var wbr".split()
)
_SUPERSCRIPT = re.compile(r"<sup(?![\w-])[^<>]*>([0-9+−-]{1,6})</sup>", re.IGNORECASE)
_LIST_MARKS = re.compile(r"^[*#:;]+[ \t]*", re.MULTILINE)
_MAGIC_WORD = re.compile(r"__[^\W\d_]{3,30}__")
_QUOTES = re.compile("'{2,}")

_BRACKETS = re.compile(r"\{\{|\}\}|\[\[|\]\]|\[(?=(?:https?:|ftps?:|ircs?:|mailto:)?//|mailto:)|\]")
_CLOSES = {"}}": "{{", "]]": "[[", "]": "["}
_TEMPLATE_NAME = re.compile(r"\{\{\s*([^|{}\[\]\n]*)")


def without_extensions(text: str) -> str:
    """Without comments, references, formulas, galleries and the like; what is in <nowiki> becomes plain characters."""
    pieces: list[str] = []
    done = position = 0
    unclosed: set[str] = set()
    while match := _EXTENSION.search(text, position):
        position = match.end()
        name = (match["name"] or "").lower()
        if match["close"]:
            continue
        inner = end = position
        if not name or not match["attributes"].endswith("/"):
            inner, end = _end_of(text, name, position) if name not in unclosed else (-1, -1)
        if end < 0:
            unclosed.add(name)  # what opens another one later finds no end either
            continue
        pieces.append(text[done : match.start()])
        if name == "nowiki" or (name == "syntaxhighlight" and "inline" in match["attributes"]):
            pieces.append(_MARKUP_CHARACTERS.sub(lambda found: f"&#{ord(found[0])};", text[position:inner]))
        done = position = end
    return "".join([*pieces, text[done:]])


def _end_of(text: str, name: str, start: int) -> tuple[int, int]:
    """Where the content of a tag, or of a comment, ends, and where its end mark does; -1 where it is never closed."""
    if not name:
        end = text.find("-->", start)
        if end < 0:
            return len(text), len(text)
        alone = text[max(0, start - 5) : start - 4] in ("", "\n") and text[end + 3 : end + 4] == "\n"
        return end, end + 3 + alone  # a line that is a comment leaves no empty line, which would end a paragraph
    closing = _CLOSING[name].search(text, start)
    return (closing.start(), closing.end()) if closing else (-1, -1)


def prepared(text: str, keeps_template: Callable[[str], bool]) -> str:
    """A section without HTML tags, tables, quotes, list marks and lost templates, all its brackets in pairs."""
    if "<" in text:
        text = _HTML.sub(_html_tag, _SUPERSCRIPT.sub(lambda match: superscript(match[1]), text)).replace("<", "&lt;")
    if "{|" in text:
        text = _without_tables(text)
    if "''" in text:
        text = "\n".join(_without_quotes(line) if "''" in line else line for line in text.split("\n"))
    if "__" in text:
        text = _MAGIC_WORD.sub(lambda match: "" if match[0].isupper() else match[0], text)
    return balanced(_LIST_MARKS.sub(LIST_ITEM, text), keeps_template)


def _html_tag(match: re.Match[str]) -> str:
    name = match["name"].lower()
    if name in _BREAKS:
        return "\n"
    if name in _BLOCKS:
        return "\n\n"
    return "" if name in _INLINE or name in _CLOSING else match[0]  # such as a reference that is never closed


def _without_tables(text: str) -> str:
    """Without tables. In one that is never closed only the lines that are cells and rows are lost."""
    kept: list[str] = []
    held: list[str] = []
    depth = 0
    for line in text.split("\n"):
        mark = line.lstrip(" \t:*")
        if mark.startswith("{|"):
            depth += 1
        elif depth and mark.startswith("|}") and (not mark.startswith("|}}") or mark.startswith("|}}}")):
            depth -= 1
            if not depth:
                held = []
                kept.append(mark[2:])
        elif not depth:
            kept.append(line)
        elif not mark.startswith(("|", "!")):
            held.append(line)
    return "\n".join(kept + held)


def _without_quotes(line: str) -> str:
    """A line without the quotes of bold and italics; those that stand for an apostrophe stay.

    French "l'''Iliade''" is an apostrophe and italics. As MediaWiki does, where neither bold nor italics come out even,
    one bold is taken for an apostrophe and italics: the first after a single letter, else after a word, else any.
    """
    runs = [(match.start(), match.end() - match.start()) for match in _QUOTES.finditer(line)]
    sizes = [3 if size == 4 else min(size, 5) for _, size in runs]
    bold, italics = (sum(size in kinds for size in sizes) for kinds in ((3, 5), (2, 5)))
    candidates: dict[str, int] = {}
    if bold % 2 and italics % 2:
        for number, (start, size) in enumerate(runs):
            if sizes[number] == 3:
                before = line[max(0, start - 2) : start] if size == 3 else "'"
                kind = "space" if before[-1:] in ("", " ") else "word" if before[:-1].strip() else "letter"
                candidates.setdefault(kind, number)
    apostrophe = next((candidates[kind] for kind in ("letter", "word", "space") if kind in candidates), -1)
    pieces, done = [], 0
    for number, (start, size) in enumerate(runs):
        pieces += [line[done:start], "'" * (size - sizes[number] + (number == apostrophe))]
        done = start + size
    return "".join([*pieces, line[done:]])


def balanced(text: str, keeps_template: Callable[[str], bool]) -> str:
    """Without brackets that have no partner, and without the templates that are not kept."""
    removed: list[tuple[int, int]] = []
    opened: list[tuple[str, int]] = []
    count: Counter[str] = Counter()
    position = 0
    while match := _BRACKETS.search(text, position):
        start, position = match.span()
        bracket = match[0]
        if bracket == "]]" and opened and opened[-1][0] == "[":
            bracket, position = "]", start + 1
        if bracket not in _CLOSES:
            opened.append((bracket, start))
            count[bracket] += 1
            continue
        wanted = _CLOSES[bracket]
        if not count[wanted]:
            if bracket != "]":
                removed.append((start, position))
            continue
        while True:
            kind, begin = opened.pop()
            count[kind] -= 1
            if kind == wanted:
                break
            removed.append((begin, begin + len(kind)))
        name = _TEMPLATE_NAME.match(text, begin)
        if name and not keeps_template(name[1]):
            if text.startswith("{{{", begin) and text.startswith("}", position):
                position += 1  # a template's parameter
            while removed and removed[-1][0] > begin:  # what lies within
                removed.pop()
            removed.append((begin, position))
    removed += [(begin, begin + len(kind)) for kind, begin in opened]
    pieces, done = [], 0
    for start, end in sorted(removed):
        pieces.append(text[done:start])
        done = end
    return "".join([*pieces, text[done:]])
