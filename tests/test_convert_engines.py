"""What we train runs elsewhere: transformers, llama.cpp, CTranslate2, and our own recipe with its code."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from foreign_tokenizers import make_foreign, varied_strings
from inference_fixtures import make_run
from tiny import VOCAB_SIZE, make_dataset, run_train

from common.errors import UserError
from common.runs import Run
from inference import LoadedRun, SamplingOptions, generate, load_run
from model.convert.__main__ import main

CONFIG = """
from dataclasses import replace
from model.presets import preset
from training.config import *

config = RunConfig(
    name="tiny",
    model=replace(preset({preset!r}), vocab_size={vocab}, context_length=96, layers=2, width=64, heads=2, **{changes}),
    data=DataConfig(directory="data/tiny"),
    batch=BatchConfig(tokens_per_step=768, micro_batch_size=8),
    optimizer=OptimizerConfig(matrices="adamw", lr=3e-3),
    budget=BudgetConfig(steps=30),
    validation=ValidationConfig(every=30, sample_tokens=0),
    tracking=TrackingConfig(wandb="off"),
    precision="fp32",
    device="cpu",
)
"""
LAYOUTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("mini-llama", {"kv_heads": 1, "mlp_width": 96}),
    "llama_stretched": ("mini-llama", {"kv_heads": 2, "rope_factor": 8.0, "rope_original_context": 32, "tied": False}),
    "llama_stretched_as_published": ("mini-llama", {"kv_heads": 2, "rope_base": 10000.0, "rope_factor": 8.0}),
    "gpt2": ("gpt2", {}),
    "gpt2_without_biases": ("gpt2", {"bias": False}),
}
PROMPTS = ("the model reads", "a", "which word comes next in every short line")


@pytest.fixture(scope="module", params=LAYOUTS)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that we trained; in Llama's layout with rows of padding, which CTranslate2 does not expect in GPT-2's."""
    folder = tmp_path_factory.mktemp(request.param)
    make_dataset(folder / "data" / "tiny")
    name, changes = LAYOUTS[request.param]
    padding = 32 if name == "mini-llama" else 0
    (folder / "tiny.py").write_text(CONFIG.format(preset=name, vocab=VOCAB_SIZE + padding, changes=changes))
    run_train(folder)
    return folder / "runs" / "tiny"


def greedy(loaded: LoadedRun, prompt: str, tokens: int = 64) -> tuple[list[int], str]:
    (completion,) = generate(
        loaded.model, loaded.tokenizer, prompt, SamplingOptions(max_new_tokens=tokens, temperature=0)
    )
    return completion.token_ids, completion.text


def test_transformers_writes_the_same(trained: Path, tmp_path: Path) -> None:
    main(["to-hf", str(trained), str(tmp_path / "hf")])
    loaded = load_run(Run(trained), device="cpu")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", attn_implementation="eager").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    ids = torch.randint(0, VOCAB_SIZE, (2, 96))
    torch.testing.assert_close(loaded.model(ids), theirs(ids).logits, atol=1e-5, rtol=1e-5)
    for prompt in PROMPTS:
        start = tokenizer(prompt, return_tensors="pt").input_ids  # with what stands before a text
        assert start[0].tolist() == [loaded.tokenizer.bos_id, *loaded.tokenizer.encode(prompt)]
        with torch.no_grad():
            whole = theirs.generate(start, attention_mask=torch.ones_like(start), max_new_tokens=64, do_sample=False)
        written = whole[0, start.shape[1] :].tolist()
        assert [number for number in written if number not in loaded.tokenizer.eos_ids] == greedy(loaded, prompt)[0]


def llama_cpp(file: Path, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Answers of llama.cpp, in a process of its own, because it ends a process when it does not like a file."""
    program = f"""
import json, sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path = {str(file)!r}
params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
params.n_ctx, params.n_parallel, params.n_gpu_layers, params.warmup = 96, 1, 0, False
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 2
server = xllamacpp.Server(params)
answers = []
for request in json.loads(sys.argv[1]):
    answer = server.handle_completions(request)
    answers.append(answer if isinstance(answer, dict) else json.loads(answer))
print("ANSWERS" + json.dumps(answers), flush=True)
import os; os._exit(0)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(requests)], capture_output=True, text=True, timeout=120
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("ANSWERS")]
    assert lines, done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads(lines[0].removeprefix("ANSWERS"))


