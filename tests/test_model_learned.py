"""The last block works only where something is learned: losses and gradients are those of the whole block."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from test_model_virtual import FAMILIES, decoder, some_ids
from torch import Tensor

from model import Decoder, ModelConfig
from model.activations import Checkpointing
from model.adapters.attach import attach
from model.adapters.config import AdapterConfig
from model.functions import IGNORE
from model.weights import Storage, empty_decoder, fill

FUSED = ("c_attn", "c_proj", "c_fc")
ADAPTERS = {
    "none": AdapterConfig(),
    "lora": AdapterConfig("lora", rank=4, init="random"),
    "lora on the fused layer": AdapterConfig("lora", rank=4, init="random", targets=FUSED),
    "dora": AdapterConfig("lora", rank=4, init="random", dora=True, targets=FUSED),
    "pissa": AdapterConfig("lora", rank=4, init="pissa"),
    "bottleneck": AdapterConfig("bottleneck", bottleneck_size=4),
    "ia3": AdapterConfig("ia3"),
    "prefix": AdapterConfig("prefix", virtual_tokens=3),
    "prompt": AdapterConfig("prompt", virtual_tokens=3),
}
ARCHITECTURES = {
    **FAMILIES,
    "windowed": replace(FAMILIES["llama"], window=4),
    "residual scalars": replace(FAMILIES["own"], residual_scalars=True, dropout=0.0),
}
DOCUMENTS = torch.tensor([[0] * 5 + [1] * 7, [0] * 2 + [1] * 6 + [2] * 4])


def adapted(config: ModelConfig, adapter: AdapterConfig) -> Decoder:
    model = decoder(config).train()
    if adapter.method != "none":
        attach(model, adapter)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad and name != "virtual.prompt_embeddings":
                    parameter.add_(torch.randn(parameter.shape), alpha=0.1)
    return model


def some_targets(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Targets at a third of the positions, and these positions."""
    targets = some_ids(*ids.shape).flip(1)
    targets[torch.rand(ids.shape, generator=torch.Generator().manual_seed(2)) < 0.7] = IGNORE
    return targets, (targets.flatten() != IGNORE).nonzero().squeeze(1)


def assert_equal_everywhere(model: Decoder, rtol: float = 1e-5, **arguments: Any) -> None:
    """Loss and gradients with `learned` are those without, and the last block is spared what it can be."""
    ids = some_ids(2, 12)
    targets, learned = some_targets(ids)
    seen: list[int] = []
    hook = model.blocks[-1].mlp.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][..., 0].numel()))
    results = []
    for given in (None, learned):
        model.zero_grad()
        loss = model(ids, targets, learned=given, **arguments)
        loss.backward()
        results.append((loss, {name: p.grad for name, p in model.named_parameters() if p.requires_grad}))
    hook.remove()
    assert seen[0] >= 24 and set(seen[len(seen) // 2 :]) == {len(learned)}
    (whole, expected), (found, gradients) = results
    torch.testing.assert_close(found, whole, rtol=rtol, atol=0)
    for name, gradient in gradients.items():
        wanted = expected[name]
        assert gradient is not None and wanted is not None
        torch.testing.assert_close(gradient, wanted, rtol=0, atol=rtol * float(wanted.abs().max()) + 1e-7, msg=name)


@pytest.mark.parametrize("documents", [None, DOCUMENTS], ids=["alone", "packed"])
@pytest.mark.parametrize("config", ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_every_architecture(config: ModelConfig, documents: Tensor | None) -> None:
    assert_equal_everywhere(decoder(config).train(), documents=documents)


@pytest.mark.parametrize("adapter", ADAPTERS.values(), ids=ADAPTERS)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_every_adapter(family: str, adapter: AdapterConfig) -> None:
    if family == "llama" and adapter.targets == FUSED:
        adapter = replace(adapter, targets=("all-linear",))
    assert_equal_everywhere(adapted(FAMILIES[family], adapter))


@pytest.mark.parametrize("checkpointing", get_args(Checkpointing))
def test_activation_checkpointing(checkpointing: Checkpointing) -> None:
    model = adapted(FAMILIES["own"], ADAPTERS["lora"])
    model.activation_checkpointing = checkpointing
    assert_equal_everywhere(model)


@pytest.mark.parametrize("autocast", [False, True])
def test_four_bits(autocast: bool) -> None:
    config = replace(FAMILIES["llama"], width=64, mlp_width=64)
    model = empty_decoder(config, torch.device("cpu"), Storage(quantization="nf4"))
    fill(model, decoder(config).named_parameters(), "here")
    attach(model.train(), ADAPTERS["lora"])
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        assert_equal_everywhere(model, rtol=3e-2 if autocast else 1e-5)


def test_rows_of_which_nothing_is_learned() -> None:
    model = adapted(FAMILIES["gpt2"], ADAPTERS["lora on the fused layer"])
    ids = some_ids(2, 12)
    none = torch.empty(0, dtype=torch.int64)
    loss = model(ids, torch.full_like(ids, IGNORE), learned=none)
    loss.backward()
    assert loss.item() == 0
    for parameter in model.parameters():
        assert not parameter.requires_grad or (parameter.grad is not None and not parameter.grad.any())


def test_a_compiled_block_meets_one_shape() -> None:
    """It would be compiled anew for every number of positions."""
    model, ids = decoder(FAMILIES["gpt2"]), some_ids(2, 12)
    targets, learned = some_targets(ids)
    expected = model(ids, targets, learned=learned)
    graphs: list[int] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(len(inputs))
        return graph

    torch._dynamo.reset()
    for block in model.blocks:
        block.compile(backend=backend, dynamic=False)
    torch.testing.assert_close(model(ids, targets, learned=learned), expected)
    compiled = len(graphs)
    fewer = targets.clone()
    fewer.view(-1)[learned[:2]] = IGNORE
    model(ids, fewer, learned=learned[2:])
    torch._dynamo.reset()
    assert len(graphs) == compiled > 0
