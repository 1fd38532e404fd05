"""Other models as baselines: the run before its first step, other runs, and a directory of Hugging Face."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from inference_fixtures import VOCAB, World, make_world, run_all, tiny_config

from common.errors import UserError
from common.files import read_json
from data_pipeline.shards import Dataset
from evaluation.other_models import score_other, untrained
from evaluation.perplexity import token_nll
from model.convert.hf_export import export_run
from model.device import choose_precision
from model.presets import preset

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A run in Llama's layout, evaluated beside its own export."""
    llama = replace(
        preset("mini-llama"), vocab_size=VOCAB, context_length=32, layers=2, width=32, heads=2, kv_heads=1, mlp_width=64
    )
    world = make_world(tmp_path_factory.mktemp("other"), **asdict(llama))
    export_run(str(world.run), world.root / "exported", "best", "keep", 1 << 30)
    ((code, _, err),) = run_all("evaluation.__main__", [["tiny", "--baseline", "exported", "tiny"]], world.root)
    assert code == 0, err
    return world


def test_an_export_with_its_own_tokenizer_scores_as_the_run_itself(world: World) -> None:
    """The texts are decoded, encoded again by a tokenizer of another kind, and read by weights of another layout."""
    summary = read_json(world.run / "summary.json")
    for name in ("exported", "tiny"):
        found = summary["baselines"][name]
        assert found["tokens"] == summary["val_tokens"] and found["bytes"] == summary["val_bytes"]
        assert found["bits_per_byte"] == pytest.approx(summary["val_bits_per_byte"], rel=1e-5)
        assert list(found["per_source"]) == list(summary["per_source"])
    low, high = summary["intervals"]["all"]["exported"]["behind_interval"]
    assert abs(low) < 1e-4 and abs(high) < 1e-4


def test_an_untrained_model_is_what_training_began_with() -> None:
    config = tiny_config()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, again, other = untrained(config, 3), untrained(config, 3), untrained(config, 4)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.embedding.weight, other.embedding.weight)


def test_an_untrained_model_knows_nothing(world: World) -> None:
    summary = read_json(world.run / "summary.json")
    assert summary["baselines"]["untrained"]["loss"] == pytest.approx(math.log(VOCAB), rel=0.05)


def test_what_is_no_model_is_refused(world: World, tmp_path: Path) -> None:
    precision = choose_precision(CPU, "fp32")

    def score(model, tokens, windows, eos_id):  # type: ignore[no-untyped-def]
        return token_nll(model, tokens, windows, eos_id, CPU, precision, 512)

    with pytest.raises(UserError, match="no run"):
        score_other(str(tmp_path), Dataset(world.data), CPU, score)
