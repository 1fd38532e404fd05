"""Loading runs, and sample.py as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from inference_fixtures import (
    ROOT,
    World,
    command,
    documents,
    make_run,
    make_world,
    run_all,
    tiny_model,
    tokenizer_bytes,
)

from common.errors import UserError
from common.files import sha256_of, write_json
from common.runs import Run
from data_pipeline.examples.prompts import PromptStyle
from inference import SamplingOptions, generate, load_run
from inference.asking import EXAMPLES, AskingStyle

SAMPLE = str(ROOT / "sample.py")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


def test_loads_best_last_and_a_step(world: World) -> None:
    before = torch.get_rng_state()
    for which, step, seed in (("best", 10, 1), ("last", 20, 2), ("20", 20, 2)):
        loaded = load_run(Run(world.run), which, "cpu")
        assert loaded.checkpoint.step == step
        assert not loaded.model.training
        expected = tiny_model(seed).state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in loaded.model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), before)


def edit_config(run: Path, **model: object) -> None:
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    config["model"].update(model)
    write_json(run / "config.json", config)


def test_what_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    edit_config(run, width=64)
    with pytest.raises(
        UserError, match=r"key.weight has shape \(32, 32\), the model needs \(64, 64\); restore .*config\.json"
    ):
        load_run(Run(run), device="cpu")
    edit_config(run, width=32, vocab_size=399)
    with pytest.raises(UserError, match=r"has 400 ids, but model\.vocab_size .* is only 399"):
        load_run(Run(run), device="cpu")
    edit_config(run, vocab_size=400, layerz=2)
    with pytest.raises(UserError, match="no field 'layerz'; did you mean 'layers'"):
        load_run(Run(run), device="cpu")
    write_json(run / "config.json", {"name": "run"})
    with pytest.raises(UserError, match="no section 'model'"):
        load_run(Run(run), device="cpu")
    (run / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        load_run(Run(run), device="cpu")


def change_state(run: Path, **values: object) -> None:
    """Write other values into the state of every checkpoint, which stays whole."""
    for checkpoint in (run / "checkpoints").iterdir():
        file = checkpoint / "state.json"
        write_json(file, {**json.loads(file.read_text(encoding="utf-8")), **values})
        manifest = json.loads((checkpoint / "manifest.json").read_text(encoding="utf-8"))
        manifest["files"]["state.json"] = {"bytes": file.stat().st_size, "sha256": sha256_of(file)}
        write_json(checkpoint / "manifest.json", manifest)


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    change_state(run, tokenizer_sha256="0123456789ab" + "0" * 52)
    with pytest.raises(
        UserError, match=r"not the tokenizer that step_00000010 was trained with \(sha256 0123456789ab\)"
    ):
        load_run(Run(run), device="cpu")


def test_only_text_goes_to_standard_output(world: World) -> None:
    prompt = documents()[0][1][:20]
    done = command(
        SAMPLE, "--prompt", prompt, "--max-new-tokens", "60", "--temperature", "0.9", "--seed", "5", cwd=world.root
    )
    assert done.returncode == 0
    loaded = load_run(Run(world.run), device="cpu")
    options = SamplingOptions(max_new_tokens=60, temperature=0.9, top_k=50, seed=5)
    assert done.stdout == prompt + generate(loaded.model, loaded.tokenizer, prompt, options)[0].text + "\n"
    for word in ("step_00000010", "prefill", "time to first token", "decode", "tokens/s", "between tokens p50", "GB/s"):
        assert word in done.stderr


def test_several_samples_checkpoints_and_stop_strings(world: World) -> None:
    loaded = load_run(Run(world.run), "last", "cpu")
    several = [
        "--run",
        "tiny",
        "--prompt",
        "riv",
        "--max-new-tokens",
        "8",
        "--num-samples",
        "3",
        "--checkpoint",
        "last",
    ]
    whole = generate(loaded.model, loaded.tokenizer, "def ", SamplingOptions(max_new_tokens=30, temperature=0))[0].text
    stop = whole[3:5]
    greedy = ["--prompt", "def ", "--max-new-tokens", "30", "--temperature", "0", "--checkpoint", "20"]
    first, second = run_all("sample", [several, [*greedy, "--stop", "never seen", "--stop", stop]], world.root)

    options = SamplingOptions(max_new_tokens=8, temperature=0.8, top_k=50)
    written = generate(loaded.model, loaded.tokenizer, "riv", options, 3)
    assert first[:2] == (0, "---\n".join(f"riv{completion.text}\n" for completion in written))
    assert "step_00000020" in first[2]
    assert second[:2] == (0, f"def {whole[: whole.find(stop)]}\n")
    assert "ended by: stop" in second[2]


def test_standard_input_keeps_its_line_ends(world: World) -> None:
    done = subprocess.run(
        [sys.executable, SAMPLE, "--prompt", "-", "--max-new-tokens", "0"],
        cwd=world.root, input="ж 日本\r\nb\n".encode(), capture_output=True, check=True,
    )  # fmt: skip
    assert done.stdout == "ж 日本\r\nb\n\n".encode()


def test_a_closed_pipe_ends_quietly(world: World) -> None:
    arguments = [sys.executable, SAMPLE, "--prompt", "The", "--max-new-tokens", "2000"]
    with subprocess.Popen(arguments, cwd=world.root, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.read(3) == b"The"
        process.stdout.close()
        errors = process.stderr.read().decode()
    assert process.returncode == 141  # as a shell has it of a process that SIGPIPE ended
    assert "rror" not in errors and "Traceback" not in errors


def test_mistakes_end_with_status_2(world: World) -> None:
    (world.root / "theirs").mkdir()
    write_json(world.root / "theirs" / "config.json", {"model_type": "gpt2"})
    mistakes = [
        (["--run", "nope"], "no run 'nope' (runs here: tiny)"),
        (["--run", "theirs"], "theirs is a Hugging Face directory, not a run; make one of it with: python -m model.c"),
        (["--checkpoint", "15"], "no whole checkpoint '15' (steps there are: 10, 20)"),
        (["--top-p", "1.5"], "--top-p 1.5 is out of range"),
        (["--num-samples", "0"], "--num-samples 0 is out of range"),
        (["--temprature", "1"], "--temperature"),
        (["--max-new-tokens", "many"], "many"),
        (["--prompt", "a", "--ask", "b"], "exclude each other"),
        (["--chat"], "has no chat template"),
        (["--chat", "--num-samples", "2"], "one answer to a turn"),
        (["--prompts", "nowhere.txt"], "--prompts nowhere.txt cannot be read"),
        (["--speculate", "draft"], "the run that drafts is to be named"),
        (["--speculate", "draft", "--draft", "nobody"], "no run 'nobody'"),
    ]
    results = run_all("sample", [arguments for arguments, _ in mistakes], world.root, text="Hello\n")
    for (arguments, message), (code, out, err) in zip(mistakes, results, strict=True):
        assert (code, out) == (2, ""), arguments
        assert message in err


def test_prompts_of_a_file_and_speculation(world: World) -> None:
    (world.root / "prompts.txt").write_text('riv\n\n"two\\nlines"\n', encoding="utf-8")
    options = ["--prompts", "prompts.txt", "--num-samples", "2", "--max-new-tokens", "9", "--temperature", "0"]
    lines = [options, [*options, "--speculate", "prompt-lookup"], [*options, "--speculate", "draft", "--draft", "tiny"]]
    plain, *others = run_all("sample", lines, world.root)
    loaded = load_run(Run(world.run), device="cpu")
    written = generate(loaded.model, loaded.tokenizer, ["riv", "two\nlines"], SamplingOptions(9, 0.0), 2)
    starts = ["riv", "riv", "two\nlines", "two\nlines"]
    texts = [start + each.text for start, each in zip(starts, written, strict=True)]
    assert plain[:2] == (0, "---\n".join(f"{text}\n" for text in texts))
    assert [other[:2] for other in others] == [plain[:2], plain[:2]]


def test_a_conversation_is_answered_turn_by_turn(tmp_path: Path) -> None:
    """With a template; all that was said before stands in the prompt."""
    run = make_run(tmp_path / "runs" / "talks", context_length=256)
    template = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:"
    header = {"format": "sentencepiece", "chat_template": template}
    (run / "tokenizer.model").write_bytes(json.dumps(header).encode() + b"\n" + tokenizer_bytes())
    change_state(run, tokenizer_sha256=sha256_of(run / "tokenizer.model"))
    loaded = load_run(Run(run), device="cpu")
    options = ["--chat", "--max-new-tokens", "6", "--temperature", "0"]
    ((code, out, _),) = run_all("sample", [options], tmp_path, text="Hello\n\nriver?\n")
    greedy, said, answers = SamplingOptions(6, 0.0), "", list[str]()
    for turn in ("Hello", "river?"):
        said += f"user: {turn}\n"
        answers.append(generate(loaded.model, loaded.tokenizer, f"{said}assistant:", greedy)[0].text)
        said += f"assistant: {answers[-1]}\n"
    assert (code, out) == (0, "".join(f"{answer}\n" for answer in answers))


def test_a_run_that_learned_single_questions_is_asked_each_as_one(tmp_path: Path) -> None:
    """Not through a template, which its tokenizer may have though the run has never seen it."""
    run = make_run(tmp_path / "runs" / "tuned", context_length=256)
    style = AskingStyle(PromptStyle("qa", "Question", "Answer"), {})
    write_json(run / EXAMPLES, style.to_dict())
    loaded = load_run(Run(run), device="cpu")
    options = ["--chat", "--max-new-tokens", "6", "--temperature", "0"]
    ((code, out, _),) = run_all("sample", [options], tmp_path, text="Hello\nriver?\n")
    prompts = [style.ids(loaded.tokenizer, question) for question in ("Hello", "river?")]
    answers = [generate(loaded.model, loaded.tokenizer, [ids], SamplingOptions(6, 0.0))[0].text for ids in prompts]
    assert (code, out) == (0, "".join(f"{answer}\n" for answer in answers))


def test_without_a_run_the_next_command_is_named(tmp_path: Path) -> None:
    done = command(SAMPLE, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "make quickstart" in done.stderr
