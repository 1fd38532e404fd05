"""Words as the quality filters count them, remembered from one text to the next.

The rules are those of spaCy's English tokenizer (Honnibal and Montani 2017), because the thresholds in use today were
chosen on its words: what stands between spaces is stripped of punctuation on both sides, then cut inside at hyphens,
slashes and the like. They look at nothing but these pieces. Most pieces are cut in arrays (`units.py`); of what is left
after that each is cut once, and its words are looked up from then on; texts become arrays of word numbers.
"""

from __future__ import annotations

import re
import unicodedata
from array import array
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import repeat

import numpy as np

from data_pipeline.quality import units

_LOWER = "a-zß-öø-ÿāăąćĉċčďđēĕėęěĝğġģĥħĩīĭįıĳĵķĸĺļľŀłńņňŉŋōŏőœŕŗřśŝşšţťŧũūŭůűųŵŷźżžſα-ωά-ώа-џ"
_UPPER = "A-ZÀ-ÖØ-ÞĀĂĄĆĈĊČĎĐĒĔĖĘĚĜĞĠĢĤĦĨĪĬĮİĲĴĶĹĻĽĿŁŃŅŇŊŌŎŐŒŔŖŘŚŜŞŠŢŤŦŨŪŬŮŰŲŴŶŸŹŻŽΑ-ΫΆ-ΏЀ-Я"
_ALPHA = r"[^\W\d_]"
_QUOTES = "'\"”“`‘´’‚,„»«「」『』（）〔〕【】《》〈〉⟦⟧"
_MARKS = r"…,:;!?¿؟¡()\[\]{}<>_#*&。？！，、；：～·।،۔؛٪"
_CURRENCY = "$£€¥฿₽﷼₴₠-₿"
_ICONS = "".join(map(chr, (0xA6, 0xA9, 0xAE, 0xB0))) + "\u2100-\u214f\u2190-\u23ff\u2500-\u27bf\U0001f000-\U0001faff"
_UNITS = (
    "km|m|dm|cm|mm|km²|m²|cm²|km³|m³|cm³|ha|µm|nm|yd|in|ft|kg|g|mg|µg|t|lb|oz|m/s|km/h|kmh|mph|hPa|Pa|mbar|mb|MB|kb|KB"
    "|gb|GB|tb|TB|T|G|M|K|%"
)

_ONE_MARK = re.compile(rf"[—–{_MARKS}{_QUOTES}{_ICONS}]")
_ONE_MARK_AFTER = frozenset(filter(_ONE_MARK.match, map(chr, range(0x20000))))
_MARKS_OF_BOTH_SIDES = "".join(filter(str.isascii, sorted(_ONE_MARK_AFTER)))  # the common ones
_ONE_MARK_BEFORE = _ONE_MARK_AFTER | set(filter(re.compile(f"[§%={_CURRENCY}]").match, map(chr, range(0x20000))))
_LONGER_PREFIX = re.compile(r"\.\.+|\+(?![0-9])|(?:US|C|A)\$")
_SUFFIX = re.compile(
    rf"(?:\.\.+|['’][sS]|(?<=[0-9])(?:\+|[{_CURRENCY}]|{_UNITS})"
    rf"|(?<=[0-9{_LOWER}%²\-+{_MARKS}{_QUOTES}])\.|(?<=[{_UPPER}][{_UPPER}])\.)\Z"
)
# What may begin, end or divide an ASCII word; a full stop may stand inside one.
_CUT_SOMEWHERE = re.compile(r"[+*^,~:<>=/%$@'-]|\A\.|\.\Z|\.\.")
_NO_WORDS = frozenset(("", "s"))  # the end of "'s", which is one word
_UNIT = re.compile(rf"(?<=[0-9])(?:{_UNITS})\Z")
_LONGEST_UNIT = 4
_LAST_OF_SUFFIX = frozenset(".sS+") | {unit[-1] for unit in _UNITS.split("|")} | (_ONE_MARK_BEFORE - _ONE_MARK_AFTER)
_INFIX = re.compile(
    rf"\.\.+|…|[{_ICONS}]|(?<=[0-9])[+\-*^](?=[0-9-])|(?<=[{_LOWER}{_QUOTES}])\.(?=[{_UPPER}{_QUOTES}])"
    rf"|(?<={_ALPHA}),(?={_ALPHA})|(?<=[^\W_])(?:---?|——?|–|-|~)(?={_ALPHA})|(?<=[^\W_])[:<>=/](?={_ALPHA})"
)
_URL = re.compile(
    r"(?:[\w+\-.]{2,}://)?(?:\S+@)?(?:[a-zA-Z0-9\u00a1-\uffff](?:[\w\u00a1-\uffff-]{0,62}[a-zA-Z0-9\u00a1-\uffff])?\.)+"
    rf"[{_LOWER}]{{2,63}}(?::\d{{2,5}})?(?:[/?#]\S*)?\Z"
)
_CONTRACTION = re.compile(rf"({_ALPHA}+?)(n['’]t|['’](?:ll|ve|re|d|m|s|LL|VE|RE|D|M|S))\Z")
# Abbreviations that keep their full stop, which therefore ends no sentence.
_ABBREVIATIONS = frozenset(
    f"{word}."
    for word in (
        "Adm Bros Co Corp D.C Dr Gen Gov Inc Jr Ltd Messrs Mr Mrs Ms Mt Ph.D Prof Rep Rev Sen St co vs v.s a.m p.m e.g"
        " i.e E.g I.e E.G I.E Jan Feb Mar Apr Jun Jul Aug Sep Sept Oct Nov Dec Ak Ala Ariz Ark Calif Colo Conn Del Fla"
        " Ga Ia Id Ill Ind Kan Kans Ky La Mass Md Mich Minn Miss Mo Mont N.C N.D N.H N.J N.M N.Y Neb Nebr Nev Okla Ore"
        " Pa S.C Tenn Va Wash Wis a b c d e f g h i j k l m n o p q r s t u v w x y z ä ö ü"
    ).split()
)
_WHOLE = _ABBREVIATIONS | {"and/or", "w/o", "C++", "o'clock", "o’clock", "'s", "’s", "''", "’’"}
_SENTENCE_ENDS = frozenset(".!?։؟۔܀܁܂߹।॥၊။።፧፨᙮᠃᠉‼‽⁇⁈⁉⸮。｡．！？﹖﹗")

