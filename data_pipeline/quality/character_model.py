"""How little a text reads like a reference: bits per character under an interpolated character n-gram model.

After CCNet (Wenzek et al. 2020), which takes the perplexity under a word model of Wikipedia; characters need no
tokenizer and little text. The smoothing is that of Witten and Bell (1991): the probability of a character c after a
history h is

    P(c | h) = (count(hc) + kinds(h) P(c | h')) / (count(h) + kinds(h))

with h' the history without its oldest character, and kinds(h) how many different characters follow h. So an n-gram is
worth two numbers: its own term as hc, and the weight of the shorter history's probability as h of the next character.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from pathlib import Path

import numpy as np

from common.errors import UserError
from common.files import atomic_write
from data_pipeline.documents import Counts, read_documents, stable_hash

ORDER = 5  # characters in the longest n-gram; a symbol has 8 bits and a key has room for 7
_SLOT_BITS = 21  # 2 million n-grams of 8 bytes; of several in one slot the most frequent one stays
_CHUNK = 1 << 15  # characters looked up at a time, so that the steps in between stay in the processor's cache
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_LARGEST = 65535  # terms and weights are stored in 16 bits
_OTHER = 255  # the symbol of all rare characters; symbol 0 stands before every text


@dataclass(frozen=True)
class TrainArgument:
    paths: tuple[Path, ...]  # cleaned shards of the reference sources
    sample_bytes: int


def train_reference(task: str, directory: Path, argument: TrainArgument) -> Counts:
    """Train on a sample of the prose in `paths` and write `<task>.npz`.

    Raises:
        UserError: there is no prose in the reference sources.
    """
    texts = sample(argument.paths, argument.sample_bytes)
    if not texts:
        raise UserError("measures.reference_sources: these sources hold no prose to learn from; name others, or none")
    model = CharacterModel.trained_on(texts)
    with atomic_write(directory / f"{task}.npz", "wb") as file:
        np.savez(file, **vars(model))
    return Counts(details={"documents": len(texts), "characters": sum(map(len, texts))})


def sample(paths: Sequence[Path], limit: int) -> list[str]:
    """The prose with the smallest hashes of ids, up to `limit` bytes in all: the same whatever the order of files."""
    held: list[tuple[int, str, str, int]] = []  # a heap, the largest hash first
    size, bound = 0, 2**64
    for path in paths:
        for document in read_documents(path):
            key = stable_hash("reference", document.id)
            if document.kind == "code" or key >= bound:
                continue
            heappush(held, (-key, document.id, document.text, document.byte_count))
            size += document.byte_count
            while size > limit and len(held) > 1:
                largest, _, _, removed = heappop(held)
                size, bound = size - removed, -largest
    return [text for _, _, text, _ in sorted(held, reverse=True)]


class CharacterModel:
    """A trained model: 18 MB, whatever it was trained on."""

    def __init__(self, symbols: np.ndarray, singles: np.ndarray, weights: np.ndarray, slots: np.ndarray) -> None:
        self.symbols = symbols  # (0x110000,) uint8, of every code point
        self.singles = singles  # (256,) float32, the probability of each symbol after no history
        self.weights = weights  # (256,) float32, the weight of `singles` after each symbol
        self.slots = slots  # (2^_SLOT_BITS,) uint64: 32 bits to know the n-gram by, 16 its term, 16 its weight

    @classmethod
    def load(cls, path: Path) -> CharacterModel:
        with np.load(path) as arrays:
            return cls(**arrays)

    @classmethod
    def trained_on(cls, texts: Sequence[str]) -> CharacterModel:
        """Takes about 50 bytes of memory and half a microsecond a character."""
        codes = _code_points(texts)
        symbols = _alphabet(codes)
        tables = _tables(symbols[codes])
        single, _, term, weight = tables[0]
        singles, weights = np.zeros(256, np.float32), np.ones(256, np.float32)
        singles[single], weights[single] = term, weight
        singles += (1 - singles.sum()) / 256  # below the shortest n-grams every symbol is as likely as any other
        hashes = np.concatenate([_hashes(keys, order) for order, (keys, *_) in enumerate(tables[1:], start=2)])
        _, counts, terms, lower = (np.concatenate(column) for column in zip(*tables[1:], strict=True))
        packed = np.rint(terms * _LARGEST).astype(np.uint64) << np.uint64(16)
        packed |= np.maximum(1, np.rint(lower * _LARGEST)).astype(np.uint64)
        packed |= hashes << np.uint64(32)
        order = np.lexsort((hashes, -counts, _slot(hashes)))
        places, first = np.unique(_slot(hashes)[order], return_index=True)
        slots = np.zeros(1 << _SLOT_BITS, np.uint64)
        slots[places] = packed[order[first]]
        return cls(symbols, singles, weights, slots)

    def bits_per_character(self, texts: Sequence[str]) -> np.ndarray:
        """Mean negative binary logarithm of the probabilities of a text's characters, (texts,); 0 for an empty one."""
        sequence = self.symbols[_code_points(texts)]
        bits = [-np.log2(chunk.astype(np.float64)) for chunk in self._probabilities(sequence)]
        lengths = np.array([len(text) for text in texts], np.int64)
        owners = np.repeat(np.arange(len(texts)), lengths + 1)
        inside = sequence != 0
        weights = np.concatenate(bits)[inside] if bits else None
        return np.bincount(owners[inside], weights, len(texts)) / np.maximum(lengths, 1)

    def _probabilities(self, sequence: np.ndarray) -> Iterator[np.ndarray]:
        """The probability of every symbol, chunk after chunk.

        A history that reaches back into another text was never counted, so no text has a say in the next.
        """
        padded = np.concatenate((np.zeros(ORDER - 1, np.uint8), sequence))
        for start in range(0, len(sequence), _CHUNK):
            part = padded[start : start + _CHUNK + ORDER - 1]
            wide = part.astype(np.uint64)
            count = len(part) - ORDER + 1
            probability = self.singles[part[-count:]]
            weight = self.weights[part[-count - 1 : -1]]
            keys = wide
            for order in range(2, ORDER + 1):
                keys = keys[1:] | (wide[: len(wide) - order + 1] << np.uint64(8 * (order - 1)))
                hashes = _hashes(keys, order)
                slots = self.slots[_slot(hashes)]
                known = (slots >> np.uint64(32)).astype(np.uint32) == hashes.astype(np.uint32)
                low = slots.astype(np.uint32) * known
                term = (low >> np.uint32(16)).astype(np.float32) / np.float32(_LARGEST)
                probability = term[-count:] + weight * probability
                lower = (low & np.uint32(_LARGEST)).astype(np.float32) / np.float32(_LARGEST)
                lower[~known] = 1
                weight = lower[-count - 1 : -1] if order < ORDER else weight
            yield probability


