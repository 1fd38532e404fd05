"""What can be wrong with a fine-tune: data, adapters, bases, disks. What is said, and what stays usable."""

from __future__ import annotations

import io
import json
import shutil
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import peft
import pytest
import torch
from forks import run_forks
from safetensors.torch import load_file, save_file
from tiny import PROJECT, Result, environment, has_logged, kill_when, losses, run_train
from transformers import GPT2LMHeadModel
from tuning import make_gpt2_base

import sample
from common.cli import run_command
from common.files import read_json
from common.runs import Run, write_checkpoint_manifest
from inference.loading import load_run
from model.adapters.attach import attach
from model.adapters.config import AdapterConfig
from model.adapters.files import save_adapter
from model.convert.__main__ import main as convert
from model.convert.opening import open_source
from model.convert.starting import base_decoder

QUICK = ("--budget.steps", "2")
BLOCKS = """###
Pregunta: the model reads
Respuesta: a small text
###
###
Pregunta: which word
###
###
Respuesta: comes next
###
###
Pregunta: in every short
Respuesta: line of it
###
"""


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2, and a run `tuned` with LoRA on it; to be copied by what changes it."""
    project = make_gpt2_base(tmp_path_factory.mktemp("project"))
    run_train(project, *QUICK, config="tune.py")
    return project


@pytest.fixture
def project(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    copy = shutil.copytree(template, tmp_path / "copy")
    monkeypatch.chdir(copy)
    return copy


def tune(*flags: str, expect: int = 0, name: str = "other") -> str:
    """What train.py says on standard error."""
    said = run_train(Path(), "--name", name, *flags, *([] if "--budget.steps" in flags else QUICK), config="tune.py",
                     expect=expect).stderr  # fmt: skip
    return " ".join(said.split())


def write(*flags: str, expect: int = 0) -> Result:
    """Run sample.py with the base, or what the flags say."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with redirect_stdout(stdout), redirect_stderr(stderr), pytest.raises(SystemExit) as ended:
        run_command(sample.main, ["--prompt", "the model", "--max-new-tokens", "4", "--device", "cpu", *flags])
    assert ended.value.code == expect, stderr.getvalue()
    return Result(stdout.getvalue(), stderr.getvalue())


def test_bad_blocks_are_reported_by_line_and_the_rest_is_used(project: Path) -> None:
    Path("bad.txt").write_text(BLOCKS, encoding="utf-8")
    said = tune("--examples.files", "bad.txt", "--examples.validation-fraction", "0")
    assert (
        "bad.txt:6: Pregunta: without an answer" in said
        and "bad.txt:9: Respuesta: without" in said
        and "set aside" in said
    )
    report = read_json(Path("runs/other/examples.json"))
    assert report["train_examples"] == 2 and [problem["line"] for problem in report["problems"]] == [6, 9]
    assert Path("runs/other/adapter/adapter_model.safetensors").is_file()
    assert "records of the data that could not be used: 2" in Path("runs/other/summary.md").read_text()


def test_nothing_to_learn_from(project: Path) -> None:
    Path("empty.txt").write_text("", encoding="utf-8")
    assert "error: empty.txt is empty" in tune("--examples.files", "empty.txt", expect=2)
    said = tune("--examples.max-length", "4", expect=2)
    assert "nothing to learn in the first 4 tokens (raise max_length): 40" in said
    assert not Path("runs/other/metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--adapter.targets", "q_proj"), "no layer is called 'q_proj'; there are transformer.wte, attn.c_attn"),
        (("--adapter.method", "ia3"), "adapter.rank does nothing with method ia3; unset it (--adapter.rank 16)"),
        (("--adapter.modules-to-save", "score"), "no module is called 'score'"),
    ],
)
def test_adapters_that_cannot_be(flags: tuple[str, ...], message: str, project: Path) -> None:
    assert message in tune(*flags, expect=2)


def test_quantizing_what_is_trained_is_refused(project: Path) -> None:
    whole = ("--adapter.method", "none", "--adapter.rank", "16", "--adapter.alpha", "32", "--adapter.dropout", "0")
    said = tune(*whole, "--storage.quantization", "nf4", expect=2)
    assert "without an adapter none is frozen: set --adapter.method" in said


def test_trained_positions_leave_room_for_the_examples(project: Path) -> None:
    """Examples are cut where the context ends, less what stands before them."""
    words = "the model reads a small text and learns which word comes next ".split()
    blocks = [f"###\nPregunta: {n}\nRespuesta: {' '.join((words * 20)[n : n + 120])}\n###\n" for n in range(10)]
    Path("long.txt").write_text("".join(blocks), encoding="utf-8")
    fields = ("--adapter.rank", "16", "--adapter.alpha", "32", "--adapter.dropout", "0")
    for method in ("prefix", "prompt"):
        tune("--examples.files", "long.txt", "--adapter.method", method, *fields, name=method)
        report = read_json(Path("runs") / method / "examples.json")
        assert report["max_length"] == 128 - 20 + 1 and report["truncated"] == 10
    said = tune("--adapter.method", "prefix", *fields, "--adapter.virtual-tokens", "128", expect=2)
    assert "128 leave no room for a text in a context of 128; take fewer" in said
    curated = ("--examples.files", "--examples.validation-fraction", "0", "--data.directory", "data/tiny")
    said = tune(*curated, "--adapter.method", "prefix", *fields, expect=2)
    assert "windows of curated data fill the whole context" in said


