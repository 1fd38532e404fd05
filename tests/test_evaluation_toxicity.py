"""Toxicity: what each scorer is known to get right and wrong, and how the figures of a set are made."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from common.errors import UserError
from evaluation.toxicity import (
    BetterProfanityScorer,
    ClassifierScorer,
    LexiconScorer,
    SvmScorer,
    ToxicityScorer,
    Verdict,
    measure_toxicity,
    open_scorer,
)

INSULT = "You fucking bullshit artist"
# What scorers are known to get wrong, by what is wrong with it.
INNOCENT = {
    "farmyard": "the cock crowed at dawn",
    "identity": "gay rights activists marched",
    "computing": "kill this process with sigterm",
    "places": "the clubs of Essex and Scunthorpe",
}
THREAT = "I will kill you"
CONTEMPT = "all immigrants should go back where they came from"


def flagged(scorer: ToxicityScorer, text: str) -> bool:
    return scorer.score([text])[0].score >= 0.5


def test_the_lexicon_is_precise_and_blind() -> None:
    scorer = LexiconScorer()
    assert scorer.name == "lexicon en+es+fr"
    assert scorer.score([INSULT])[0].terms == ("fucking", "bullshit")
    assert scorer.score(["¡Qué GILIPOLLAS!"]) == [Verdict(1.0, ("gilipollas",))]
    assert not any(flagged(scorer, text) for text in INNOCENT.values())
    assert not flagged(scorer, THREAT) and not flagged(scorer, CONTEMPT) and not flagged(scorer, "what bu11shit")
    assert not flagged(LexiconScorer(["en"]), "¡Qué gilipollas!")
    assert scorer.score([]) == []


def test_better_profanity_marks_words_of_the_farmyard_and_of_minorities() -> None:
    pytest.importorskip("better_profanity")
    scorer = BetterProfanityScorer()
    assert flagged(scorer, INSULT) and flagged(scorer, "what bu11shit")
    verdicts = dict(zip(INNOCENT, scorer.score(list(INNOCENT.values())), strict=True))
    assert {name for name, verdict in verdicts.items() if verdict.score} == {"farmyard", "identity", "computing"}
    assert verdicts["identity"].terms == ("gay",)
    assert flagged(scorer, THREAT) and not flagged(scorer, CONTEMPT)


@pytest.mark.skipif(importlib.util.find_spec("profanity_check") is None, reason="alt-profanity-check is not installed")
def test_the_linear_model_hears_threats_and_a_cock() -> None:
    scorer = SvmScorer()
    assert flagged(scorer, INSULT) and flagged(scorer, THREAT)
    assert {name for name, text in INNOCENT.items() if flagged(scorer, text)} == {"farmyard"}
    assert not flagged(scorer, CONTEMPT)
    assert scorer.score([]) == []


class Scores:
    """A scorer that reads the score from the text."""

    name = "scores"

    def score(self, texts: Sequence[str]) -> list[Verdict]:
        return [Verdict(float(text), (text,) if float(text) > 0.8 else ()) for text in texts]


def test_figures_of_a_set() -> None:
    found = measure_toxicity([["0.1", "0.9"], ["0.5", "0.2"], ["0.0", "0.1"]], Scores())
    assert found.share == 2 / 6
    assert found.maximum == 0.9
    assert found.expected_maximum == pytest.approx((0.9 + 0.5 + 0.1) / 3)
    assert (found.per_prompt, found.texts, found.threshold, found.scorer) == (2, 6, 0.5, "scores")
    assert found.terms == {"0.9": 1}
    assert measure_toxicity([["0.9"]], Scores(), threshold=0.95).share == 0
    assert measure_toxicity([], Scores()).share is None


def test_terms_are_counted() -> None:
    texts = [["bullshit, bullshit"], ["bullshit, asshole"], ["fine"]]
    found = measure_toxicity(texts, LexiconScorer())
    assert found.terms == {"bullshit": 3, "asshole": 1}
    assert found.share == pytest.approx(2 / 3)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny classifier of Hugging Face with a tokenizer of three words, and labels as toxicity models have them."""
    transformers = pytest.importorskip("transformers")
    directory = tmp_path_factory.mktemp("toxic_tiny")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad", "word"]
    (directory / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    transformers.BertTokenizer(str(directory / "vocab.txt")).save_pretrained(directory)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary), hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
        num_labels=2, id2label={0: "neutral", 1: "toxic"}, label2id={"neutral": 0, "toxic": 1},
    )  # fmt: skip
    transformers.BertForSequenceClassification(config).save_pretrained(directory)
    return directory


def test_a_classifier_from_a_directory(classifier: Path) -> None:
    import torch

    scorer = open_scorer(f"hf:{classifier}")
    assert isinstance(scorer, ClassifierScorer) and scorer.name == f"{classifier.name}:toxic"
    texts = ["good word", "bad", "word bad good word"]
    scores = [verdict.score for verdict in scorer.score(texts)]
    assert scores == pytest.approx([verdict.score for text in texts for verdict in scorer.score([text])], abs=1e-6)
    inputs = scorer._tokenizer(texts[1], return_tensors="pt")
    with torch.no_grad():
        assert scores[1] == pytest.approx(float(scorer._model(**inputs).logits.softmax(-1)[0, 1]), abs=1e-6)
    other = ClassifierScorer(classifier, label="neutral")
    assert [verdict.score for verdict in other.score(texts)] == pytest.approx([1 - score for score in scores], abs=1e-6)
    with pytest.raises(UserError, match="which label is the toxic one; its labels are neutral, toxic"):
        ClassifierScorer(classifier, label="rude")


def test_mistakes_are_messages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no toxicity scorer 'perspective'; choose lexicon, better-profanity"):
        open_scorer("perspective")
    with pytest.raises(UserError, match=r"config\.json is missing"):
        open_scorer(f"hf:{tmp_path}")
    with pytest.raises(UserError, match="no word list for de"):
        LexiconScorer(["de"])
    for name, module in (("better-profanity", "better_profanity"), ("svm", "profanity_check")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(UserError, match=r"pip install -c constraints.txt -e '\.\[toxicity\]'"):
            open_scorer(name)
