"""The text of manual pages in the man macros of roff (groff_man(7)), in which nearly all of them are written."""

from __future__ import annotations

import re

_SPACED = frozenset("B I R SB SM UR MT".split())  # requests whose words are text
_JOINED = frozenset("BI BR IB IR RB RI".split())  # whose words change the font without a space between them
_HEADINGS = frozenset(("SH", "SS"))
_PARAGRAPHS = frozenset("HP IP LP P PP RE RS SH SS TP TQ sp".split())
_AS_IT_IS = {"nf": True, "EX": True, "Vb": True, "fi": False, "EE": False, "Ve": False}
_PASSED_OVER = {"TS": "TE", "EQ": "EN", "PS": "PE", "de": ".", "ig": "."}  # each with the request that ends it
# Sections that every page of a collection repeats.
_REPEATED = re.compile(r"AUTH?ORS?|AUTEURS?|AUTOR(?:ES)?|COLOPHON|COLOFÓN|COPYRIGHT|TRADUCTION|TRADUCCIÓN|TRANSLATION")
_CHARACTERS = {
    **{"-": "-", "e": "\\", " ": " ", "~": " ", "0": " ", "'": "´", "`": "`", "t": "\t", "(": "(", "rs": "\\"},
    **{"aq": "'", "cq": "’", "oq": "‘", "lq": "“", "rq": "”", "dq": '"', "Fo": "«", "Fc": "»", "ga": "`"},
    **{"em": "—", "en": "–", "hy": "-", "bu": "•", "co": "©", "rg": "®", "tm": "™", "ti": "~", "ha": "^", "mu": "×"},
    **{"+-": "±", "<=": "≤", ">=": "≥", "!=": "≠", "->": "→", "<-": "←", "de": "°", "mc": "µ", "sc": "§", "at": "@"},
}
# Bounded, because what never ends would be looked for from each of its beginnings.
_NAME, _QUOTED = r"\[[^]]{0,200}\]", r"'[^']{0,500}'"
_UNSEEN = re.compile(rf"\\f(?:\(..|{_NAME}|.)|\\s(?:[+-]?\d|{_NAME}|{_QUOTED})|\\[mF]{_NAME}|\\[hvwZbX]{_QUOTED}")
_ESCAPE = re.compile(rf"\\(?:\((..)|\[([^]]{{0,200}})\]|\*(?:\(..|{_NAME}|.)|(.)|$)")
_WORD = re.compile(r'"((?:[^"]|"")*)"?|((?:\\.|[^\s"\\])(?:\\.|[^\s\\])*)')
_COMMENT = re.compile(r'\\["#].*')


def manual_text(source: str) -> str:
    """The page as paragraphs, without tables, drawings and authors.

    Raises:
        ValueError: the page is in other macros (mdoc), or only the name of another page.
    """
    if not re.search(r"^\.\s*TH\b", source, re.MULTILINE):
        raise ValueError("not in man macros")
    page = _Page()
    for line in source.split("\n"):
        page.read(_COMMENT.sub("", line))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(map(" ".join, page.lines))).strip()


class _Page:
    """Takes a page line by line."""

    def __init__(self) -> None:
        self.lines: list[list[str]] = []  # in the pieces that they are made of
        self._until: str | None = None  # the request that ends what is passed over
        self._repeated = False  # in a section of this kind
        self._as_it_is = False
        self._begins = True  # a line: the next text does not go on in the last one
        self._tag = False  # the next text is the term that a paragraph explains

    def read(self, line: str) -> None:
        request, _, rest = line[1:].strip().partition(" ") if line.startswith((".", "'")) else (None, "", line)
        if self._until is not None:
            self._until = None if request == self._until else self._until
        elif request in _PASSED_OVER:
            self._until = _PASSED_OVER[request]
        elif request in _AS_IT_IS:
            self._as_it_is = _AS_IT_IS[request]
            self.lines.append([""])
        elif request in _PARAGRAPHS:
            self._paragraph(request, _words(rest))
        elif request == "br":
            self._begins = True
        elif request is None or request in _SPACED or request in _JOINED:
            joint = "" if request in _JOINED else " "
            self._text(rest if request is None else joint.join(_words(rest)))

    def _paragraph(self, request: str, words: list[str]) -> None:
        self.lines.append([""])
        self._begins, self._tag = True, request in ("TP", "TQ")
        if request in _HEADINGS:
            self._repeated = bool(_REPEATED.fullmatch(_plain(" ".join(words)).strip()))
            self._text(" ".join(words))
            self.lines.append([""])
        elif request == "IP" and words:
            self._text(words[0])
            self._begins = len(_plain(words[0])) > 1  # else it is a bullet

    def _text(self, source: str) -> None:
        text = _plain(source)
        if self._repeated:
            return
        if self._as_it_is:
            self.lines.append([text])
        elif self._begins or self.lines[-1] == [""] or not text.strip():
            self.lines.append([text.strip()])
        else:
            self.lines[-1].append(text.strip())
        self._begins, self._tag = self._tag, False


def _words(rest: str) -> list[str]:
    return [quoted.replace('""', '"') or bare for quoted, bare in _WORD.findall(rest)]


def _plain(text: str) -> str:
    def character(match: re.Match[str]) -> str:
        return _CHARACTERS.get(match[1] or match[2] or match[3] or "", "")

    return _ESCAPE.sub(character, _UNSEEN.sub("", text))
