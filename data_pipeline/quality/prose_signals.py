"""What Gopher (Rae et al. 2021, table A1), FineWeb (Penedo et al. 2024) and C4 (Raffel et al. 2020) measure of prose.

A batch of texts is measured at once, in numpy arrays without an object for a line or a word. Decisions under the
published thresholds are those of datatrove; `python -m benchmarks.data` compares.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from data_pipeline.hashing import StretchHashes, mix64, repeats
from data_pipeline.quality.lines import BULLET, ELLIPSIS, TERMINAL, Lines, ratio
from data_pipeline.quality.words import LETTER, PUNCTUATION, SENTENCE_END, WORD, Words, WordTable

TOP_NGRAMS = (2, 3, 4)
DUPLICATE_NGRAMS = (5, 6, 7, 8, 9, 10)

_SHORT_LINE = 30  # characters, as in FineWeb
_SALT = np.uint64(0x9E3779B97F4A7C15)
_END_OF_C4_LINE = (".", "?", "!", '"', "'")
_CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
_POLICY = re.compile(r"terms of use|privacy policy|cookie policy|uses? cookies|use of cookies")
_LONGEST_C4_WORD = 1000
_FEWEST_C4_WORDS = 3


def prose_signals(texts: Sequence[str], words: Words, table: WordTable) -> dict[str, np.ndarray]:
    """Every measure of the form of prose, (texts,) each; shares are between 0 and 1. `words` are those of the texts."""
    lines = Lines(texts)
    return {
        **word_signals(texts, words),
        **line_signals(texts, lines),
        **ngram_signals(texts, words),
        "longest_piece": lines.longest_piece(),
        "newlines_per_word": ratio(np.diff(lines.first_of_text, append=len(lines.owners)) - 1, words.counts),
        "lorem_ipsum": np.array(["lorem ipsum" in text.lower() for text in texts], np.float64),
        "c4_sentences": c4_sentences(texts, table),
    }


def word_signals(texts: Sequence[str], words: Words) -> dict[str, np.ndarray]:
    """Gopher's quality rules: words, and what is counted for each of them; stop words are in `lexicon.py`."""
    real = words.flags & WORD > 0
    found = words.sums(real)
    return {
        "words": found,
        "mean_word_length": ratio(words.sums(words.lengths * real), found),
        "hashes_per_word": ratio([text.count("#") for text in texts], words.counts),
        "ellipses_per_word": ratio([text.count("...") + text.count("…") for text in texts], words.counts),
        "words_with_letters": ratio(words.sums(words.flags & LETTER > 0), words.counts),
    }


def line_signals(texts: Sequence[str], lines: Lines) -> dict[str, np.ndarray]:
    """Bullets, ellipses, punctuation, short and repeated lines, repeated paragraphs."""

    def share(which: np.ndarray, among: np.ndarray) -> np.ndarray:
        return ratio(lines.sums(which & among), lines.sums(among))

    characters = np.array([len(text) for text in texts], np.float64)
    every, filled, written = np.ones(len(lines.owners), bool), ~lines.blank, lines.lengths > 0
    dots = (lines.codes[np.maximum(lines.last[:, None] - np.arange(3), 0)] == ord(".")).all(axis=1)
    ellipsis = (lines.classes[lines.last] & ELLIPSIS > 0) | (dots & (lines.last - 2 >= lines.first))
    ended = lines.classes[np.maximum(lines.ends - 1, 0)] & TERMINAL > 0

    hashes, salt = StretchHashes(lines.codes), lines.owners.astype(np.uint64) * _SALT  # each text by itself
    again = repeats(hashes.of(lines.starts, lines.ends) + salt)
    # A paragraph is a run of lines that are not empty.
    follows = written[:-1] & written[1:] & (lines.owners[1:] == lines.owners[:-1])
    opening, closing = written.copy(), written.copy()
    opening[1:] &= ~follows
    closing[:-1] &= ~follows
    paragraph_lengths = np.zeros(len(written))
    paragraph_lengths[opening] = lines.ends[closing] - lines.starts[opening]
    twice = np.zeros(len(written), bool)
    twice[opening] = repeats(hashes.of(lines.starts[opening], lines.ends[closing]) + salt[opening])
    return {
        "bullet_lines": share(filled & (lines.classes[lines.first] & BULLET > 0), every),
        "ellipsis_lines": share(filled & ellipsis, every),
        "punctuated_lines": share(ended, filled),
        "short_lines": share(lines.lengths <= _SHORT_LINE, filled),
        "duplicate_lines": share(again, written),
        "duplicate_line_characters": ratio(lines.sums(lines.lengths * again), characters),
        "duplicate_paragraphs": share(twice, opening),
        "duplicate_paragraph_characters": ratio(lines.sums(paragraph_lengths * twice), characters),
        "repeated_characters": ratio(lines.sums(lines.lengths * (again & filled)), lines.sums(lines.lengths)),
    }