def same_characters(first: str, second: str) -> int:
    """How many characters two texts begin alike with."""
    return next(
        (n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


def test_llama_cpp_writes_the_same(trained: Path, tmp_path: Path) -> None:
    loaded = load_run(Run(trained), device="cpu")
    for kind in ("f32", "bf16", "q8_0", "q4_0"):
        main(["to-gguf", str(trained), str(tmp_path / f"{kind}.gguf"), "--quantization", kind])
    sizes = [(tmp_path / f"{kind}.gguf").stat().st_size for kind in ("f32", "bf16", "q8_0", "q4_0")]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 4
    requests = [{"prompt": prompt, "max_tokens": 40, "temperature": 0} for prompt in PROMPTS]
    expected = [greedy(loaded, prompt, 40)[1] for prompt in PROMPTS]
    equal = {}
    for kind in ("f32", "bf16", "q8_0", "q4_0"):
        answers = llama_cpp(tmp_path / f"{kind}.gguf", requests)
        texts = [answer["choices"][0]["text"] for answer in answers]
        equal[kind] = sum(map(same_characters, texts, expected)) / sum(map(len, expected))
        assert texts == expected or kind != "f32"
    # Rounded weights part from the exact ones sooner or later; scrambled ones would at once.
    assert equal["bf16"] > 0.3 and equal["q8_0"] > 0.3 and equal["q4_0"] > 0, equal


# CTranslate2 stretches rotary waves only from an original context of 8,192, as in the published models.
@pytest.mark.parametrize("trained", [name for name in LAYOUTS if name != "llama_stretched"], indirect=True)
def test_ctranslate2_writes_the_same(trained: Path, tmp_path: Path) -> None:
    import ctranslate2
    from ctranslate2.converters import TransformersConverter

    main(["to-hf", str(trained), str(tmp_path / "hf")])
    TransformersConverter(str(tmp_path / "hf")).convert(str(tmp_path / "ct2"), force=True)
    generator = ctranslate2.Generator(str(tmp_path / "ct2"), device="cpu", compute_type="float32")
    loaded = load_run(Run(trained), device="cpu")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    for prompt in PROMPTS:
        ids = [loaded.tokenizer.bos_id, *loaded.tokenizer.encode(prompt)]
        (result,) = generator.generate_batch(
            [tokenizer.convert_ids_to_tokens(ids)], max_length=40, sampling_topk=1, include_prompt_in_result=False,
            end_token=list(loaded.tokenizer.eos_ids),
        )  # fmt: skip
        assert result.sequences_ids[0] == greedy(loaded, prompt, 40)[0]


OWN: dict[str, dict[str, Any]] = {
    "plain": {},
    "everything": {"value_embeddings": 1, "tied": False, "window": 7, "kv_heads": 1, "heads": 2},
    "by_document": {"document_start": 5},
}


@pytest.fixture(scope="module", params=OWN)
def own(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedRun, Path]:
    """A run of our own recipe, and where it was exported to."""
    folder = tmp_path_factory.mktemp(request.param)
    make_run(folder / "run", **OWN[request.param])
    main(["to-hf", str(folder / "run"), str(folder / "hf")])
    return load_run(Run(folder / "run"), device="cpu"), folder / "hf"


def test_our_own_recipe_goes_with_its_code(own: tuple[LoadedRun, Path]) -> None:
    loaded, exported = own
    theirs = transformers.AutoModelForCausalLM.from_pretrained(exported, trust_remote_code=True).eval()
    ids = torch.randint(0, 400, (2, 32))
    with torch.no_grad():
        found = theirs(ids, labels=ids)
        assert torch.equal(found.logits, loaded.model(ids))
        torch.testing.assert_close(found.loss, loaded.model(ids[:, :-1], ids[:, 1:]) / 62)
        prompt = torch.tensor([[loaded.tokenizer.bos_id, *loaded.tokenizer.encode("The river")]])
        whole = theirs.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=12, do_sample=False)
    written = [n for n in whole[0, prompt.shape[1] :].tolist() if n not in loaded.tokenizer.eos_ids]
    assert written == greedy(loaded, "The river", 12)[0]
    # Nothing of this project is imported: the code beside the weights is all.
    assert type(theirs).__module__.startswith("transformers_modules.")
    assert type(theirs.decoder).__module__.startswith("transformers_modules.")


def test_padding_on_the_left_changes_nothing(own: tuple[LoadedRun, Path]) -> None:
    _, exported = own
    theirs = transformers.AutoModelForCausalLM.from_pretrained(exported, trust_remote_code=True).eval()
    rows = [torch.randint(3, 400, (length,)) for length in (4, 9)]
    padded = torch.stack([torch.nn.functional.pad(row, (9 - len(row), 0)) for row in rows])
    mask = torch.stack([torch.nn.functional.pad(torch.ones_like(row), (9 - len(row), 0)) for row in rows])
    with torch.no_grad():
        together = theirs.generate(padded, attention_mask=mask, max_new_tokens=10, do_sample=False, pad_token_id=0)
        for number, row in enumerate(rows):
            alone = theirs.generate(
                row[None], attention_mask=torch.ones_like(row[None]), max_new_tokens=10, do_sample=False, pad_token_id=0
            )
            expected = alone[0, len(row) :].tolist()
            assert together[number, 9 : 9 + len(expected)].tolist() == expected


def test_documents_are_not_mixed_up_by_a_cache(own: tuple[LoadedRun, Path]) -> None:
    loaded, exported = own
    theirs = transformers.AutoModelForCausalLM.from_pretrained(exported, trust_remote_code=True).eval()
    by_document = loaded.model.config.document_start is not None
    assert (theirs.generation_config.use_cache is False) is by_document
    if by_document:
        with pytest.raises(NotImplementedError, match="needs use_cache=False"):
            theirs(torch.randint(0, 400, (1, 4)), past_key_values=transformers.DynamicCache())


def test_saving_and_loading_again_in_transformers(own: tuple[LoadedRun, Path], tmp_path: Path) -> None:
    _, exported = own
    first = transformers.AutoModelForCausalLM.from_pretrained(exported, trust_remote_code=True)
    first.save_pretrained(tmp_path / "again")
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "again", trust_remote_code=True)
    ids = torch.randint(0, 400, (1, 20))
    assert torch.equal(first(ids).logits, again(ids).logits)


