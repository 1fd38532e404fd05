"""The pipeline as a whole: what it makes, what it repeats, and what it survives."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_data_helpers import dropped_rows, files_of, prose, replace_words, small_config, write_jsonl

from common.errors import UserError
from common.files import read_json, sha256_of
from data_pipeline.config import DataConfig, FilterConfig, ProseFilters, SplitConfig
from data_pipeline.dedup import minhash
from data_pipeline.documents import Counts
from data_pipeline.pipeline import curate
from data_pipeline.shards import Dataset
from data_pipeline.sources.config import TextFiles
from data_pipeline.stages import StageRunner, code_of, process_pool
from data_pipeline.tokenizer import Tokenizer

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two sources of 150 texts, with some that the filters drop, and some duplicates within and across sources."""
    folder = tmp_path_factory.mktemp("corpus")
    first = [prose(seed, 90 + 30 * (seed % 4)) for seed in range(150)]
    second = [prose(seed, 90) for seed in range(1000, 1150)]
    first += ["Too short.", first[3], replace_words(first[6], 5, 2)]
    second += [first[8].capitalize(), replace_words(second[9], 6, 2), "word " * 200]
    return [write_jsonl(folder / "first.jsonl", first), write_jsonl(folder / "second.jsonl", second)]


@pytest.fixture(scope="module")
def built(corpus: list[Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[DataConfig, Path]:
    config, out = small_config(*corpus), tmp_path_factory.mktemp("built") / "data"
    curate(config, out, workers=1)
    return config, out


def said(capsys: pytest.CaptureFixture[str]) -> dict[str, bool]:
    """Which stages of the last run did work."""
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[")]
    return {line.split("]")[1].split()[0]: not line.endswith("up to date") for line in lines}


def without_seconds(manifest: dict[str, Any]) -> dict[str, Any]:
    stages = [{key: value for key, value in stage.items() if key != "seconds"} for stage in manifest["stages"]]
    return {**manifest, "stages": stages}


def test_shards_decode_to_the_documents(built: tuple[DataConfig, Path]) -> None:
    _, out = built
    dataset = Dataset(out)
    tokenizer = Tokenizer(dataset.tokenizer_path)
    assert len(dataset.manifest["splits"]["train"]["shards"]) >= 2
    texts: dict[str, str] = {}
    for shard in sorted((out / "stages" / "10_split").glob("*.jsonl")):
        for line in shard.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            texts[row["id"]] = row["text"]
    seen = []
    for split in ("train", "val"):
        stream, documents = dataset.split(split), dataset.split(split).documents()
        lines = [
            json.loads(line)
            for shard in stream.shards
            for line in shard.path.with_suffix(".documents.jsonl").read_text(encoding="utf-8").splitlines()
        ]
        assert len(lines) == len(documents) > 0
        for record, provenance in zip(documents, lines, strict=True):
            ids = stream.read(int(record["start"]), int(record["tokens"]))
            text = tokenizer.decode(ids[:-1])
            assert ids[-1] == dataset.eos_id and dataset.eos_id not in ids[:-1]
            assert text == texts[provenance["id"]]
            assert record["bytes"] == len(text.encode())
            assert dataset.sources[record["source"]] == provenance["source"]
            assert provenance["licence"] == "CC0-1.0" and ".jsonl#line" in provenance["origin"]
            seen.append(provenance["id"])
    assert sorted(seen) == sorted(texts)


def test_sources_mix_in_every_shard(built: tuple[DataConfig, Path]) -> None:
    _, out = built
    for shard in Dataset(out).split("train").shards:
        sources = np.load(shard.path.with_suffix(".index.npy"))["source"]
        changes = int((sources[1:] != sources[:-1]).sum())
        assert changes > len(sources) // 4


def test_manifest_counts_everything(built: tuple[DataConfig, Path]) -> None:
    config, out = built
    manifest = read_json(out / "manifest.json")
    before = None
    for stage in manifest["stages"]:
        assert stage["documents_in"] == stage["documents_out"] + sum(stage["dropped"].values())
        assert before in (None, stage["documents_in"])
        before = stage["documents_out"]
    dropped = {stage["name"]: stage["dropped"] for stage in manifest["stages"]}
    assert dropped["filter"] == {"stop_words": 1, "too_few_words": 1}
    assert dropped["deduplicate"] == {"exact_duplicate": 2, "near_duplicate": 2}
    total = dict.fromkeys(("documents", "bytes", "tokens"), 0)
    for name, split in manifest["splits"].items():
        index = Dataset(out).split(name).documents()
        assert split["tokens"] == len(Dataset(out).split(name)) == int(index["tokens"].sum())
        assert split["bytes"] == int(index["bytes"].sum()) and split["documents"] == len(index)
        for key in total:
            assert split[key] == sum(source["splits"][name][key] for source in manifest["sources"])
            total[key] += split[key]
        for number in range(len(config.sources)):
            mine = index[index["source"] == number]
            assert manifest["sources"][number]["splits"][name]["tokens"] == int(mine["tokens"].sum()) > 0
    assert before == total["documents"] == sum(manifest["licences"].values())
    for name, digest in manifest["files"].items():
        assert sha256_of(out / name) == digest
    assert set(manifest["files"]) == set(files_of(out))
    assert manifest["special_tokens"] == {"<|user|>": 3, "<|assistant|>": 4, "<|system|>": 5, "<|end|>": 6}


def test_a_second_run_does_no_work(built: tuple[DataConfig, Path], capsys: pytest.CaptureFixture[str]) -> None:
    config, out = built
    before = {path: path.stat().st_mtime_ns for path in (out / "stages").rglob("*.*") if "quarantine" not in path.name}
    manifest = (out / "manifest.json").stat().st_mtime_ns
    curate(config, out, workers=1)
    assert not any(said(capsys).values())
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (out / "manifest.json").stat().st_mtime_ns == manifest


def test_workers_do_not_change_a_byte(built: tuple[DataConfig, Path], tmp_path: Path) -> None:
    config, out = built
    curate(config, tmp_path / "data", workers=2)
    assert files_of(tmp_path / "data") == files_of(out)
    assert without_seconds(read_json(tmp_path / "data" / "manifest.json")) == without_seconds(
        read_json(out / "manifest.json")
    )


def test_a_changed_threshold_recomputes_what_follows(
    corpus: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, out = small_config(*corpus), tmp_path / "data"
    curate(config, out, workers=1)
    capsys.readouterr()
    changed = replace(config, filters=FilterConfig(prose=ProseFilters(min_words=100)))
    curate(changed, out, workers=1)
    assert [stage for stage, worked in said(capsys).items() if not worked] == [
        "collect",
        "clean",
        "reference",
        "measure",
    ]
    fresh = tmp_path / "fresh"
    curate(changed, fresh, workers=1)
    assert files_of(out) == files_of(fresh)
    capsys.readouterr()
    curate(replace(changed, split=SplitConfig(validation_fraction=0.2)), out, workers=1)
    stages = said(capsys)
    assert not any(stages[name] for name in ("collect", "clean", "filter", "sketch", "duplicates", "deduplicate"))
    assert all(stages[name] for name in ("draw", "compare", "split", "tokenizer", "encode", "pack"))


def test_missing_and_stray_files_are_put_right(built: tuple[DataConfig, Path], tmp_path: Path) -> None:
    config, _ = built
    out = tmp_path / "data"
    curate(config, out, workers=1)
    before = files_of(out)
    (out / "train_00000.bin").unlink()
    (out / "train_00099.bin").write_bytes(b"of an older run")
    victim = next((out / "stages" / "04_filter").glob("*.jsonl"))
    victim.write_bytes(victim.read_bytes()[:-10])
    curate(config, out, workers=1)
    assert files_of(out) == before


def test_changed_input_is_noticed(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [prose(seed) for seed in range(60)])
    first = curate(small_config(path), tmp_path / "data", workers=1)
    write_jsonl(path, [prose(seed) for seed in range(1, 61)])
    second = curate(small_config(path), tmp_path / "data", workers=1)
    assert first["fingerprint"] != second["fingerprint"]


CONFIG_FILE = """
from test_data_helpers import small_config
config = small_config({paths})
"""


def command(config: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    return subprocess.Popen(
        [sys.executable, "-m", "data_pipeline", str(config), "--out", str(out), *more],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("stage", ["00_collect", "04_filter", "09_compare", "13_pack"])
def test_a_killed_run_goes_on_and_ends_the_same(
    corpus: list[Path], built: tuple[DataConfig, Path], tmp_path: Path, stage: str
) -> None:
    config = tmp_path / "config.py"
    config.write_text(CONFIG_FILE.format(paths=", ".join(repr(str(path)) for path in corpus)))
    out = tmp_path / "data"
    process = command(config, out, "--workers", "1")
    deadline = time.monotonic() + 60
    while not (out / "stages" / stage).exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    if stage != "13_pack":  # the last stage may be over before the signal comes; then the rerun has nothing to do
        assert process.returncode == -signal.SIGKILL
        assert not (out / "manifest.json").exists()
    process = command(config, out, "--workers", "1")
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert stage == "00_collect" or "up to date" in output
    assert files_of(out) == files_of(built[1])
    assert not list(out.rglob("*.tmp"))


def test_workers_leave_with_a_killed_parent(corpus: list[Path], tmp_path: Path) -> None:
    if not Path("/proc").is_dir():
        pytest.skip("needs /proc")
    config = tmp_path / "config.py"
    config.write_text(CONFIG_FILE.format(paths=", ".join(repr(str(path)) for path in corpus)))
    process = command(config, tmp_path / "data", "--workers", "2")
    children: list[str] = []
    deadline = time.monotonic() + 60
    while len(children) < 2 and process.poll() is None and time.monotonic() < deadline:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert len(children) >= 2
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and any(alive(child) for child in children):
        time.sleep(0.05)
    assert not any(alive(child) for child in children)


def alive(child: str) -> bool:
    try:
        return Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--tokenizer.vocab-sise", "600"], "--tokenizer.vocab-size"),
        (["--workers", "0"], "--workers is 0; it must be at least 1"),
        (["--split.validation-fraction", "1.5"], "split.validation_fraction is 1.5"),
        (["--tokenizer.vocab-size", "60000"], "set --tokenizer.vocab-size to "),
        (["--tokenizer.vocab-size", "100"], "is too small"),
    ],
)
def test_mistakes_end_with_status_2(corpus: list[Path], tmp_path: Path, arguments: list[str], expected: str) -> None:
    config = tmp_path / "config.py"
    config.write_text(CONFIG_FILE.format(paths=", ".join(repr(str(path)) for path in corpus)))
    process = command(config, tmp_path / "data", "--workers", "1", *arguments)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert expected in errors and "Traceback" not in errors


def test_an_unknown_field_in_a_config_file_is_suggested(tmp_path: Path) -> None:
    config = tmp_path / "config.py"
    config.write_text("from data_pipeline.config import *\nconfig = DataConfig(splitt=SplitConfig())\n")
    process = command(config, tmp_path / "data")
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2 and "did you mean 'split'?" in errors


def test_mistakes_in_the_config_are_named(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ["Nothing here is long enough."])
    out = tmp_path / "data"
    with pytest.raises(UserError, match="sources is empty"):
        curate(DataConfig(sources=()), out, 1)
    twice = (TextFiles(patterns=(str(path),)),) * 2
    with pytest.raises(UserError, match="'files' is used twice"):
        curate(DataConfig(sources=twice), out, 1)
    with pytest.raises(UserError, match="no document is left for the train split"):
        curate(small_config(path), out, 1)


def test_the_earlier_source_keeps_its_duplicates(corpus: list[Path], tmp_path: Path) -> None:
    curate(small_config(corpus[1], corpus[0]), tmp_path / "data", workers=1)
    removed = {row["id"] for row in dropped_rows(tmp_path / "data", "07_deduplicate")}
    assert f"source1/{corpus[0].as_posix()}#line9" in removed  # its upper-case copy is in the source named first


def test_two_runs_in_one_place_are_refused(built: tuple[DataConfig, Path]) -> None:
    fcntl = pytest.importorskip("fcntl")
    config, out = built
    with open(out / "stages" / ".lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process is working"):
            curate(config, out, workers=1)


def test_quarantined_records_are_listed(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [prose(seed) for seed in range(60)])
    with path.open("a") as file:
        file.write('{"text": 3}\n["x"]\n')
    manifest = curate(small_config(path), tmp_path / "data", workers=1)
    assert manifest["quarantine"] == {"no_text": 1, "not_an_object": 1}
    rows = [json.loads(line) for line in (tmp_path / "data/stages/quarantine.jsonl").read_text().splitlines()]
    assert [(row["source"], row["file"], row["position"], row["reason"]) for row in rows] == [
        ("source0", str(path), "line 61", "no_text"),
        ("source0", str(path), "line 62", "not_an_object"),
    ]


def die(task: str, directory: Path, argument: object) -> Counts:
    os._exit(9)


def test_a_worker_that_dies_is_explained(tmp_path: Path) -> None:
    with process_pool(2) as executor:
        runner = StageRunner(tmp_path, executor, total=1, on_work=lambda: None)
        with pytest.raises(UserError, match="fewer --workers"):
            runner.run("doomed", die, {"00000": None, "00001": None}, settings=[])


def test_a_task_that_loses_documents_is_caught(tmp_path: Path) -> None:
    runner = StageRunner(tmp_path, None, total=1, on_work=lambda: None)
    with pytest.raises(AssertionError, match="2 documents are unaccounted for"):
        runner.run("leaky", lambda *_: Counts(5, 3), {"00000": None}, settings=[])


@pytest.mark.slow
def test_quickstart_data(tmp_path: Path) -> None:
    """The real thing, with its download."""
    process = command(ROOT / "configs" / "data" / "quickstart.py", tmp_path / "quickstart")
    started = time.monotonic()
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert time.monotonic() - started < 120
    dataset = Dataset(tmp_path / "quickstart")
    assert dataset.sources == ["wikipedia", "python"] and dataset.vocab_size == 8192
    assert 2_000_000 < len(dataset.split("train")) < 4_000_000
    assert 50_000 < len(dataset.split("val")) < 150_000
    for source in dataset.manifest["sources"]:
        assert source["bytes_per_token"] > 3


def test_the_code_of_a_stage_is_all_that_it_imports() -> None:
    measured = set(code_of("data_pipeline.quality.signals"))
    assert {f"data_pipeline.{name}" for name in ("quality.words", "quality.lines", "hashing", "documents")} <= measured
    assert not {"data_pipeline.config", "data_pipeline.quality.filters"} & measured  # the config's values are settings


def test_other_code_makes_a_stage_begin_anew(
    corpus: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, out = small_config(*corpus), tmp_path / "data"
    curate(config, out, workers=1)
    capsys.readouterr()
    changed = tmp_path / "minhash.py"
    changed.write_text(Path(str(minhash.__file__)).read_text(encoding="utf-8") + "# changed\n", encoding="utf-8")
    monkeypatch.setattr(minhash, "__file__", str(changed))
    curate(config, out, workers=1)
    worked = [stage for stage, worked in said(capsys).items() if worked]
    assert worked[0] == "sketch" and "compare" in worked and "tokenizer" not in worked
