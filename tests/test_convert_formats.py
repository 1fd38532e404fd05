"""Every form in which Hugging Face directories come, and what is refused."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hf_models import save
from safetensors.torch import load_file, save_file

from common.errors import UserError
from common.files import read_json, write_json
from common.runs import Run
from inference import load_run
from model.convert.__main__ import main
from model.convert.opening import open_source
from model.convert.registry import read_theirs

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`gpt2/` and `llama/`, as transformers saves them."""
    folder = tmp_path_factory.mktemp("saved")
    save("gpt2", folder / "gpt2")
    save("llama_stretched", folder / "llama")
    return folder


@pytest.fixture
def theirs(saved: Path, tmp_path: Path) -> Callable[[str], Path]:
    return lambda name: Path(shutil.copytree(saved / name, tmp_path / name))


def converted(directory: Path) -> Tensors:
    out = directory.parent / f"{directory.name}_run"
    shutil.rmtree(out, ignore_errors=True)
    main(["from-hf", str(directory), str(out)])
    return load_file(out / "checkpoints" / "step_00000000" / "model.safetensors")


def assert_equal(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)


def change_config(directory: Path, **values: Any) -> None:
    path = directory / "config.json"
    write_json(path, {**read_json(path), **values})


def test_without_prefix_and_with_the_masks_of_old_files(theirs: Callable[[str], Path]) -> None:
    directory = theirs("gpt2")
    expected = converted(directory)
    tensors = load_file(directory / "model.safetensors")
    old = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    for layer in range(3):
        old[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 128, 128)
        old[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    old["lm_head.weight"] = old["wte.weight"].clone()
    save_file(old, directory / "model.safetensors")
    assert_equal(converted(directory), expected)


@pytest.mark.parametrize("legacy", [False, True])
def test_pickled_tensors(theirs: Callable[[str], Path], legacy: bool) -> None:
    directory = theirs("gpt2")
    expected = converted(directory)
    tensors = load_file(directory / "model.safetensors")
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"]
    (directory / "model.safetensors").unlink()
    torch.save(tensors, directory / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    assert_equal(converted(directory), expected)


def shard(directory: Path, suffix: str) -> Path:
    """Spread the weights over two files with an index; returns the index."""
    tensors = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    names, places = sorted(tensors), {}
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = directory / f"{stem}-{number:05d}-of-00002.{suffix}"
        places |= dict.fromkeys(part, file.name)
        chosen = {name: tensors[name] for name in part}
        save_file(chosen, file) if suffix == "safetensors" else torch.save(chosen, file)
    index = directory / f"{stem}.{suffix}.index.json"
    write_json(index, {"metadata": {}, "weight_map": places})
    return index


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards(theirs: Callable[[str], Path], suffix: str) -> None:
    directory = theirs("llama")
    expected = converted(directory)
    shard(directory, suffix)
    assert_equal(converted(directory), expected)


def test_shards_that_we_write_are_read_again(theirs: Callable[[str], Path], tmp_path: Path) -> None:
    directory = theirs("llama")
    expected = converted(directory)
    main(["to-hf", str(tmp_path / "llama_run"), str(tmp_path / "back"), "--shard-gigabytes", "1e-4"])
    assert len(list((tmp_path / "back").glob("model-0*-of-0*.safetensors"))) > 2
    assert_equal(converted(tmp_path / "back"), expected)


def test_the_config_of_transformers_4(theirs: Callable[[str], Path], tmp_path: Path) -> None:
    directory = theirs("llama")
    expected = open_source(directory).config
    config = read_json(directory / "config.json")
    rope = config.pop("rope_parameters")
    theta = rope.pop("rope_theta")
    for kind in ("rope_type", "type"):
        scaling = {kind: "llama3", **{name: value for name, value in rope.items() if name != "rope_type"}}
        write_json(directory / "config.json", {**config, "rope_theta": theta, "rope_scaling": scaling})
        assert open_source(directory).config == expected
    assert (expected.rope_base, expected.rope_factor, expected.rope_original_context) == (100.0, 8.0, 32)


def test_half_precision_stays_half_the_size(theirs: Callable[[str], Path], tmp_path: Path) -> None:
    directory = theirs("llama")
    tensors = {name: tensor.bfloat16() for name, tensor in load_file(directory / "model.safetensors").items()}
    save_file(tensors, directory / "model.safetensors")
    assert {tensor.dtype for tensor in converted(directory).values()} == {torch.bfloat16}
    assert load_run(Run(tmp_path / "llama_run"), device="cpu").model.embedding.weight.dtype == torch.float32
    main(["to-hf", str(tmp_path / "llama_run"), str(tmp_path / "kept")])
    assert read_json(tmp_path / "kept" / "config.json")["torch_dtype"] == "bfloat16"
    main(["to-hf", str(tmp_path / "llama_run"), str(tmp_path / "widened"), "--dtype", "fp32"])
    assert {t.dtype for t in load_file(tmp_path / "widened" / "model.safetensors").values()} == {torch.float32}


class Harmful:
    def __reduce__(self) -> Any:
        return os.mkdir, ("harm",)


def edit(change: Callable[[Tensors], object]) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        tensors = load_file(directory / "model.safetensors")
        change(tensors)
        save_file(tensors, directory / "model.safetensors")

    return apply


def truncate(directory: Path) -> None:
    content = (directory / "model.safetensors").read_bytes()
    (directory / "model.safetensors").write_bytes(content[: len(content) // 2])


def pickled_code(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    (directory / "pytorch_model.bin").write_bytes(pickle.dumps({"wte.weight": Harmful()}))


def index(**places: str) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        path = shard(directory, "safetensors")
        values = read_json(path)
        values["weight_map"] |= {name.replace("__", "."): place for name, place in places.items()}
        write_json(path, values)

    return apply


def config(**values: Any) -> Callable[[Path], None]:
    return lambda directory: change_config(directory, **values)


WTE = "transformer.wte.weight"
BAD: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "architecture": ("gpt2", config(model_type="bert"), r"config\.json: model_type is 'bert'; .*gpt2, llama, mistral"),
    "quantized": ("llama", config(quantization_config={}), "quantization_config is there"),
    "activation": ("gpt2", config(activation_function="relu"), "activation_function is 'relu'; .*'gelu_new'"),
    "layer scale": ("gpt2", config(scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx is True"),
    "bias": ("llama", config(attention_bias=True), "attention_bias is True"),
    "rope": ("llama", config(rope_parameters={"rope_type": "yarn"}), "rope_parameters is .*'yarn'"),
    "layers of two kinds": ("llama", config(layer_types=["full_attention", "sliding_attention"]), "layer_types is"),
    "no rope factor": ("llama", config(rope_parameters={"rope_type": "llama3"}), "rope_parameters: factor is missing"),
    "two ropes": (
        "llama",
        config(rope_scaling={"rope_type": "llama3", "factor": 2.0}),
        "rope_scaling is .*says something else than rope_parameters",
    ),
    "rope of layers": ("llama", config(rope_parameters={"full_attention": {}}), "rope_parameters is .*object of"),
    "endless layers": ("llama", config(num_hidden_layers=10**9), "asks for 1000000000 layers, but there are"),
    "huge number": ("llama", config(rms_norm_eps=10**400), "must be a number"),
    "list of types": ("gpt2", config(model_type=["gpt2"]), "model_type is .*can express"),
    "nested": ("gpt2", lambda d: (d / "config.json").write_text("[" * 200_000), "config.json is damaged"),
    "no layers": ("gpt2", config(n_layer="3"), "n_layer is '3'; it must be a whole number"),
    "impossible": ("gpt2", config(n_head=5), "impossible model: model.width 64 is not a multiple"),
    "config is no object": ("gpt2", lambda d: (d / "config.json").write_text("[]"), "config.json is no JSON object"),
    "config is torn": ("gpt2", lambda d: (d / "config.json").write_text('{"mo'), "config.json is damaged"),
    "no config": ("gpt2", lambda d: (d / "config.json").unlink(), "config.json does not exist"),
    "no weights": ("gpt2", lambda d: (d / "model.safetensors").unlink(), "holds no weights"),
    "missing": ("gpt2", edit(lambda t: t.pop("transformer.h.1.ln_2.bias")), r"lacks h\.1\.ln_2\.bias"),
    "extra": ("gpt2", edit(lambda t: t.update(odd=torch.ones(2))), "has odd, which this decoder has no place for"),
    "shape": (
        "gpt2",
        edit(lambda t: t.update({WTE: torch.ones(9, 64)})),
        r"wte.weight has shape \(9, 64\).*\(400, 64\)",
    ),
    "dtype": ("gpt2", edit(lambda t: t.update({WTE: t[WTE].to(torch.int8)})), "wte.weight is stored as I8"),
    "another head": ("gpt2", edit(lambda t: t.update({"lm_head.weight": t[WTE] + 1})), "lm_head.weight differs from"),
    "both prefixes": ("gpt2", edit(lambda t: t.update({"wte.weight": t[WTE].clone()})), "with and without the prefix"),
    "empty pickle": (
        "gpt2",
        lambda d: ((d / "model.safetensors").unlink(), (d / "pytorch_model.bin").write_bytes(b"\x80\x02.")),
        r"pytorch_model\.bin is (truncated|refused)",
    ),
    "truncated": ("gpt2", truncate, r"model\.safetensors is truncated or damaged"),
    "code": ("gpt2", pickled_code, r"pytorch_model\.bin is refused: .*which could run code"),
    "outside": ("llama", index(model__norm__weight="../model.safetensors"), "points outside its directory"),
    "absent shard": ("llama", index(model__norm__weight="model-9.safetensors"), "'model-9.safetensors', which is not"),
    "wrong shard": ("llama", index(odd="model-00001-of-00002.safetensors"), "lacks odd, which model.safetensors.index"),
    "no tokenizer": ("gpt2", lambda d: (d / "tokenizer.model").unlink(), "no tokenizer in .*: expected tokenizer.json"),
    "tokenizer": ("gpt2", lambda d: (d / "tokenizer.model").write_bytes(b"\x00 no"), "tokenizer in .* is damaged"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_by_name_and_leaves_nothing(
    theirs: Callable[[str], Path], tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name, spoil, message = BAD[case]
    directory = theirs(name)
    spoil(directory)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=message):
        main(["from-hf", str(directory), str(tmp_path / "out")])
    assert sorted(tmp_path.iterdir()) == before  # no output, and no harm done


def test_a_tokenizer_with_more_ids_than_the_model_has_rows_is_refused(theirs: Callable[[str], Path]) -> None:
    directory = theirs("gpt2")
    edit(lambda t: t.update({WTE: t[WTE][:390]}))(directory)
    change_config(directory, vocab_size=390)
    with pytest.raises(UserError, match=r"its tokenizer has 400 ids, but vocab_size in config\.json is 390"):
        main(["from-hf", str(directory), str(directory.parent / "out")])
    assert not (directory.parent / "out").exists()


def test_what_exists_is_not_overwritten(theirs: Callable[[str], Path], tmp_path: Path) -> None:
    directory = theirs("gpt2")
    converted(directory)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("")
    for command in (["from-hf", str(directory)], ["to-hf", str(tmp_path / "gpt2_run")]):
        with pytest.raises(UserError, match="exists already"):
            main([*command, str(tmp_path / "out")])
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["precious"]


def test_what_transformers_takes_for_missing_fields(saved: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(saved / "llama", tmp_path / "mistral"))
    config = read_json(directory / "config.json")
    for name in ("num_key_value_heads", "sliding_window", "rms_norm_eps"):
        config.pop(name, None)
    write_json(directory / "config.json", {**config, "model_type": "mistral", "num_attention_heads": 8})
    found = read_theirs(read_json(directory / "config.json"), directory)[1]
    default = transformers.MistralConfig()
    assert (found.window, found.kv_heads) == (default.sliding_window, default.num_key_value_heads) == (4096, 8)
    assert found.norm_eps == default.rms_norm_eps
    change_config(directory, sliding_window=None)
    assert read_theirs(read_json(directory / "config.json"), directory)[1].window is None


def test_a_shard_with_a_tensor_that_the_index_lacks_is_refused(theirs: Callable[[str], Path]) -> None:
    directory = theirs("llama")
    path = shard(directory, "safetensors")
    values = read_json(path)
    values["weight_map"].pop("model.norm.weight")
    write_json(path, values)
    with pytest.raises(UserError, match=r"holds model\.norm\.weight, of which .* does not know"):
        main(["from-hf", str(directory), str(directory.parent / "out")])


def test_a_run_whose_weights_are_not_those_of_its_config_is_not_exported(
    theirs: Callable[[str], Path], tmp_path: Path
) -> None:
    converted(theirs("llama"))
    config_file = tmp_path / "llama_run" / "config.json"
    values = read_json(config_file)
    for changes, message in (
        ({"tied": False}, r"head\.weight is missing; config\.json makes it \(400, 64\)"),
        ({"layers": 2}, r"blocks\.2\..* is .*; config\.json makes it no tensor"),
        ({"mlp_width": 80}, r"config\.json makes it \(80, 64\)|config\.json makes it \(64, 80\)"),
    ):
        write_json(config_file, {**values, "model": {**values["model"], **changes}})
        for command in ("to-hf", "to-gguf"):
            with pytest.raises(UserError, match=message):
                main([command, str(tmp_path / "llama_run"), str(tmp_path / "out")])


def test_to_hf_is_for_runs(theirs: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a directory of Hugging Face already"):
        main(["to-hf", str(theirs("gpt2")), str(tmp_path / "out")])


def test_a_full_disk_leaves_nothing(
    theirs: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = theirs("gpt2")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("model.tensor_files.SafetensorsWriter.write", full)
    with pytest.raises(UserError, match=r"out could not be written: .*No space left"):
        main(["from-hf", str(directory), str(tmp_path / "out")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpt2"]
    monkeypatch.undo()
    converted(directory)
    monkeypatch.setattr("gguf.GGUFWriter.write_tensor_data", full)
    with pytest.raises(UserError, match=r"x\.gguf could not be written: .*No space left"):
        main(["to-gguf", str(tmp_path / "gpt2_run"), str(tmp_path / "x.gguf")])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpt2", "gpt2_run"]


def test_the_run_says_where_it_is_from(theirs: Callable[[str], Path], tmp_path: Path) -> None:
    converted(theirs("gpt2"))
    values = json.loads((tmp_path / "gpt2_run" / "config.json").read_text())
    assert values["converted_from"] == "gpt2" and values["model"]["position"] == "learned"
