"""lm-evaluation-harness on a run: its numbers are those of the model, whichever way the harness asks."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
from inference_fixtures import World, documents, make_world, tokenizer_bytes
from safetensors.torch import load_file, save_file
from serving_fixtures import make_chat_run, running

from common.cli import run_command
from common.runs import Run, write_checkpoint_manifest
from data_pipeline.shards import Dataset
from evaluation.harness import __main__ as command
from evaluation.harness.minimal_pairs import MAKERS, minimal_pairs
from evaluation.harness.task_data import Sources, passages, validation_documents, write_tasks
from evaluation.perplexity import document_windows, token_nll
from inference import LoadedRun, SamplingOptions, generate, load_run
from model.device import choose_precision
from serving.options import ServerOptions

lm_eval = pytest.importorskip("lm_eval")
from lm_eval.api.instance import Instance  # noqa: E402

from evaluation.harness.adapter import HarnessModel  # noqa: E402

CPU = torch.device("cpu")
FP32 = choose_precision(CPU, "fp32")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Curated data whose documents are said to be English, and a run on them."""
    found = make_world(tmp_path_factory.mktemp("world"), context_length=64)
    for index in found.data.glob("*.index.npy"):
        records = index.with_name(index.name.replace(".index.npy", ".documents.jsonl"))
        records.write_text('{"language": "en"}\n' * 200)
    return found


@pytest.fixture(scope="module")
def loaded(world: World) -> LoadedRun:
    return load_run(Run(world.run), device="cpu")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, world: World) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(world.root)


def instances(kind: Any, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, one, number) for number, one in enumerate(arguments)]


def plain_score(loaded: LoadedRun, context: str, continuation: str) -> tuple[float, bool]:
    """By one pass over the one text, in double precision behind the logits."""
    tokenizer = loaded.tokenizer
    whole = [tokenizer.bos_id, *tokenizer.encode(context + continuation)]
    first = 1 + len(tokenizer.encode(context.rstrip()))  # white space goes to the continuation
    with torch.no_grad():
        logits = loaded.model(torch.tensor([whole[-loaded.model.room - 1 : -1]]))[0].double()
    places = range(max(first - len(whole), -len(logits)), 0)
    chosen = [logits.log_softmax(-1)[place, whole[place]].item() for place in places]
    return sum(chosen), all(int(logits[place].argmax()) == whole[place] for place in places)


def test_rolling_is_our_own_perplexity_of_documents(world: World, loaded: LoadedRun) -> None:
    """But that the harness lets a last window that is short see what stood in the window before."""
    dataset = Dataset(world.data)
    stream, context = dataset.split("val"), loaded.model.config.context_length
    rows, tokens = stream.documents(), stream.read(0, len(stream))
    nll = token_nll(loaded.model, tokens, document_windows(rows, context), dataset.eos_id, CPU, FP32, 4096)
    starts = rows["start"].astype(int)
    ends = starts + rows["tokens"] - 1  # end-of-text ids are no part of what the harness scores
    assert (tokens[ends] == dataset.eos_id).all()
    texts = [loaded.tokenizer.decode(tokens[start:end]) for start, end in zip(starts, ends, strict=True)]
    found = HarnessModel(loaded, FP32).loglikelihood_rolling(instances("loglikelihood_rolling", *((t,) for t in texts)))
    expected = [-nll[start:end].astype(float).sum() for start, end in zip(starts, ends, strict=True)]
    fits = [end - start <= context for start, end in zip(starts, ends, strict=True)]
    assert 3 < sum(fits) < len(fits)
    for own, ours, fit in zip(found, expected, fits, strict=True):
        assert own == pytest.approx(ours, rel=1e-5 if fit else 0.1)


