"""Perplexity: what is scored, from which context, and how it is summed."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from inference_fixtures import SOURCES, VOCAB, documents, make_data, tiny_model

from common.errors import UserError
from common.files import read_json, write_json
from data_pipeline.shards import INDEX_DTYPE, Dataset
from data_pipeline.tokenizer import Tokenizer
from evaluation.perplexity import Score, count_words, document_windows, packed_windows, score_split, token_nll
from model import Decoder
from model.device import Precision

CPU, FP32 = torch.device("cpu"), Precision("fp32", "")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return Dataset(make_data(tmp_path_factory.mktemp("data")))


def split(dataset: Dataset) -> tuple[np.ndarray, np.ndarray]:
    stream = dataset.split("val")
    return stream.read(0, len(stream)), stream.documents()


def nll(
    model: Decoder, tokens: np.ndarray, windows: np.ndarray, batch_tokens: int = 256, history: int = 0
) -> np.ndarray:
    return token_nll(model, tokens, windows, 0, CPU, FP32, batch_tokens, history=history)


def one_by_one(model: Decoder, tokens: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """Each token from a pass of its own over the context that its window gives it."""
    result = np.zeros(len(tokens))
    with torch.no_grad():
        for start, length in windows.tolist():
            for position in range(start, start + length):
                context = [int(tokens[start - 1]) if start else 0, *tokens[start:position].tolist()]
                logits = model(torch.tensor([context]))[0, -1].double()
                result[position] = torch.logsumexp(logits, 0) - logits[tokens[position]]
    return result


def test_packed_windows_cover_everything_once() -> None:
    assert packed_windows(10, 4).tolist() == [[0, 4], [4, 4], [8, 2]]
    assert packed_windows(8, 4).tolist() == [[0, 4], [4, 4]]
    assert packed_windows(3, 4).tolist() == [[0, 3]]


def test_document_windows_stay_inside_documents() -> None:
    lengths = [5, 1, 8, 4]
    index = np.array([(s, n, n, 0) for s, n in zip((0, 5, 6, 14), lengths, strict=True)], INDEX_DTYPE)
    expected = [[0, 4], [4, 1], [5, 1], [6, 4], [10, 4], [14, 4]]
    assert document_windows(index, 4).tolist() == expected


@pytest.mark.parametrize("policy", ["packed", "document"])
def test_equals_a_loop_over_single_tokens(policy: str, dataset: Dataset) -> None:
    tokens, index = split(dataset)
    index = index[:6]
    tokens = tokens[: int(index["tokens"].sum())]
    model = tiny_model(context_length=16, embedding_std=0.1)
    windows = packed_windows(len(tokens), 16) if policy == "packed" else document_windows(index, 16)
    assert len(tokens) % 16, "the last window should be short"
    found = nll(model, tokens, windows)
    assert found.dtype == np.float32
    assert found.shape == tokens.shape
    np.testing.assert_allclose(found, one_by_one(model, tokens, windows), atol=2e-5, rtol=1e-5)


def test_document_policy_equals_documents_alone(dataset: Dataset) -> None:
    tokens, index = split(dataset)
    model = tiny_model(context_length=256, embedding_std=0.1)
    found = nll(model, tokens, document_windows(index, 256))
    for start, length in zip(index["start"][:5].tolist(), index["tokens"][:5].tolist(), strict=True):
        alone = tokens[start : start + length]
        np.testing.assert_allclose(
            found[start : start + length], nll(model, alone, packed_windows(length, 256)), atol=1e-5
        )


def test_does_not_depend_on_the_batch_size(dataset: Dataset) -> None:
    tokens, index = split(dataset)
    model = tiny_model(embedding_std=0.1)
    for windows in (packed_windows(len(tokens), 32), document_windows(index, 32)):
        reference = nll(model, tokens, windows, batch_tokens=1)
        for batch_tokens in (33, 100, 10_000):
            np.testing.assert_allclose(nll(model, tokens, windows, batch_tokens), reference, atol=1e-5)


@pytest.mark.parametrize("stride", [1, 5, 8, 16])
def test_sliding_windows_equal_a_loop_over_single_tokens(stride: int, dataset: Dataset) -> None:
    """Every token once, from itself back to the beginning of a window that ends with its stride."""
    tokens = split(dataset)[0][:75]
    model = tiny_model(context_length=16, embedding_std=0.1)
    found = nll(model, tokens, packed_windows(75, stride), history=16 - stride)
    for place in range(75):
        first = max(0, place // stride * stride - (16 - stride))
        alone = one_by_one(model, tokens, np.array([[first, place - first + 1]]))
        assert found[place] == pytest.approx(alone[place], abs=2e-5), place
    for batch_tokens in (1, 40, 10_000):
        again = nll(model, tokens, packed_windows(75, stride), batch_tokens, 16 - stride)
        np.testing.assert_allclose(again, found, atol=1e-5)


def test_more_context_is_what_sliding_adds(dataset: Dataset) -> None:
    tokens = split(dataset)[0][:200]
    model = tiny_model(context_length=32, embedding_std=0.1)
    packed = nll(model, tokens, packed_windows(200, 32))
    assert np.array_equal(packed, nll(model, tokens, packed_windows(200, 32), history=0))
    sliding = nll(model, tokens, packed_windows(200, 8), history=24)
    np.testing.assert_allclose(sliding[:32], packed[:32], atol=1e-5)  # nothing lies before
    assert not np.allclose(sliding[32:56], packed[32:56], atol=1e-3)
    np.testing.assert_allclose(sliding[56:64], packed[56:64], atol=1e-5)  # the end of a window of either


def test_a_window_longer_than_the_text_is_one_pass(dataset: Dataset) -> None:
    tokens = split(dataset)[0][:40]
    model = tiny_model(context_length=256, embedding_std=0.1)
    with torch.no_grad():
        inputs, targets = torch.tensor([[0, *tokens[:-1].tolist()]]), torch.tensor(tokens[None])
        once = torch.nn.functional.cross_entropy(model(inputs)[0], targets[0], reduction="none")
    for stride in (256, 64, 7):
        found = nll(model, tokens, packed_windows(40, stride), history=256 - stride)
        np.testing.assert_allclose(found, once.numpy(), atol=2e-5)


@pytest.mark.parametrize("case", ["gpt2", "llama"])
def test_equals_the_loss_of_transformers_on_the_same_weights(case: str, tmp_path: Path, dataset: Dataset) -> None:
    hf_models = pytest.importorskip("hf_models")
    from common.runs import Run
    from inference import load_run
    from model.convert.__main__ import main

    theirs = hf_models.save(case, tmp_path / "theirs")
    main(["from-hf", str(tmp_path / "theirs"), str(tmp_path / "run")])
    model = load_run(Run(tmp_path / "run"), device="cpu").model
    tokens = split(dataset)[0][:127]
    with torch.no_grad():
        ids = torch.tensor([[0, *tokens.tolist()]])
        expected = float(theirs(ids, labels=ids).loss)  # the mean over the 127 tokens behind the first
    found = nll(model, tokens, packed_windows(127, 128))
    assert found.mean() == pytest.approx(expected, rel=1e-5)


def test_words_are_those_of_the_raw_text(dataset: Dataset) -> None:
    tokens, index = split(dataset)
    words = count_words(tokens, index, Tokenizer(dataset.tokenizer_path).decode)
    texts: dict[str, list[str]] = {source: [] for source in SOURCES}
    for number, (source, text) in enumerate(documents()):
        if number // 2 % 10 == 0:
            texts[source].append(text)
    scores = score_split(np.full(len(tokens), 2.0, np.float32), index, dataset.sources, words)
    for source, score in scores.per_source.items():
        assert score.words == sum(len(text.split()) for text in texts[source])
        assert score.word_perplexity == pytest.approx(math.exp(2 * score.tokens / score.words))
    assert scores.total.words == words.sum()
    assert score_split(np.ones(len(tokens), np.float32), index, dataset.sources).total.word_perplexity is None
    assert Score.of(7000.0, 10, 10, 10).word_perplexity is None  # beyond what a float holds


def test_uniform_model_has_the_perplexity_of_its_vocabulary(dataset: Dataset) -> None:
    tokens, index = split(dataset)
    model = tiny_model()
    torch.nn.init.zeros_(model.embedding.weight)
    scores = score_split(nll(model, tokens, packed_windows(len(tokens), 32)), index, dataset.sources)
    assert scores.total.perplexity == pytest.approx(VOCAB, rel=1e-5)
    assert scores.total.loss == pytest.approx(math.log(VOCAB), rel=1e-6)
    assert all(score.perplexity == pytest.approx(VOCAB, rel=1e-5) for score in scores.per_source.values())


def test_sources_add_up_and_bytes_are_those_of_the_raw_text(dataset: Dataset) -> None:
    tokens, index = split(dataset)
    rng = np.random.default_rng(0)
    values = rng.exponential(3, len(tokens)).astype(np.float32)
    scores = score_split(values, index, dataset.sources)
    total = values.astype(np.float64).sum()
    parts = scores.per_source.values()
    assert sum(score.loss * score.tokens for score in parts) == pytest.approx(total, rel=1e-12)
    assert sum(score.tokens for score in parts) == scores.total.tokens == len(tokens)
    for number, (source, score) in enumerate(scores.per_source.items()):
        texts = [text for n, (name, text) in enumerate(documents()) if name == source and n // 2 % 10 == 0]
        assert score.bytes == sum(len(text.encode("utf-8")) for text in texts)
        mine = np.concatenate([values[d["start"] : d["start"] + d["tokens"]] for d in index if d["source"] == number])
        assert score.loss == pytest.approx(mine.astype(np.float64).mean(), rel=1e-12)
        assert score.bits_per_byte == pytest.approx(
            mine.astype(np.float64).sum() / math.log(2) / score.bytes, rel=1e-12
        )
        assert score.perplexity == pytest.approx(math.exp(score.loss))
    assert list(scores.per_source) == list(SOURCES)


def test_a_source_without_validation_text_is_left_out(dataset: Dataset) -> None:
    tokens, index = split(dataset)
    scores = score_split(np.ones(len(tokens), np.float32), index, [*SOURCES, "empty"])
    assert "empty" not in scores.per_source
    assert Score.of(1.0, 1, 0).bits_per_byte == math.inf


def test_a_perplexity_that_no_float_holds_can_be_written(tmp_path: Path) -> None:
    write_json(tmp_path / "score.json", asdict(Score.of(7200.0, 10, 30, 10)))
    assert read_json(tmp_path / "score.json")["perplexity"] > 1e300


def test_an_index_that_does_not_fit_is_refused(dataset: Dataset) -> None:
    tokens, index = split(dataset)
    for wrong in (index[:-1], index[1:]):
        with pytest.raises(UserError, match="does not cover its tokens"):
            score_split(np.ones(len(tokens), np.float32), wrong, dataset.sources)


def test_windows_that_miss_a_token_are_our_own_mistake(dataset: Dataset) -> None:
    tokens, _ = split(dataset)
    with pytest.raises(AssertionError, match="predictions for"):
        nll(tiny_model(), tokens, packed_windows(len(tokens) - 1, 32))


def test_a_diverged_model_is_named(dataset: Dataset, tmp_path: Path) -> None:
    tokens, _ = split(dataset)
    model = tiny_model()
    torch.nn.init.constant_(model.embedding.weight, math.nan)
    with pytest.raises(UserError, match=r"not finite.*--checkpoint"):
        nll(model, tokens, packed_windows(len(tokens), 32))
