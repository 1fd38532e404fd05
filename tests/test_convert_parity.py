"""GPT-2, Llama and Mistral: the same numbers here and in transformers, and the same tensors after there and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hf_models import CASES, build, save
from safetensors.torch import load_file

from common.runs import Run
from inference import SamplingOptions, generate, load_run
from model import Decoder
from model.convert.__main__ import main
from model.convert.registry import family_of_ours
from model.presets import preset

TEXTS = ["The river", "Näme 12 – 日本 😀", ""]


@pytest.fixture(scope="module", params=CASES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, Path]:
    """A model of transformers, the directory it was saved in, and the run that was made of that."""
    folder = tmp_path_factory.mktemp(request.param)
    theirs = save(request.param, folder / "theirs")
    main(["from-hf", str(folder / "theirs"), str(folder / "run")])
    return theirs, folder / "theirs", folder / "run"


def loaded(run: Path) -> Any:
    return load_run(Run(run), device="cpu")


def test_logits_and_losses_are_theirs(pair: tuple[Any, Path, Path]) -> None:
    theirs, _, run = pair
    ours: Decoder = loaded(run).model
    ids = torch.randint(0, theirs.config.vocab_size, (3, 100))
    found = theirs(ids, labels=ids)
    torch.testing.assert_close(ours(ids), found.logits, atol=1e-5, rtol=1e-5)
    assert found.logits.std() > 0.5  # there is something to compare
    loss = ours(ids[:, :-1], ids[:, 1:]) / (3 * 99)
    torch.testing.assert_close(loss, found.loss, atol=1e-4, rtol=1e-4)
    theirs.zero_grad()
    found.loss.backward()
    loss.backward()
    family = family_of_ours(ours.config)
    assert family is not None
    gradients = {name: parameter.grad for name, parameter in ours.named_parameters()}
    named = dict(theirs.named_parameters())
    for rule in family.rules(ours.config):
        of_theirs = named.pop(rule.theirs if rule.theirs in named else family.prefix + rule.theirs).grad
        torch.testing.assert_close(
            rule.join(gradients, torch.float32), of_theirs, atol=1e-4, rtol=1e-4, msg=rule.theirs
        )
    assert not named


def test_greedy_text_is_theirs(pair: tuple[Any, Path, Path]) -> None:
    theirs, _, run = pair
    ours = loaded(run)
    for text in TEXTS:
        prompt = [ours.tokenizer.bos_id, *ours.tokenizer.encode(text)]
        (completion,) = generate(ours.model, ours.tokenizer, text, SamplingOptions(max_new_tokens=64, temperature=0))
        with torch.no_grad():
            whole = theirs.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                max_new_tokens=64,
                do_sample=False,
                eos_token_id=list(ours.tokenizer.eos_ids),
                pad_token_id=0,
            )
        expected = whole[0, len(prompt) :].tolist()
        written = completion.token_ids + [ours.tokenizer.eos_id] * (completion.finish_reason == "eos")
        assert written == expected and len(written) > 1


def test_there_and_back_gives_the_same_tensors(pair: tuple[Any, Path, Path], tmp_path: Path) -> None:
    _, directory, run = pair
    main(["to-hf", str(run), str(tmp_path / "back")])
    before, after = load_file(directory / "model.safetensors"), load_file(tmp_path / "back" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back", attn_implementation="eager")
    first = transformers.AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager")
    assert type(again) is type(first)
    ids = torch.randint(0, again.config.vocab_size, (1, 100))
    assert torch.equal(again(ids).logits, first(ids).logits)


PUBLISHED = {
    "gpt2": {},
    "gpt2-medium": {"n_embd": 1024, "n_layer": 24, "n_head": 16},
    "gpt2-large": {"n_embd": 1280, "n_layer": 36, "n_head": 20},
    "gpt2-xl": {"n_embd": 1600, "n_layer": 48, "n_head": 25},
    "llama-3.2-1b": {"num_hidden_layers": 16, "hidden_size": 2048, "intermediate_size": 8192},
    "llama-3.2-3b": {
        "num_hidden_layers": 28, "hidden_size": 3072, "intermediate_size": 8192, "num_attention_heads": 24,
    },
    "llama-3.1-8b": {
        "num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 14336, "tie_word_embeddings": False,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_have_the_names_and_shapes_of_transformers(name: str) -> None:
    common = {"vocab_size": 128_256, "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": True}
    gpt2 = name.startswith("gpt2")
    kind = "GPT2" if gpt2 else "Llama"
    config = getattr(transformers, f"{kind}Config")(**({} if gpt2 else common) | PUBLISHED[name])
    with torch.device("meta"):
        theirs = transformers.AutoModelForCausalLM.from_config(config)
        ours = Decoder(preset(name))
    shapes = {key: tuple(parameter.shape) for key, parameter in theirs.named_parameters()}
    family = family_of_ours(preset(name))
    assert family is not None
    named = {}
    for rule in family.rules(preset(name)):
        key = rule.theirs if rule.theirs == "lm_head.weight" else family.prefix + rule.theirs
        named[key] = rule.shape
    assert named == shapes
    of_ours = {key for rule in family.rules(preset(name)) for key in rule.ours}
    assert of_ours == {key for key, _ in ours.named_parameters()}
    assert ours.parameter_count() == sum(parameter.numel() for parameter in theirs.parameters())


def test_a_cached_pass_over_padded_rows_is_theirs_of_each_alone() -> None:
    theirs = build("llama_stretched")
    from model.convert.families import Fields
    from model.convert.llama import LLAMA

    values = {**theirs.config.to_dict(), "model_type": "llama"}
    ours = Decoder(LLAMA.read_config(Fields(values, "config"))).eval()
    named = {name.removeprefix("model."): tensor for name, tensor in theirs.state_dict().items()}
    ours.load_state_dict({k: v for rule in LLAMA.rules(ours.config) for k, v in rule.split(named[rule.theirs]).items()})
    from model import KVCache

    rows = [torch.randint(0, 400, (length,)) for length in (3, 11, 7)]
    cache = KVCache(ours.config, 3, 40, torch.device("cpu"), torch.float32)
    right = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    found = ours(right, cache=cache, last_only=True, counts=[len(row) for row in rows])
    for number, row in enumerate(rows):
        torch.testing.assert_close(found[number, 0], theirs(row[None]).logits[0, -1], atol=1e-5, rtol=1e-5)