def test_scores_are_those_of_a_plain_pass(loaded: LoadedRun) -> None:
    texts = [text for _, text in documents()[:20]]
    asked = [(text[:12], text[12:20]) for text in texts] + [(texts[0][:12], end) for end in "abcd"]
    asked += [("", "The river"), (texts[1][:200], "!" * 40)]  # more than the context holds
    greedy = generate(loaded.model, loaded.tokenizer, texts[0][:12], SamplingOptions(3, temperature=0))[0].text
    asked.append((texts[0][:12], greedy))
    found = HarnessModel(loaded, FP32).loglikelihood(instances("loglikelihood", *asked), disable_tqdm=True)
    for (context, continuation), (score, is_greedy) in zip(asked, found, strict=True):
        expected, expected_greedy = plain_score(loaded, context, continuation)
        assert score == pytest.approx(expected, abs=1e-3), (context, continuation)
        assert is_greedy is expected_greedy
    small = HarnessModel(loaded, FP32, batch_tokens=1).loglikelihood(instances("loglikelihood", *asked), True)
    assert [score for score, _ in small] == pytest.approx([score for score, _ in found], abs=1e-4)


def test_an_equal_row_is_worked_out_once(loaded: LoadedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    hidden = loaded.model.hidden
    monkeypatch.setattr(loaded.model, "hidden", lambda ids: rows.append(len(ids)) or hidden(ids))
    scores = HarnessModel(loaded, FP32)._loglikelihood_tokens([(None, [0, 5], [token]) for token in range(300, 308)])
    assert len(set(scores)) == 8
    assert sum(rows) == 1


def test_generations_are_those_of_the_engine(loaded: LoadedRun) -> None:
    texts = [text[:8] for _, text in documents()[:6]]
    wishes = {"until": ["e"], "max_gen_toks": 12}
    found = HarnessModel(loaded, FP32).generate_until(instances("generate_until", *((t, wishes) for t in texts)))
    options = SamplingOptions(12, temperature=0, stop=("e",))
    assert found == [each.text for each in generate(loaded.model, loaded.tokenizer, texts, options)]
    long = instances("generate_until", (documents()[0][1] * 9, {"max_gen_toks": 5}))
    assert HarnessModel(loaded, FP32).generate_until(long)[0]  # the beginning of a long context gives way


def run_it(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        run_command(command.main, list(arguments))
    return int(ended.value.code or 0)


def test_our_tasks_are_scored(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_it("tiny", "--examples", "6", "--device", "cpu") == 0
    result = json.loads((world.run / "harness.json").read_text())
    assert set(result["tasks"]) == {"mini_perplexity", "mini_cloze_en", "mini_pairs_en", "mini_pairs_es"}
    pairs = result["tasks"]["mini_pairs_en"]
    assert pairs["asked"] == 6 * len(MAKERS["en"])
    assert sum(share["right"] for share in pairs["per_kind"].values()) == round(
        pairs["metrics"]["acc"]["value"] * pairs["asked"]
    )
    low, high = pairs["metrics"]["acc"]["interval"]
    assert low < pairs["metrics"]["acc"]["value"] < high and pairs["metrics"]["acc"]["stderr"] > 0
    rows = [json.loads(line) for line in (world.run / "harness" / "mini_perplexity.jsonl").read_text().splitlines()]
    assert len(rows) == 6
    metrics = {name: found["value"] for name, found in result["tasks"]["mini_perplexity"]["metrics"].items()}
    assert metrics["byte_perplexity"] == pytest.approx(2 ** metrics["bits_per_byte"])
    words, size = (sum(map(count, (row["text"] for row in rows))) for count in (wikitext_words, utf8))
    nats = math.log(metrics["byte_perplexity"]) * size
    assert metrics["word_perplexity"] == pytest.approx(math.exp(nats / words), rel=1e-6)
    written = capsys.readouterr()
    assert "subject and verb" in written.out and "mini_cloze_es" in written.err


def test_translations_are_scored(world: World) -> None:
    rows = [{"prompt": text[:9], "references": [text[9:40], "x"]} for _, text in documents()[:4]]
    verses = world.root / "verses.jsonl"
    verses.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run_it("tiny", "--tasks", "mini_translation", "--verses", str(verses), "--device", "cpu") == 0
    found = json.loads((world.run / "harness.json").read_text())["tasks"]["mini_translation"]
    assert found["asked"] == 4 and set(found["metrics"]) == {"bleu", "chrf++"}
    assert 0 < found["metrics"]["chrf++"]["value"] < 100


def wikitext_words(text: str) -> int:
    """White space at the end counts as the border of one more word there."""
    return len(re.split(r"\s+", text))


def utf8(text: str) -> int:
    return len(text.encode())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tasks", "mini_cloze_es"), "name curated data made with the run's tokenizer"),
        (("--tasks", "mini_translation"), "configs/data/translation_es_en.py"),
        (("--tasks", "mini_nothing"), "no task 'mini_nothing'"),
        (("--examples", "0"), "at least 1"),
    ],
)
def test_what_cannot_be_asked_is_said(arguments: tuple[str, ...], message: str, capsys: Any) -> None:
    assert run_it("tiny", "--device", "cpu", *arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.slow  # the harness looks through its fourteen thousand tasks
def test_a_task_of_the_hub_needs_the_hub(capsys: Any) -> None:
    assert run_it("tiny", "--device", "cpu", "--tasks", "wikitext") == 2
    assert "wikitext could not be had" in capsys.readouterr().err


def test_pairs_differ_in_one_place_and_never_repeat() -> None:
    for language in MAKERS:
        pairs = minimal_pairs(language, 100)
        assert pairs == minimal_pairs(language, 100) != minimal_pairs(language, 100, seed=1)
        assert len({(pair.good, pair.bad) for pair in pairs}) == len(pairs) == 100 * len(MAKERS[language])
        assert not {pair.good for pair in pairs} & {pair.bad for pair in pairs}
        for pair in pairs:
            good, bad = (text.replace(" del ", " de el ").split() for text in (pair.good, pair.bad))
            assert sum(one != other for one, other in zip(good, bad, strict=True)) == 1, pair


def test_languages_are_those_of_the_documents_and_read_once_a_shard(
    world: World, loaded: LoadedRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    dataset = Dataset(shutil.copytree(world.data, tmp_path / "data"))
    stream = dataset.split("val")
    for place, shard in enumerate(stream.shards):
        rows = [json.dumps({"language": f"{place} {number}"}) for number in range(200)]
        shard.path.with_suffix(".documents.jsonl").write_text("\n".join(rows))
    stream.shards[1].path.with_suffix(".documents.jsonl").unlink()
    expected = [stream.provenance(number).get("language", "") for number in range(len(stream.documents()))]
    assert expected[:2] == ["0 0", "0 1"] and expected[-1] == ""
    read: list[Path] = []
    load = np.load
    monkeypatch.setattr(np, "load", lambda path, **options: (read.append(path), load(path, **options))[1])
    found = [language for _, language in validation_documents(Sources(loaded.tokenizer, dataset))]
    assert found == expected and len(read) == len(stream.shards)


def test_a_passage_ends_before_the_last_word_of_a_sentence() -> None:
    text = " ".join(f"word{number}" for number in range(29)) + " river. And so on."
    (found,) = passages([(text, "en"), (text, "es"), ("Too short a text.", "en")], "en")
    assert found["word"] == "river" and f"{found['context']} river." == text[: len(found["context"]) + 7]


def answers(value: Any) -> list[float | str]:
    """All log-likelihoods and texts in what the harness logs of a question, whatever its nesting."""
    if isinstance(value, (float, str)):
        return [value]
    return [answer for part in value for answer in answers(part)] if isinstance(value, (list, tuple)) else []


def write_task(directory: Path, name: str, rows: list[dict[str, str]]) -> None:
    """One of our tasks with other questions than those of a run's data."""
    (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    template = (Path(command.__file__).parents[1] / "tasks" / f"{name}.yaml").read_text()
    data = f"dataset_kwargs:\n  data_files:\n    test: {directory / f'{name}.jsonl'}\n"
    (directory / f"{name}.yaml").write_text(template + data)


def write_words_only(run: Path) -> None:
    """Let a run with random weights write text: an unknown token, or a byte that is none, looks different in each
    engine."""
    pieces = sentencepiece.SentencePieceProcessor(model_proto=tokenizer_bytes())
    others = [one for one in range(len(pieces)) if pieces.IsByte(one) or pieces.IsUnknown(one) or pieces.IsControl(one)]
    for path in run.rglob("model.safetensors"):
        weights = load_file(path)
        weights["embedding.weight"][others] = 0  # the head is the same matrix
        save_file(weights, path)
        (path.parent / "manifest.json").unlink()
        write_checkpoint_manifest(path.parent)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["llama", "own"])
def test_three_ways_of_asking_agree(layout: str, tmp_path: Path) -> None:
    """In this process, through our export to transformers, and through our server: scores and texts."""
    from model.convert.__main__ import main as convert

    changes: dict[str, Any] = {"context_length": 256}
    if layout == "llama":
        changes |= {"activation": "swiglu", "norm_gain": True, "qk_norm": False, "embedding_norm": False,
                    "residual_scalars": False, "logit_softcap": None}  # fmt: skip
    run = make_chat_run(tmp_path / "tiny", **changes)
    write_words_only(run)
    convert(["to-hf", str(run), str(tmp_path / "exported")])
    loaded = load_run(Run(run), device="cpu")
    directory = tmp_path / "tasks"
    write_tasks(directory, Sources(loaded.tokenizer, limit=8))
    texts = [text for _, text in documents()[:12] if len(text.encode()) < 150]
    write_task(directory, "mini_perplexity", [{"text": text} for text in texts])
    clozes = [{"context": f"It {text[:30]} and", "word": text.split()[1]} for text in texts]
    write_task(directory, "mini_cloze_en", clozes)
    verses = [{"prompt": f"{text[:40]}\n<en>", "references": [text[:20]]} for text in texts]
    write_task(directory, "mini_translation", verses)  # type: ignore[arg-type]
    conditional = ["mini_pairs_en", "mini_pairs_es", "mini_cloze_en", "mini_translation"]

    def ask(model: Any, tasks: list[str], /, **arguments: Any) -> dict[str, list[Any]]:
        results = lm_eval.simple_evaluate(
            model=model, model_args=arguments, tasks=tasks,
            task_manager=lm_eval.tasks.TaskManager(include_path=str(directory), include_defaults=False),
            bootstrap_iters=0,
        )  # fmt: skip
        return {
            name: [
                answer
                for sample in sorted(samples, key=lambda each: each["doc_id"])
                for answer in answers(sample["resps"])
            ]
            for name, samples in results["samples"].items()
        }

    everything = [*conditional, "mini_perplexity"]
    here = ask(HarnessModel(loaded, FP32), everything)
    exported = {"pretrained": str(tmp_path / "exported"), "device": "cpu", "dtype": "float32",
                "trust_remote_code": True}  # fmt: skip
    there = ask("hf", conditional, **exported, add_bos_token=True)
    there |= ask("hf", ["mini_perplexity"], **exported, add_bos_token=False)
    with running(loaded, ServerOptions(slots=4)) as server:
        served = ask("local-completions", everything, model="tiny", base_url=f"{server.url}/v1/completions",
                     tokenizer_backend="remote", max_length=256, batch_size=4)  # fmt: skip
    assert {name: len(values) for name, values in here.items()} == {
        "mini_pairs_en": 64, "mini_pairs_es": 64,
        **dict.fromkeys(("mini_cloze_en", "mini_translation", "mini_perplexity"), len(texts)),
    }  # fmt: skip
    written = here.pop("mini_translation")
    assert all(written) and there["mini_translation"] == written == served["mini_translation"]
    for name, values in here.items():
        assert values == pytest.approx(there[name], abs=1e-3), name
        assert values == pytest.approx(served[name], abs=1e-3), name