def test_what_llama_cpp_has_no_layout_for_is_refused(tmp_path: Path) -> None:
    make_run(tmp_path / "run")
    with pytest.raises(UserError, match=r"GPT2|gpt2: model.activation is 'relu2', not 'gelu'.*configs/mini_llama\.py"):
        main(["to-gguf", str(tmp_path / "run"), str(tmp_path / "x.gguf")])
    assert not (tmp_path / "x.gguf").exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda run: (run / "tokenizer.model").write_bytes(b"no"), "is not a tokenizer, or damaged"),
        (lambda run: (run / "config.json").write_text('{"model": {"layers": "x"}}'), "layers"),
    ],
)
def test_a_damaged_run_leaves_no_export(tmp_path: Path, spoil: Callable[[Path], Any], message: str) -> None:
    make_run(tmp_path / "run")
    spoil(tmp_path / "run")
    with pytest.raises(UserError, match=message):
        main(["to-hf", str(tmp_path / "run"), str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["gpt2", "llama3", "gpt2.json", "llama3.json"])
def test_llama_cpp_cuts_text_as_the_tokenizers_of_gpt2_and_llama3(name: str, tmp_path: Path) -> None:
    """Through weights that are random, so that every other id in a prompt leads to other text."""
    tokenizer = make_foreign(name, tmp_path)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=96, initializer_range=0.5, tie_word_embeddings=False,
    )  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "theirs")
    shutil.copy(tokenizer.path, tmp_path / "theirs" / "tokenizer.model")
    main(["from-hf", str(tmp_path / "theirs"), str(tmp_path / "run")])
    main(["to-gguf", str(tmp_path / "run"), str(tmp_path / "f32.gguf"), "--quantization", "f32"])
    loaded = load_run(Run(tmp_path / "run"), device="cpu")
    # No special tokens: llama.cpp finds them in text, where they are only text here.
    strings = [text for text in varied_strings(60, seed=1) if text and "<|" not in text and "\x00" not in text]
    prompts = [text for text in strings if len(loaded.tokenizer.encode(text)) < 60][:40]
    answers = llama_cpp(
        tmp_path / "f32.gguf", [{"prompt": prompt, "max_tokens": 1, "temperature": 0} for prompt in prompts]
    )
    counts = [answer["usage"]["prompt_tokens"] for answer in answers]
    assert counts == [1 + len(loaded.tokenizer.encode(prompt)) for prompt in prompts]
    for prompt, answer in zip(prompts, answers, strict=True):
        theirs, (_, ours) = answer["choices"][0]["text"], greedy(loaded, prompt, 1)
        # One token: of later ones, some are as likely as the next but for rounding.
        assert theirs.split("\ufffd")[0] == ours.split("\ufffd")[0], prompt