LETTER, WORD, PUNCTUATION, SENTENCE_END = 1, 2, 4, 8  # flags of a word
_FORGET_ABOVE = 2_000_000  # pieces held, about 300 MB
_LONGEST_PIECE = 1000  # characters that the loop below works on: its time grows with their square


def split_piece(piece: str) -> list[str]:
    """The words of what stands between two spaces; what is long and no plain word is cut every thousand characters."""
    if piece.isalpha():
        return [piece]
    rest = piece[:-1]
    if piece[-1] == "." and rest.isascii() and rest.isalpha() and rest[-1].islower() and piece not in _WHOLE:
        return [rest, "."]  # as most sentences end
    name = piece.strip(_MARKS_OF_BOTH_SIDES)
    start = piece.find(name)
    end = start + len(name)
    if _is_one_word(name) and not ("." in name and piece[end : end + 1] in ("?", "#")):  # which may go on a URL
        return [*piece[:start], name, *piece[end:]]  # as most pieces are, and so without the loop below
    if len(piece) > _LONGEST_PIECE:
        starts = range(0, len(piece), _LONGEST_PIECE)
        return [word for start in starts for word in split_piece(piece[start : start + _LONGEST_PIECE])]
    before: list[str] = []
    after: list[str] = []
    while piece and piece not in _WHOLE and not _is_url(piece):
        start = _end_of_prefix(piece)
        if start and piece[start:] in _WHOLE:
            before.append(piece[:start])
            piece = piece[start:]
            break
        end = _start_of_suffix(piece, start)
        if not start and end == len(piece):
            break
        if piece[:end] in _WHOLE:
            start = 0
        if start:
            before.append(piece[:start])
        if end < len(piece):
            after.append(piece[end:])
        piece = piece[start:end]
    return [*before, *_split_inside(piece), *reversed(after)]


def _is_one_word(name: str) -> bool:
    """Whether nothing more is to be cut from a piece without the common marks around it."""
    if not name.replace("_", "a").isalnum():
        if not name.isascii() or _CUT_SOMEWHERE.search(name):
            return False
        if "." in name and not _is_url(name) and _INFIX.search(name):
            return False
    return name not in _NO_WORDS and (name[-1] not in _LAST_OF_SUFFIX or not _UNIT.search(name, len(name) - 5))


def _end_of_prefix(piece: str) -> int:
    if piece[0] in _ONE_MARK_BEFORE:
        return 1
    prefix = _LONGER_PREFIX.match(piece) if piece[0] in ".+UCA" else None
    return prefix.end() if prefix else 0


def _start_of_suffix(piece: str, start: int) -> int:
    """Where the suffix of `piece[start:]` begins; its end where it has none."""
    end = len(piece)
    last = piece[-1]
    if last in _ONE_MARK_AFTER:
        return max(start, end - 1)
    if last not in _LAST_OF_SUFFIX:
        return end
    nearest = start if piece.endswith("..") else max(start, end - _LONGEST_UNIT)
    suffix = _SUFFIX.search(piece, nearest)
    return suffix.start() if suffix else end


def _is_url(piece: str) -> bool:
    if "." not in piece:
        return False
    if not (piece[0].isalnum() or piece[0] >= "\u00a1" or "@" in piece or "://" in piece):
        return False
    return _URL.match(piece) is not None


def _split_inside(piece: str) -> Iterable[str]:
    if not piece:
        return ()
    if piece in _WHOLE or _is_url(piece):
        return (piece,)
    contraction = _CONTRACTION.match(piece) if "'" in piece or "’" in piece else None
    if contraction:
        return contraction.groups()
    words, start = [], 0
    for match in _INFIX.finditer(piece):
        if match.start() == start:
            continue
        words += [piece[start : match.start()], match[0]]
        start = match.end()
    return [*words, piece[start:]] if start < len(piece) else words


