"""Diversity of text: each measure equals what a pencil finds, and is not fooled by length, borders or accents."""

from __future__ import annotations

import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.diversity import (
    adjusted_distinct_n,
    distinct_n,
    mattr,
    measure_diversity,
    mtld,
    self_bleu,
    split_words,
    type_token_ratio,
    within_budget,
)

# The example of McCarthy and Jarvis: the first factor ends with the second "people".
GETTYSBURG = "of the people by the people for the people".split()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("¿Qué tipo de Pokémon es?", ["qué", "tipo", "de", "pokémon", "es"]),
        ("¡ÑANDÚ! «Güiro»", ["ñandú", "güiro"]),
        ("Don't — it’s well-known.", ["don't", "it’s", "well-known"]),
        ("'hola' -a- b_c 4,5", ["hola", "a", "b", "c", "4", "5"]),
        ("Poke\u0301mon", ["pokémon"]),
        ("... !? —", []),
        ("", []),
    ],
)
def test_words_of_spanish_and_english(text: str, words: list[str]) -> None:
    assert split_words(text) == words


def test_distinct_n_is_pooled() -> None:
    texts = ["a b a b".split(), "a b".split()]
    assert distinct_n(texts, 1) == 2 / 6
    assert distinct_n(texts, 2) == 2 / 4  # ab, ba, ab | ab
    assert distinct_n(texts, 3) == 2 / 2  # aba, bab
    assert distinct_n(texts, 5) is None
    assert distinct_n([], 1) is None


def test_no_ngram_crosses_from_text_to_text() -> None:
    assert distinct_n([["a"], ["b"]], 2) is None


def test_type_token_ratio() -> None:
    assert type_token_ratio(GETTYSBURG) == 5 / 9
    assert type_token_ratio([]) is None


def test_mattr_is_the_mean_over_all_windows() -> None:
    # Windows of three: of the people | the people by | people by the | by the people | ... all of three words.
    assert mattr(GETTYSBURG, 3) == 1
    # aab 2, aba 2, bab 2, abc 3: 9 words of 12
    assert mattr("a a b a b c".split(), 3) == 9 / 12
    assert mattr("a a b".split(), 3) == 2 / 3
    assert mattr("a b".split(), 3) is None


@given(st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=60), st.integers(1, 12))
def test_mattr_equals_counting_each_window_anew(words: list[str], window: int) -> None:
    ratios = [len(set(words[start : start + window])) / window for start in range(len(words) - window + 1)]
    assert mattr(words, window) == (pytest.approx(sum(ratios) / len(ratios)) if ratios else None)


def test_mtld_by_hand() -> None:
    # Forwards: of the people by the people (4/6 <= .72) is one factor; for the people: ratio 1, no part of another.
    # Backwards: people the for people (3/4) the (3/5) is one; by people the of: ratio 1, no part of another.
    assert mtld(GETTYSBURG) == 9
    # Forwards: a a (1/2) is one; b c d b: 3/4, so (1 - 3/4) / (1 - .72) of another. Backwards: b d c b (3/4) a (4/5)
    # a (4/6) is one.
    forwards, backwards = 6 / (1 + 0.25 / 0.28), 6 / 1
    assert mtld("a a b c d b".split()) == pytest.approx((forwards + backwards) / 2)


def test_mtld_ends_a_factor_where_the_threshold_is_reached() -> None:
    assert mtld(["a", "a"] * 5, threshold=0.5) == 2


def test_mtld_without_a_repeated_word_has_no_bound() -> None:
    assert mtld("a b c".split()) is None
    assert mtld([]) is None


def test_mtld_and_mattr_do_not_fall_with_length_as_the_ratio_does() -> None:
    rng = random.Random(0)
    words = [f"w{int(rng.paretovariate(0.7)) % 5000}" for _ in range(10_000)]
    short, long = words[:500], words
    ratios = type_token_ratio(short), type_token_ratio(long)
    assert ratios[1] < 0.75 * ratios[0]  # type: ignore[operator]
    for measure in (mattr, mtld):
        assert measure(long) == pytest.approx(measure(short), rel=0.15)


@given(st.lists(st.integers(0, 30), max_size=8), st.integers(0, 100))
def test_a_budget_is_shared_alike_and_used_up(lengths: list[int], budget: int) -> None:
    texts = [[f"{number}.{place}" for place in range(length)] for number, length in enumerate(lengths)]
    taken = within_budget(texts, budget)
    assert sum(map(len, taken)) == min(budget, sum(lengths))
    for words, text in zip(taken, texts, strict=True):
        assert words == text[: len(words)]
    # Whoever got less than another, by more than the word that does not divide, had no more to give.
    cut = sorted(len(words) for words, text in zip(taken, texts, strict=True) if len(words) < len(text))
    assert all(later - earlier <= 1 for earlier, later in pairwise(cut))
    assert not cut or max(map(len, taken)) <= cut[0] + 1


