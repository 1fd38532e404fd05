"""The evaluation harness `lm-eval` scores a run through the server as the model scores it without one.

The harness is no part of the test extra, because it brings much along: `pip install 'lm_eval[api]'`.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from inference_fixtures import documents
from serving_fixtures import load, make_chat_run, running

from inference import LoadedRun
from serving.options import ServerOptions

lm_eval = pytest.importorskip("lm_eval")
pytestmark = pytest.mark.slow

CHOICE = {"output_type": "multiple_choice", "doc_to_text": "{{context}}", "doc_to_choice": "{{choices}}",
          "doc_to_target": "answer", "target_delimiter": "", "metric_list": [{"metric": "acc"}]}  # fmt: skip
ROLLING = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}",
           "metric_list": [{"metric": "bits_per_byte"}]}  # fmt: skip


def score(loaded: LoadedRun, context: str, continuation: str) -> tuple[float, bool]:
    """Log-likelihood of a continuation, and whether every token of it is the likeliest; by one plain pass.

    The tokens are those of the harness: white space between the two belongs to the continuation, and that is what
    stands behind the context's tokens when both are encoded together.
    """
    tokenizer = loaded.tokenizer
    whole = tokenizer.encode(context + continuation)
    before = [tokenizer.bos_id, *tokenizer.encode(context.rstrip())]
    ids = [*before, *whole[len(before) - 1 :]]
    with torch.no_grad():
        logprobs = loaded.model(torch.tensor([ids]))[0].log_softmax(-1)
    chosen = [(logprobs[place - 1, ids[place]], logprobs[place - 1].max()) for place in range(len(before), len(ids))]
    return sum(own.item() for own, _ in chosen), all(bool(own == best) for own, best in chosen)


def test_scores_are_those_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    loaded = load(make_chat_run(tmp_path / "tiny", context_length=256))
    texts = [text[:60] for _, text in documents()[:12]]
    rows = [{"context": text[:20], "choices": [text[20:40], " town.", "x"], "answer": 0} for text in texts]
    rows.append({"context": "", "choices": ["The river", "def ", "日本"], "answer": 1})
    (tmp_path / "choice.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "rolling.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    tasks = [
        {"task": name, "dataset_path": "json", "test_split": "test",
         "dataset_kwargs": {"data_files": {"test": str(tmp_path / f"{name}.jsonl")}}, **task}
        for name, task in (("choice", CHOICE), ("rolling", ROLLING))
    ]  # fmt: skip
    with running(loaded, ServerOptions(slots=8)) as server:
        results = lm_eval.simple_evaluate(
            model="local-completions",
            model_args={
                "model": "tiny", "base_url": f"{server.url}/v1/completions", "tokenizer_backend": "remote",
                "max_length": 256, "batch_size": 4,
            },
            tasks=tasks,
            task_manager=lm_eval.tasks.TaskManager(include_defaults=False),
            log_samples=True,
            bootstrap_iters=0,
        )  # fmt: skip
    greedy = 0
    for row, sample in zip(rows, sorted(results["samples"]["choice"], key=lambda each: each["doc_id"]), strict=True):
        for choice, ((found, is_greedy),) in zip(row["choices"], sample["resps"], strict=True):
            expected, expected_greedy = score(loaded, row["context"], choice)
            assert found == pytest.approx(expected, abs=1e-3)
            assert is_greedy is expected_greedy
            greedy += is_greedy
    nats = [score(loaded, "", text)[0] for text in texts]
    rolling = -sum(nats) / math.log(2) / sum(len(text.encode()) for text in texts)
    assert results["results"]["rolling"]["bits_per_byte,none"] == pytest.approx(rolling, rel=1e-5)
    assert 0 < results["results"]["choice"]["acc,none"] < 1
