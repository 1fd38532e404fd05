"""The language of a text, by the model of py3langid (Lui and Baldwin 2012; 139 languages, BSD-3-Clause).

That library reads one text at a time, a byte at a time, in Python. Here the automaton that finds the model's byte
n-grams takes a step in all texts of a batch at once, and naive Bayes is one product of a sparse and a dense matrix.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cache

import numpy as np
from py3langid.langid import MODEL_FILE, LanguageIdentifier
from scipy import sparse

from common.errors import UserError

_CODES = (
    "und ace af am an ar ary arz as az ba bcl be bg bn br bs ca crh cs cy da de dz el en eo es et eu ext fa fi fo "
    "fr fuv fy ga gcf gcr gd gl gom grc gu gug guw ha hbo he hi hr ht hu hy id ig is it ja jv ka kab kik kk km kn "
    "ko ku ky la lb lg lij ln lo lt ltg lv mg mk ml mn mr ms mt my ne nl nn no nso oc om or pa pcm pl ps pt qu ro "
    "ru rw sa sdh se si sk sl sn so sq sr st sv sw ta te tg th tk tl tr tt ug uk ur uz uzs vec vi vo wa wuu xh yo "
    "yue zh zu zxx "
)
# What the column `language` counts in: ISO 639 codes. The first stands for a text that shows no trace of a language.
LANGUAGES = tuple(_CODES.split())
READ_CHARACTERS = 1000  # of a text; reading on changes next to no decision


class _Model:
    """The automaton and the weights of py3langid's model."""

    def __init__(self) -> None:
        """Takes half a second.

        Raises:
            UserError: another release of py3langid brings a model with languages that LANGUAGES does not list.
        """
        model = LanguageIdentifier.from_model_file(MODEL_FILE)
        self.moves = np.array(model.tk_nextmove)  # (rows * 256,), the next state
        self.rows = np.array(model.tk_row, np.int64) << 8  # (states,), where the moves from a state begin
        self.found = np.array(model.tk_output, np.int32)  # (states,), the n-gram that ends there, or -1
        self.weights = model.nb_ptc.astype(np.float32)  # (n-grams, classes), logarithms
        self.priors = model.nb_pc  # (classes,)
        unknown = sorted(set(model.nb_classes) - set(LANGUAGES))
        if unknown:
            raise UserError(f"py3langid has languages that are not known here ({', '.join(unknown)}); use version 0.4")
        self.languages = np.array([LANGUAGES.index(code) for code in model.nb_classes])  # (classes,), of each


@cache
def _model() -> _Model:
    return _Model()


def identify(texts: Sequence[str], candidates: Sequence[str] = ()) -> tuple[np.ndarray, np.ndarray]:
    """The language of each text, as an index into `LANGUAGES`, and its probability, (texts,) both.

    Only `candidates` are considered, where there are any; one alone is the language of all texts. A text without any
    n-gram of the model is of language 0, with probability 0.
    """
    if not texts or len(candidates) == 1:
        number = LANGUAGES.index(candidates[0]) if candidates else 0
        return np.full(len(texts), number), np.ones(len(texts))
    model = _model()
    read = [_bytes(text[:READ_CHARACTERS]) for text in texts]
    counts = _ngram_counts(model, read)
    known = np.diff(counts.indptr) > 0
    counts.data = np.log1p(counts.data)
    # The square root of the length is the temperature at which py3langid's probabilities are calibrated.
    heat = np.sqrt([max(1, len(one)) for one in read])
    scores = (counts @ model.weights + model.priors) / heat[:, None]
    if candidates:
        scores[:, ~np.isin(model.languages, [LANGUAGES.index(code) for code in candidates])] = -np.inf
    scores = np.exp(scores - scores.max(axis=1, keepdims=True))
    scores /= scores.sum(axis=1, keepdims=True)
    chances = np.zeros((len(texts), len(LANGUAGES)))
    for column, language in enumerate(model.languages):
        chances[:, language] += scores[:, column]  # a language in two scripts has two classes
    best = chances.argmax(axis=1)
    return np.where(known, best, 0), np.where(known, chances[np.arange(len(texts)), best], 0.0)


def _bytes(text: str) -> bytes:
    return unicodedata.normalize("NFC", text.lower() if text.isupper() else text).encode(errors="surrogatepass")


def _ngram_counts(model: _Model, texts: Sequence[bytes]) -> sparse.csr_array:
    """How often each n-gram of the model ends in each text, (texts, n-grams) float32."""
    lengths = np.array([len(text) for text in texts], np.int64)
    longest_first = np.argsort(-lengths, kind="stable")
    data = np.frombuffer(b"".join(texts), np.uint8)
    starts = (np.cumsum(lengths) - lengths)[longest_first]
    reaching = np.searchsorted(-lengths[longest_first], -np.arange(lengths.max(initial=0)), side="left")
    states = np.zeros(len(texts), np.int64)
    ngrams = np.empty(len(data), np.int32)
    for step, count in enumerate(reaching.tolist()):  # the first `count` texts are longer than `step`
        places = starts[:count] + step
        states = model.moves[model.rows[states[:count]] + data[places]]
        ngrams[places] = model.found[states]
    ends = np.concatenate(([0], np.cumsum(ngrams >= 0)))[np.concatenate(([0], np.cumsum(lengths)))]
    hits = ngrams[ngrams >= 0]
    counts = sparse.csr_array((np.ones(len(hits), np.float32), hits, ends), shape=(len(texts), len(model.weights)))
    counts.sum_duplicates()
    return counts