def _code_points(texts: Sequence[str]) -> np.ndarray:
    """All texts in one array, each after a zero, (characters + texts,) uint32."""
    return np.frombuffer("".join(f"\0{text}" for text in texts).encode("utf-32-le"), np.uint32)


def _alphabet(codes: np.ndarray) -> np.ndarray:
    """The symbol of every code point: one for each of the 253 most frequent characters, one for all digits."""
    zero, after_nine = ord("0"), ord("9") + 1
    counts = np.bincount(codes, minlength=0x110000)
    counts[0] = counts[zero:after_nine] = 0
    frequent = np.argsort(-counts, kind="stable")[: _OTHER - 2]
    frequent = frequent[counts[frequent] > 0]
    symbols = np.full(0x110000, _OTHER, np.uint8)
    symbols[frequent] = np.arange(2, len(frequent) + 2)
    symbols[zero:after_nine], symbols[0] = 1, 0
    return symbols


def _tables(sequence: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """For every order the keys of its n-grams, ascending, their counts, terms and weights, (n-grams,) each.

    The key of an n-gram has its last symbol in the lowest 8 bits, so n-grams that share their history are neighbours.
    """
    keys = np.zeros(len(sequence), np.uint64)
    inside = np.ones(len(sequence), bool)  # where a text goes on: only its first character has a zero before it
    tables: list[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]] = []
    for order in range(1, ORDER + 1):
        oldest = np.concatenate((np.zeros(order - 1, np.uint8), sequence[: len(sequence) - order + 1]))
        keys |= oldest.astype(np.uint64) << np.uint64(8 * (order - 1))
        ngrams, counts = np.unique(keys[inside], return_counts=True)
        inside &= oldest != 0
        histories, first = np.unique(ngrams >> np.uint64(8), return_index=True)
        kinds = np.diff(first, append=len(ngrams))
        total = np.add.reduceat(counts, first) + kinds
        if tables:
            shorter, _, _, weights = tables[-1]
            weights[np.searchsorted(shorter, histories)] = kinds / total
        tables.append((ngrams, counts, counts / np.repeat(total, kinds), np.ones(len(ngrams))))
    return tables


def _hashes(keys: np.ndarray, order: int) -> np.ndarray:
    """Different for any two n-grams, and never zero in the lower half, which an empty slot has; uint64."""
    return (keys << np.uint64(8) | np.uint64(order)) * _FACTOR


def _slot(hashes: np.ndarray) -> np.ndarray:
    return hashes >> np.uint64(64 - _SLOT_BITS)