def test_all_measures_of_a_set() -> None:
    texts = ["Uno dos tres. Uno dos tres.", "Cuatro"]
    found = measure_diversity(texts)
    assert (found.words, found.budget) == (7, 1000)
    assert (found.distinct_1, found.distinct_2, found.distinct_3) == (4 / 7, 3 / 5, 3 / 4)
    assert (found.type_token_ratio, found.mattr, found.mtld) == (4 / 7, None, None)
    assert measure_diversity(texts, budget=3).distinct_1 == 1  # uno dos | cuatro
    assert measure_diversity([]).type_token_ratio is None


def test_a_loop_is_less_varied_than_prose() -> None:
    prose = (
        "El río nace en la sierra y baja despacio hacia el mar. Los pescadores salen antes del alba, cuando la niebla "
        "cubre todavía las barcas, y vuelven con las redes llenas. En la plaza, una mujer vende naranjas, pan y "
        "flores; los niños corren detrás de un perro blanco. Nadie recuerda ya quién levantó la torre, pero todos "
        "saben que su campana sonó durante la gran tormenta. Por la tarde llega un tren con viajeros, cartas y "
        "noticias de la ciudad, y el pueblo entero parece despertar de una larga siesta de verano."
    )
    varied, loop = measure_diversity([prose]), measure_diversity(["El río es largo. " * 30])
    assert varied.words >= 85 and loop.words == 120
    assert varied.distinct_2 > 0.9 > 0.1 > loop.distinct_2  # type: ignore[operator]
    assert varied.mattr > 0.7 > 0.1 > loop.mattr  # type: ignore[operator]
    assert loop.mtld == pytest.approx(6)  # a factor is four new words and two known ones


def zipfian(rng: random.Random, length: int) -> list[str]:
    return [f"w{int(rng.paretovariate(0.7)) % 5000}" for _ in range(length)]


def test_mtld_and_mattr_equal_those_of_lexicalrichness() -> None:
    package = pytest.importorskip("lexicalrichness")
    rng = random.Random(1)
    for _ in range(20):
        words = zipfian(rng, rng.randint(100, 600))
        theirs = package.LexicalRichness(" ".join(words), preprocessor=None, tokenizer=str.split)
        assert mtld(words) == pytest.approx(theirs.mtld(threshold=0.72), rel=1e-12)
        assert mattr(words) == pytest.approx(theirs.mattr(window_size=50), rel=1e-12)


def test_adjusted_distinct_does_not_fall_with_length_alone() -> None:
    rng = np.random.default_rng(0)
    draws = rng.integers(0, 2000, 20_000).tolist()
    for length in (100, 1000, 20_000):
        assert adjusted_distinct_n([draws[:length]], 1, 2000) == pytest.approx(1, abs=0.05)
    assert distinct_n([draws[:1000]], 1) > 0.7 > 0.1 >= distinct_n([draws], 1)  # type: ignore[operator]
    # Two different of three, from two possible: 2 / (2 * (1 - (1/2) ** 3)).
    assert adjusted_distinct_n([["a", "b", "a"]], 1, 2) == pytest.approx(2 / 1.75)
    assert adjusted_distinct_n([["a", "b", "c"]], 2, 10**15) == pytest.approx(1)
    assert adjusted_distinct_n([["a"]], 2, 10) is None


def test_self_bleu_equals_sacrebleu_with_all_others_as_references() -> None:
    metrics = pytest.importorskip("sacrebleu.metrics")
    scorer = metrics.BLEU(tokenize="none", effective_order=True)
    rng = random.Random(2)
    for _ in range(30):
        texts = [zipfian(rng, rng.randint(1, 30)) for _ in range(rng.randint(2, 8))]
        joined = [" ".join(words) for words in texts]
        scores = [
            scorer.sentence_score(text, joined[:number] + joined[number + 1 :]).score
            for number, text in enumerate(joined)
        ]
        found = self_bleu(texts)
        assert found is not None and found.texts == len(texts)
        assert found.score == pytest.approx(np.mean(scores), abs=1e-9)


def test_self_bleu_of_equal_texts_is_100_and_of_unlike_ones_0() -> None:
    assert self_bleu([GETTYSBURG] * 3).score == pytest.approx(100)  # type: ignore[union-attr]
    assert self_bleu([["a", "b"], ["c", "d"], []]).score == 0  # type: ignore[union-attr]
    assert self_bleu([GETTYSBURG]) is None


def test_of_many_texts_the_same_ones_are_drawn() -> None:
    rng = random.Random(3)
    texts = [zipfian(rng, 20) for _ in range(40)]
    found = self_bleu(texts, limit=10, seed=4)
    assert found == self_bleu(texts, limit=10, seed=4) and found.texts == 10  # type: ignore[union-attr]
    assert found != self_bleu(texts, limit=10, seed=5)
