"""The pipeline as a whole: what it makes, what it repeats, and what it survives."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from test_data_helpers import (
    ROOT,
    command,
    dropped_rows,
    files_of,
    prose,
    small_config,
    stage_directory,
    write_config,
    write_jsonl,
)

from common.cli import run_command
from common.errors import UserError
from common.files import read_json, sha256_of
from data_pipeline import code_identity
from data_pipeline.__main__ import main
from data_pipeline.code_identity import code_of
from data_pipeline.config import DataConfig, FilterConfig, ProseFilters, SplitConfig
from data_pipeline.dedup import minhash
from data_pipeline.documents import Counts
from data_pipeline.executors import Run
from data_pipeline.pipeline import curate
from data_pipeline.shards import Dataset
from data_pipeline.sources.config import TextFiles
from data_pipeline.stages import StageRunner
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.verify import verify


def said(capsys: pytest.CaptureFixture[str]) -> dict[str, bool]:
    """Which stages of the last run did work."""
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("[")]
    return {line.split("]")[1].split()[0]: not line.endswith("up to date") for line in lines}


def test_shards_decode_to_the_documents(built: tuple[DataConfig, Path]) -> None:
    _, out = built
    dataset = Dataset(out)
    tokenizer = Tokenizer(dataset.tokenizer_path)
    assert len(dataset.manifest["splits"]["train"]["shards"]) >= 2
    texts: dict[str, str] = {}
    for shard in sorted(stage_directory(out, "split").glob("*.jsonl")):
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
    of_turns = {"<|user|>": 3, "<|assistant|>": 4, "<|system|>": 5, "<|end|>": 6}
    assert manifest["special_tokens"] == {"<s>": 1, "</s>": 2, **of_turns}


def test_a_second_run_does_no_work(built: tuple[DataConfig, Path], capsys: pytest.CaptureFixture[str]) -> None:
    config, out = built
    before = {path: path.stat().st_mtime_ns for path in (out / "stages").rglob("*.*") if "quarantine" not in path.name}
    manifest = (out / "manifest.json").stat().st_mtime_ns
    curate(config, out, workers=1)
    assert not any(said(capsys).values())
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (out / "manifest.json").stat().st_mtime_ns == manifest


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
    assert all(stages[name] for name in ("draw", "compare", "split", "tokenizer", "encode", "arrange", "pack"))


def test_one_more_file_adds_its_shards_to_those_there_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [
        write_jsonl(tmp_path / f"{name}.jsonl", [prose(40 * n + k) for k in range(40)]) for n, name in enumerate("abc")
    ]
    out = tmp_path / "data"
    config = small_config(*paths[:2])
    curate(config, out, workers=1)
    costly = ("collect", "clean", "measure", "filter", "sketch")

    def files() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for name in costly for path in stage_directory(out, name).rglob("*_*.*")}

    before = files()
    larger = replace(config, sources=small_config(*paths).sources)
    curate(larger, out, workers=1)
    after = files()
    assert before.items() <= after.items() and {path.name[:2] for path in after.keys() - before.keys()} == {"02"}
    curate(larger, tmp_path / "fresh", workers=1)
    assert files_of(out) == files_of(tmp_path / "fresh")
    curate(config, out, workers=1)  # and without it again
    assert files() == before
    curate(config, tmp_path / "first", workers=1)
    assert files_of(out) == files_of(tmp_path / "first")


def test_changed_input_is_noticed(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [prose(seed) for seed in range(60)])
    first = curate(small_config(path), tmp_path / "data", workers=1)
    write_jsonl(path, [prose(seed) for seed in range(1, 61)])
    second = curate(small_config(path), tmp_path / "data", workers=1)
    assert first["fingerprint"] != second["fingerprint"]


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
def test_mistakes_end_with_status_2(
    corpus: list[Path], tmp_path: Path, arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(write_config(tmp_path / "config.py", corpus))
    with pytest.raises(SystemExit) as ended:
        run_command(main, [config, "--out", str(tmp_path / "data"), "--workers", "1", *arguments])
    assert ended.value.code == 2
    assert expected in capsys.readouterr().err


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
    removed = {row["id"] for row in dropped_rows(tmp_path / "data", "deduplicate")}
    assert f"source1/{corpus[0].as_posix()}#line9" in removed  # its upper-case copy is in the source named first


def test_two_runs_in_one_place_are_refused(built: tuple[DataConfig, Path]) -> None:
    fcntl = pytest.importorskip("fcntl")
    config, out = built
    with open(out / "stages" / ".lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process is working"):
            curate(config, out, workers=1)


def test_files_of_the_user_stay_in_the_directory(built: tuple[DataConfig, Path], tmp_path: Path) -> None:
    config, whole = built
    out = shutil.copytree(whole, tmp_path / "data")
    own = [out / name for name in ("train_corpus.jsonl", "val_notes.md", "train_00000.txt", "train_backup/notes.txt")]
    strays = [out / name for name in ("train_00099.bin", "val_123456.index.npy", "train_00000.bin.77.tmp")]
    (out / "train_backup").mkdir()
    for path in own + strays:
        path.write_text("text")
    curate(config, out, workers=1, executor="serial")
    assert all(path.is_file() for path in own) and not any(path.exists() for path in strays)
    assert not any(check.wrong for check in verify(out))


def test_without_hard_links_files_are_copied_and_synced(
    built: tuple[DataConfig, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, whole = built
    out, synced, sync = shutil.copytree(whole, tmp_path / "data"), set(), os.fsync

    def link(*_: object) -> None:
        raise OSError("no hard links here")

    def fsync(file: int) -> None:
        synced.add(os.fstat(file).st_ino)
        sync(file)

    monkeypatch.setattr(os, "link", link)
    monkeypatch.setattr(os, "fsync", fsync)
    manifest = curate(config, out, workers=1, executor="serial")
    assert {(out / name).stat().st_ino for name in manifest["files"]} <= synced


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


def test_a_task_that_loses_documents_is_caught(tmp_path: Path) -> None:
    runner = StageRunner(tmp_path, None, Run.begin(tmp_path / "run"), total=1, on_work=lambda: None)
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
    names = ("quality.signals", "quality.words", "quality.lines", "hashing", "documents")
    assert {f"data_pipeline.{name}" for name in names} <= measured
    assert not {"data_pipeline.config", "data_pipeline.quality.filters"} & measured  # the config's values are settings
    collected = code_of("data_pipeline.collect")  # also what is imported only where it is used
    assert {"python", "trafilatura", "pyarrow", "warcio", "data_pipeline.sources.html"} <= collected.keys()
    assert collected["pyarrow"] == version("pyarrow")
    assert not {"torch", "common.files"} & collected.keys()


def test_other_code_makes_a_stage_begin_anew(
    corpus: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, out = small_config(*corpus), tmp_path / "data"
    curate(config, out, workers=1)
    capsys.readouterr()
    changed = tmp_path / "minhash.py"
    changed.write_text(Path(str(minhash.__file__)).read_text(encoding="utf-8") + "# changed\n", encoding="utf-8")
    file_of = code_identity._file_of
    monkeypatch.setattr(code_identity, "_file_of", lambda name: changed if name == minhash.__name__ else file_of(name))
    code_identity.code_of.cache_clear()
    try:
        curate(config, out, workers=1)
    finally:
        code_identity.code_of.cache_clear()
    worked = [stage for stage, worked in said(capsys).items() if worked]
    assert worked[0] == "sketch" and "compare" in worked and "tokenizer" not in worked