def edit_tensors(path: Path, change: str) -> None:
    tensors = load_file(path)
    if change == "names":
        tensors = {f"else.{key}": value for key, value in tensors.items()}
    elif change == "zeros":
        tensors = {key: value * ("lora_A" in key) for key, value in tensors.items()}
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("change", "message"), [("names", "is no adapter of this model: it lacks"), ("zeros", "changes nothing: all its")]
)
def test_adapters_that_would_do_nothing_are_refused(change: str, message: str, project: Path) -> None:
    assert write("--run", "base", "--adapter", "runs/tuned/adapter").stdout
    edit_tensors(Path("runs/tuned/adapter/adapter_model.safetensors"), change)
    assert message in write("--run", "base", "--adapter", "runs/tuned/adapter", expect=2).stderr


def test_an_adapter_that_is_not_there(project: Path) -> None:
    assert "missing or damaged" in write("--run", "base", "--adapter", "runs/nowhere", expect=2).stderr


def change_base() -> None:
    """Other weights in the place of the base run's."""
    for checkpoint in Run(Path("runs/base")).checkpoints():
        tensors = load_file(checkpoint.path / "model.safetensors")
        save_file({key: value * 1.5 for key, value in tensors.items()}, checkpoint.path / "model.safetensors")
        (checkpoint.path / "manifest.json").unlink()
        write_checkpoint_manifest(checkpoint.path)


def test_a_base_that_was_changed_is_noticed(project: Path) -> None:
    change_base()
    message = "another base than the one that now lies at runs/base; put that back"
    assert message in write("--run", "tuned", expect=2).stderr
    assert message in tune("--budget.steps", "4", name="tuned", expect=2)
    said = write("--run", "base", "--adapter", "runs/tuned/adapter", expect=2).stderr
    assert "was trained on another base: the weights of this model are not those; load its own" in said


def test_only_one_adapter_stands_before_the_text(project: Path) -> None:
    source = open_source("runs/base")
    for name in ("first", "second"):
        model = base_decoder(source.config, source, torch.device("cpu"))
        config = AdapterConfig("prefix", virtual_tokens=3)
        attach(model, config)
        save_adapter(model, config, Path(name), "runs/base")
    assert write("--run", "base", "--adapter", "first").stdout
    fields = ("--adapter.rank", "16", "--adapter.alpha", "32", "--adapter.dropout", "0")
    tune("--adapter.method", "prefix", *fields, name="prefixed")
    said = write("--run", "prefixed", "--adapter", "second", expect=2).stderr
    assert "stands before the text already, and only one can" in said


def test_another_adapter_is_refused_on_resuming(project: Path) -> None:
    said = tune("--adapter.rank", "8", "--adapter.targets", "c_fc", name="tuned", expect=2)
    assert "adapter.rank: 4 -> 8" in said and "adapter.targets: [] -> ['c_fc']" in said
    assert "storage.quantization: none -> nf4" in tune("--storage.quantization", "nf4", name="tuned", expect=2)


def test_peft_loads_the_adapter_and_overlooks_how_it_is_asked(project: Path) -> None:
    assert set(read_json(Path("runs/tuned/adapter/examples.json"))) == {"style", "template_variables"}
    with redirect_stdout(io.StringIO()):
        convert(["to-hf", "runs/base", "base"])
    loaded, ids = load_run(Run(Path("runs/tuned")), device="cpu"), torch.arange(20)[None]
    base = GPT2LMHeadModel.from_pretrained("base").eval()
    before = base(ids).logits
    reference = peft.PeftModel.from_pretrained(base, "runs/tuned/adapter").eval()
    torch.testing.assert_close(reference(ids).logits, loaded.model(ids), rtol=1e-4, atol=1e-4)
    assert not torch.equal(reference(ids).logits, before)


LIMITED = """
import resource, sys
sys.path.insert(0, {project!r})
from pathlib import Path
from common.errors import UserError
from common.runs import Run
from evaluation.fine_tuning import write_artifacts
from training.leaving import leave_adapter
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for call in (leave_adapter, write_artifacts):
    try:
        call(Run(Path("runs/tuned")))
    except UserError as error:
        print(error)
"""


def test_a_full_disk_keeps_what_was_there(project: Path) -> None:
    """The file-size limit makes every write beyond it fail, as a full disk does."""
    before = {path: path.read_bytes() for path in Path("runs/tuned").rglob("*.*") if path.is_file()}
    script = LIMITED.format(project=str(PROJECT))
    result = run_forks(("-c", script), project, environment())
    assert result.returncode == 0, result.stderr
    of_adapter, of_artifacts = result.stdout.splitlines()
    assert of_adapter.startswith("runs/tuned/adapter") and "could not be written: " in of_adapter
    assert "python -m evaluation.fine_tuning runs/tuned" in of_artifacts and "could not be written: " in of_artifacts
    assert {path: path.read_bytes() for path in Path("runs/tuned").rglob("*.*") if path.is_file()} == before


def test_a_quantized_base_trains_resumes_and_writes(project: Path) -> None:
    flags = ("--storage.quantization", "nf4", "--storage.dtype", "bf16", "--budget.steps", "12")
    tune(*flags, name="straight")
    kill_when(has_logged(7), project, "--name", "killed", *flags, config="tune.py", run="killed")
    assert "resuming runs/killed at step" in tune(*flags, name="killed")
    assert losses(Path("runs/killed")) == losses(Path("runs/straight"))
    weights = [load_file(Run(Path("runs") / name).checkpoints()[-1].weights) for name in ("killed", "straight")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())
    assert write("--run", "killed").stdout
    rows = [json.loads(line) for line in Path("runs/killed/samples.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == 12


def test_half_precision_is_taken_where_it_is_asked_for(project: Path) -> None:
    """A CPU multiplies fp16 too, only slowly: the plan says that it was asked for, and the loss is a number."""
    assert "fp16: as configured" in tune("--precision", "fp16")
    assert all(row[2] is None or row[2] < 10 for row in losses(Path("runs/other")))