def ngram_signals(texts: Sequence[str], words: Words) -> dict[str, np.ndarray]:
    """Gopher's repetition rules for n-grams, as shares of a text's characters.

    An n-gram can only repeat where the shorter one that it begins with does, so only these places are looked at.
    """
    characters = np.array([len(text) for text in texts], np.float64)
    single = mix64(words.ids.astype(np.uint64) + np.uint64(1))
    before = np.concatenate(([0], np.cumsum(words.lengths, dtype=np.int64)))  # characters before each word
    hashes = mix64(single + words.owners.astype(np.uint64) * _SALT)
    places = np.arange(len(single))  # where the n-grams still looked at begin
    columns = {}
    for n in range(2, DUPLICATE_NGRAMS[-1] + 1):
        inside = places + n <= words.starts[1:][words.owners[places]]
        places, hashes = places[inside], hashes[inside]
        hashes = hashes * _SALT + single[places + n - 1]
        places, groups, hashes = repeated(places, hashes)
        lengths = before[places + n] - before[places]
        if n in TOP_NGRAMS:
            best = most_frequent(groups, words.owners[places], lengths + n - 1, len(texts))
            # Where none repeats the first one is the most frequent; in a text of a few words it is a large share.
            enough = np.flatnonzero((best == 0) & (words.counts >= n))
            first = words.starts[enough]
            best[enough] = before[first + n] - before[first] + n - 1
            columns[f"top_{n}gram"] = ratio(best, characters)
        if n in DUPLICATE_NGRAMS:
            taken = repeats_without_overlap(places, groups, n)
            total = np.bincount(words.owners[places[taken]], weights=lengths[taken], minlength=len(texts))
            columns[f"duplicate_{n}grams"] = ratio(total, characters)
    return columns


def repeated(places: np.ndarray, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The places whose hash occurs more than once, ascending, each with the number of its group and its hash."""
    order = np.argsort(hashes)
    new = np.ones(len(order) + 1, bool)  # where another hash begins, and the end
    new[1:-1] = np.diff(hashes[order]) != 0
    groups = np.empty(len(order), np.int64)
    groups[order] = np.cumsum(new[:-1])
    often = np.ones(len(order), bool)
    often[order[new[:-1] & new[1:]]] = False
    return places[often], groups[often], hashes[often]


def most_frequent(groups: np.ndarray, owners: np.ndarray, lengths: np.ndarray, count: int) -> np.ndarray:
    """Characters in all occurrences of each text's most frequent n-gram; of equally frequent ones, of the first."""
    best = np.zeros(count)
    if len(groups):
        frequency = np.bincount(groups)[groups]
        earliest = np.flatnonzero(_first_of_each(groups))
        order = (frequency[earliest] << 32) - earliest  # the largest is what occurs most often, and of these the first
        borders = np.flatnonzero(np.diff(owners[earliest], prepend=-1))
        chosen = -np.maximum.reduceat(order, borders) & 0xFFFFFFFF
        best[owners[chosen]] = frequency[chosen] * lengths[chosen]
    return best


def _first_of_each(groups: np.ndarray) -> np.ndarray:
    """Which positions are the first of their group, (positions,) bool."""
    positions = np.arange(len(groups))
    first = np.empty(int(groups.max(initial=0)) + 1, np.int64)
    first[groups[::-1]] = positions[::-1]
    return first[groups] == positions


def repeats_without_overlap(places: np.ndarray, groups: np.ndarray, n: int) -> list[int]:
    """Positions in `places` of n-grams seen before, from left to right; one that overlaps another does not count."""
    if not len(places):
        return []
    present = np.zeros(int(places[-1]) + n + 1, np.int32)
    present[places + 1] = 1
    following = np.cumsum(present)[places + n].tolist()  # position of the next n-gram that does not overlap
    names = groups.tolist()
    seen = bytearray(max(names) + 1)
    taken = []
    position = 0
    while position < len(names):
        group = names[position]
        if seen[group]:
            taken.append(position)
            position = following[position]
        else:
            seen[group] = 1
            position += 1
    return taken


def c4_sentences(texts: Sequence[str], table: WordTable) -> np.ndarray:
    """Sentences in the lines that C4 keeps, (texts,); -1 for a text that it drops for "lorem ipsum" or a brace."""
    counts = np.zeros(len(texts))
    kept: list[str] = []
    owners: list[int] = []
    for number, text in enumerate(texts):
        found = c4_lines(text)
        if found is None:
            counts[number] = -1
        else:
            kept += found
            owners += [number] * len(found)
    return counts + np.bincount(owners, weights=sentences(table.read(kept)), minlength=len(texts))


def c4_lines(text: str) -> list[str] | None:
    """The lines that C4 keeps: whole sentences that are no notice of a web page; None where it drops the text."""
    kept = []
    for raw in text.split("\n"):
        line = raw.strip()
        if "]" in line:
            line = _CITATION.sub("", line)
        if not line.endswith(_END_OF_C4_LINE) or line.endswith("..."):
            continue
        pieces = raw.split()
        if len(pieces) < _FEWEST_C4_WORDS or (len(raw) > _LONGEST_C4_WORD and max(map(len, pieces)) > _LONGEST_C4_WORD):
            continue
        lowered = line.lower()
        if "lorem ipsum" in lowered:
            return None
        if "javascript" in lowered:
            continue
        if "{" in line:
            return None
        if _POLICY.search(lowered) is None:
            kept.append(line)
    return kept


def sentences(words: Words) -> np.ndarray:
    """Sentences of each text, (texts,): one begins with the text, and with each word after a full stop or its like."""
    ends = np.concatenate(([0], np.cumsum(words.flags & SENTENCE_END > 0)))  # sentence ends before each word
    inner = np.flatnonzero(words.flags & (PUNCTUATION | SENTENCE_END) == 0)
    owners = words.owners[inner]
    before = ends[words.starts[owners]]  # ends before the text, or before the word that precedes in it
    same = owners[1:] == owners[:-1]
    before[1:][same] = ends[inner[:-1][same]]
    begun = np.bincount(owners, weights=ends[inner] > before, minlength=len(words.counts))
    return (words.counts > 0) + begun