def flags_of(word: str) -> int:
    """LETTER where it holds one, WORD where it holds a letter or digit, PUNCTUATION where it is nothing else."""
    if word.isalpha():
        return LETTER + WORD
    flags = LETTER * any(map(str.isalpha, word)) + WORD * any(map(str.isalnum, word))
    if not flags:
        flags = PUNCTUATION * all(unicodedata.category(character)[0] == "P" for character in word)
    return flags + SENTENCE_END * (word in _SENTENCE_ENDS)


@cache
def _classes() -> np.ndarray:
    """The classes of `units.py` of every code point, (0x110000,) uint8."""
    classes = np.array([_class_of(chr(code)) for code in range(0x110000)], np.uint8)
    classes[list(b"@/?#:-")] |= units.ADDRESS
    return classes


def _class_of(character: str) -> int:
    if character.isspace():
        return units.SPACE
    if character in _MARKS_OF_BOTH_SIDES:
        return units.MARK
    if character in "+^~=/%@-":
        return units.INNER
    if character == ".":
        return units.INNER | units.DOT
    if character.isascii() and not character.isalpha():
        return units.DIGIT * character.isdigit() | units.ODD * (character == "$")
    if character.isalpha() and not _ONE_MARK.match(character):
        return units.LETTER | units.ADDRESS * (not character.isascii())  # which may be part of one where ASCII is not
    return units.ODD


class WordTable:
    """Numbers every word, and remembers how pieces were cut, from one text to the next."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self.numbers: dict[str, int] = {}  # of words
        self._lengths, self._flags = array("i"), array("b")  # of words
        self._units: dict[int, int] = {}  # by hash
        self._words, self._ends = array("i"), array("i", [0])  # of units: the words one after another, and their ends

    def __len__(self) -> int:
        return len(self._units)

    def read(self, texts: Sequence[str]) -> Words:
        """The words of all texts."""
        if len(self) > _FORGET_ABOVE:
            self._reset()
        found = units.cut(texts, _classes())
        numbers = self._numbers_of(found)
        ends = np.asarray(self._ends)
        in_unit = np.diff(ends)[numbers]  # words of each unit
        starts = np.concatenate(([0], np.cumsum(in_unit)))  # of the units among the words of the batch
        places = np.arange(starts[-1]) + np.repeat(ends[:-1][numbers] - starts[:-1], in_unit)
        return Words(self, np.asarray(self._words)[places], starts[found.borders])

    def _numbers_of(self, found: units.Units) -> np.ndarray:
        """The number of each unit, (units,); those not yet known are cut into words."""
        order = np.argsort(found.hashes)
        new = np.ones(len(order), bool)
        new[1:] = np.diff(found.hashes[order]) != 0
        one_of_each = order[new]
        hashes = found.hashes[one_of_each]
        numbers = np.array(list(map(self._units.get, hashes.tolist(), repeat(-1))), np.int32)
        unknown = np.flatnonzero(numbers < 0)
        numbers[unknown] = np.arange(len(self), len(self) + len(unknown))
        self._units.update(zip(hashes[unknown].tolist(), numbers[unknown].tolist(), strict=True))
        for unit, is_word in found.at(one_of_each[unknown]):
            self._add((unit,) if is_word else split_piece(unit))
        result = np.empty(len(order), np.int32)
        result[order] = numbers[np.cumsum(new) - 1]
        return result

    def _add(self, words: Iterable[str]) -> None:
        for word in words:
            number = self.numbers.setdefault(word, len(self.numbers))
            if number == len(self._lengths):
                self._lengths.append(len(word))
                self._flags.append(flags_of(word))
            self._words.append(number)
        self._ends.append(len(self._words))

    def properties(self) -> tuple[np.ndarray, np.ndarray]:
        """Characters and flags of every word, by number."""
        return np.asarray(self._lengths), np.asarray(self._flags)


class Words:
    """The words of a batch of texts, text after text."""

    def __init__(self, table: WordTable, ids: np.ndarray, starts: np.ndarray) -> None:
        lengths, flags = table.properties()
        self._numbers = table.numbers
        self.ids = ids  # (words,) int32
        self.starts = starts  # (texts + 1,), where each text begins among the words, and the end
        self.counts = np.diff(starts)  # (texts,)
        self.owners = np.repeat(np.arange(len(self.counts)), self.counts)  # (words,), the text of each
        self.lengths = lengths[ids]  # (words,) characters
        self.flags = flags[ids]  # (words,)

    def number(self, word: str) -> int:
        """The number of a word in `ids`, -1 for one that does not occur."""
        return self._numbers.get(word, -1)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Sum of the values of each text's words, (texts,)."""
        return np.bincount(self.owners, weights=values, minlength=len(self.counts))
