"""Weights in fewer bits, and the native step, as users meet them: the engine, sample.py, the server, what it costs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from inference_fixtures import VOCAB, World, make_data, make_tokenizer, make_world, run_all, tiny_model
from serving_fixtures import load, make_chat_run, running
from test_engine import ADAPTERS, Client, Loaded, adapted_model, alone
from test_inference_generation import FAMILIES

from common.errors import UserError
from data_pipeline.tokenizer import Tokenizer
from inference import Engine, GenerationRequest, SamplingOptions
from inference.passes import LONG, wants_native
from inference.proposers import PromptLookup
from inference.speed import weight_bytes
from model.adapters.attach import activate
from model.native import library
from model.packed_weight import Bits
from model.quantization import quantize
from serving.service import Service

ALL_BITS = get_args(Bits)
OPTIONS = (SamplingOptions(temperature=0, max_new_tokens=40), SamplingOptions(top_k=20, seed=3, max_new_tokens=40))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


def test_nothing_is_left_in_fp32() -> None:
    sizes = {}
    for bits in ALL_BITS:
        model = tiny_model(width=128, tied=False)
        whole, count = weight_bytes(model), model.parameter_count()
        quantize(model, bits)
        assert not [name for name, parameter in model.named_parameters() if parameter.ndim > 1]
        assert model.parameter_count() == count
        sizes[bits] = weight_bytes(model) / whole
        with pytest.raises(UserError, match="is quantised already"):
            quantize(model, bits)
    assert sizes["bf16"] == pytest.approx(0.5, abs=0.01)
    assert sizes["int8"] == pytest.approx(0.26, abs=0.02)
    assert 0.14 < sizes["int4"] < 0.2  # the head is in int8


@pytest.mark.parametrize("compiler", [True, False])
def test_weights_that_are_not_finite_are_refused(compiler: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiler:
        monkeypatch.setattr(library, "available", lambda: False)
    model = tiny_model()
    with torch.no_grad():
        model.blocks[1].mlp.down.weight[3, 4] = torch.nan
    with pytest.raises(UserError, match=r"blocks\.1\.mlp\.down: .*not finite"):
        quantize(model, "int8")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_native_step_writes_the_same_text(family: str, tokenizer: Tokenizer) -> None:
    """Past the end of the context, which slides, and with proposals."""
    loaded = Loaded(tiny_model(**FAMILIES[family]), tokenizer)
    for options in OPTIONS:
        request = GenerationRequest((5, 6, 7, 5, 6), options, ignore_eos=True)
        expected = alone(loaded, request).tokens
        assert alone(loaded, request, native=True).tokens == expected
        assert alone(loaded, request, native=True, proposer=PromptLookup(match=1)).tokens == expected


@pytest.mark.parametrize("bits", [None, *ALL_BITS])
def test_requests_do_not_change_each_other(bits: Bits | None, tokenizer: Tokenizer) -> None:
    loaded = Loaded(tiny_model(), tokenizer)
    if bits is not None:
        quantize(loaded.model, bits)
    requests = [
        GenerationRequest((5 + number,) * (1 + number), replace(options, seed=number), ignore_eos=True)
        for number in range(5)
        for options in OPTIONS
    ]
    engine = Engine(loaded, slots=6, native=True)
    clients = []
    for request in requests:
        clients.append(Client(engine, request))
        engine.step()
    engine.run()
    for client, request in zip(clients, requests, strict=True):
        assert client.tokens == alone(loaded, request, native=True).tokens


def test_adapters_stay_beside_quantised_weights(tokenizer: Tokenizer) -> None:
    exact, model, ids = adapted_model(), adapted_model(), torch.arange(12)[None]
    quantize(model, "int8")
    for name in ADAPTERS:
        activate(exact, (name,))
        activate(model, (name,))
        with torch.no_grad():
            expected, found = exact(ids), model(ids)
        assert (found - expected).norm() < 0.05 * expected.norm(), name
    activate(model, ())
    requests = [GenerationRequest((5, 6), OPTIONS[1], adapter=name) for name in (None, *ADAPTERS)]
    engine = Engine(Loaded(model, tokenizer), native=True)
    clients = [Client(engine, request) for request in requests]
    engine.run()
    assert len({tuple(client.tokens) for client in clients}) == len(requests)


def test_what_quantisation_costs_in_perplexity(tmp_path: Path) -> None:
    """Of a model that has learned something: random weights predict nothing that rounding could spoil."""
    model = tiny_model(width=64, zero_init_projections=True).train()
    data = make_data(tmp_path / "data")
    windows = {}
    for split in ("train", "val"):
        shards = [np.fromfile(shard, np.uint16) for shard in sorted(data.glob(f"{split}*.bin"))]
        windows[split] = torch.from_numpy(np.concatenate(shards)).long().unfold(0, 33, 32)
    train, val = windows["train"], windows["val"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(120):
        batch = train[step * 16 % (len(train) - 16) :][:16]
        loss = model(batch[:, :-1], batch[:, 1:]) / batch[:, 1:].numel()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    weights, losses = model.eval().state_dict(), {}
    for bits in (None, *ALL_BITS):
        model = tiny_model(width=64).eval()
        model.load_state_dict(weights)
        if bits is not None:
            quantize(model, bits)
        losses[bits] = model.token_losses(val[:, :-1], val[:, 1:]).mean().item()
    costs = {bits: np.expm1(loss - losses[None]) for bits, loss in losses.items()}
    print(f"loss {losses[None]:.3f}; perplexity more by", costs)
    assert losses[None] < 0.7 * np.log(VOCAB), "it should have learned something"
    assert abs(costs["bf16"]) < 0.002 and abs(costs["int8"]) < 0.01 and abs(costs["int4"]) < 0.08
    assert losses["int8"] != losses[None]


def test_when_the_native_step_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    for built, setting, tokens, taken in (
        (False, "auto", LONG, True),
        (False, "auto", LONG - 1, False),
        (True, "auto", 1, True),
        (True, "off", LONG, False),
        (False, "on", 1, True),
    ):
        monkeypatch.setattr("inference.passes.is_built", lambda built=built: built)
        assert wants_native(model, setting, tokens) == taken  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"--compile on is not possible .*document"):
        wants_native(tiny_model(document_start=0), "on", 1)


def test_sample_command(world: World) -> None:
    base = ["--prompt", "def", "--max-new-tokens", "30", "--seed", "1"]
    lines = [
        [*base, "--compile", "off"],
        [*base, "--compile", "on"],
        *([*base, "--quantize", bits, "--num-samples", "2"] for bits in ALL_BITS),
        [*base, "--quantize", "int8", "--speculate", "prompt-lookup"],
        [*base, "--quantize", "int3"],
    ]
    results = run_all("sample", lines, world.root)
    assert [code or 0 for code, _, _ in results] == [0] * (len(lines) - 1) + [2]
    assert results[0][1] == results[1][1]
    for (_, out, err), bits in zip(results[2:5], ALL_BITS, strict=True):
        assert out.count("---\n") == 1 and out.startswith("def")
        assert f"weights in {bits}" in err
    assert results[5][1].startswith("def")


def test_a_server_of_quantised_weights(tmp_path: Path) -> None:
    loaded = load(make_chat_run(tmp_path / "run"))
    with running(loaded, bits="int8") as server:
        answers = [server.complete(prompt="def", max_tokens=20, seed=1)["choices"][0]["text"] for _ in range(2)]
        assert answers[0] == answers[1] != ""
    assert loaded.model.embedding.quantized is not None
    with pytest.raises(UserError, match="is quantised already"):
        Service(loaded, server.service.options, bits="int8")


def test_the_table_of_costs(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    ((code, out, _),) = run_all("evaluation.quantization", [["tiny", "--tokens", "500"]], world.root)
    assert not code and "int4" in out
    rows = json.loads((world.run / "quantization.json").read_text(encoding="utf-8"))["rows"]
    assert [row["bits"] for row in rows] == ["fp32", *ALL_BITS]
    assert rows[0]["change"] == 0 and abs(rows[2]["change"]) < 0.01
    assert rows[0]["megabytes"] > rows[1]["megabytes"] > rows[2]["megabytes"] > rows[3]["megabytes"]
    assert library.available()
