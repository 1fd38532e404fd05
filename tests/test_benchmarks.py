"""The benchmarks run: workers answer, ablations change what they name, finished runs are not repeated."""

from __future__ import annotations

import itertools
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from test_data_helpers import prose
from tiny import make_dataset, run_train

import train as train_program
from benchmarks import ablation, data, time_to_loss
from benchmarks.peer import Peer, load_nanogpt
from benchmarks.process import Worker
from benchmarks.runs import Results, spread, train
from benchmarks.table import report
from benchmarks.training import BenchmarkCommand, variants_of
from benchmarks.worker import Variant, random_tokens
from common.cli import parse_command
from common.errors import UserError
from common.files import read_json, write_json
from data_pipeline.documents import Document
from model.config import ModelConfig
from model.device import Precision
from training.config import BatchConfig, RunConfig
from training.config_checks import check

PROJECT = Path(__file__).resolve().parent.parent
TINY = RunConfig(
    model=ModelConfig(vocab_size=320, context_length=32, layers=2, width=32, heads=2),
    batch=BatchConfig(tokens_per_step=512, micro_batch_size=4),
    precision="fp32",
    device="cpu",
)
# What of nanoGPT's model.py is called, around the smallest of models.
NANOGPT = """
from dataclasses import dataclass
import torch
from torch import nn

@dataclass
class GPTConfig:
    block_size: int
    vocab_size: int
    n_layer: int
    n_head: int
    n_embd: int
    dropout: float
    bias: bool

class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        assert (config.n_layer, config.n_head) == (1, 2)
        self.body = nn.Sequential(
            nn.Embedding(config.vocab_size, config.n_embd), nn.Linear(config.n_embd, config.vocab_size)
        )

    def forward(self, ids, targets):
        logits = self.body(ids)
        return logits, nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def configure_optimizers(self, weight_decay, lr, betas, device_type):
        return torch.optim.AdamW(self.parameters(), lr, betas, weight_decay=weight_decay)
"""


@pytest.fixture
def nanogpt(tmp_path: Path) -> str:
    (tmp_path / "nanogpt").mkdir()
    (tmp_path / "nanogpt" / "model.py").write_text(NANOGPT)
    return str(tmp_path / "nanogpt")


@pytest.mark.parametrize("processes", [1, 2])
def test_a_worker_takes_a_step_when_asked(processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    variant = Variant(replace(TINY, activation_checkpointing="full"), processes=processes)
    worker = Worker("benchmarks.worker", variant.to_json(), processes)
    first, second = worker(), worker()
    worker.close()
    assert worker.process.returncode == 0
    for figures in (first, second):
        assert figures["tokens/s"] > 0 and figures["peak memory GiB"] > 0
        assert sum(figures[f"{phase} %"] for phase in ("load", "forward", "backward", "update")) == pytest.approx(100)


def test_a_worker_that_died_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    worker = Worker("benchmarks.worker", Variant(TINY, peer="nowhere").to_json())
    with pytest.raises(UserError, match="ended with status"):
        worker()


def test_variants_by_their_fields() -> None:
    against = ("compile on, model.activation gelu", "model.no-qk-norm")
    variants = variants_of(BenchmarkCommand(TINY, vary=(), against=against))
    plain, first, second = (variant.config for variant in variants.values())
    assert list(variants)[1:] == list(against)
    assert first == replace(plain, compile="on", model=replace(plain.model, activation="gelu"))
    assert second == replace(plain, model=replace(plain.model, qk_norm=False))


def test_a_variant_with_an_unknown_field(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        variants_of(BenchmarkCommand(TINY, vary=(), against=("model.activatoin gelu",)))
    assert "--model.activation" in capsys.readouterr().err


def test_what_is_no_nanogpt_checkout(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no model\.py"):
        load_nanogpt(str(tmp_path))


@pytest.mark.parametrize("variant", ablation.VARIANTS)
def test_every_ablation_changes_the_quickstart(variant: str) -> None:
    config = str(PROJECT / "configs" / "quickstart.py")
    arguments = [config, *ablation.VARIANTS[variant]]
    varied = parse_command(train_program.TrainCommand, RunConfig, arguments, "train.py").config
    check(varied)
    plain = parse_command(train_program.TrainCommand, RunConfig, [config], "train.py").config
    assert (varied == plain) == (variant == "default")


def test_what_a_variant_does_not_measure_is_not_made_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours = [{"tokens/s": 30.0, "peak": 2.0}, {"tokens/s": 40.0, "peak": 2.0}]
    report("title", {"ours": ours, "theirs": [{"tokens/s": 15.0}, {"tokens/s": 10.0}]}, "tokens/s", str(tmp_path / "f"))
    assert "n/a" in capsys.readouterr().out
    theirs = read_json(tmp_path / "f")["variants"]["theirs"]
    assert theirs["peak"] is None
    assert theirs["tokens/s, ratio to first"] == {"median": 0.375, "min": 0.25, "max": 0.5}


def test_finished_runs_are_kept(tmp_path: Path) -> None:
    results = Results(tmp_path / "results.jsonl")
    results.add({"who": "ours", "seed": 1, "val/loss": 3.0})
    again = Results(tmp_path / "results.jsonl")
    assert again.find(who="ours", seed=1) == {"who": "ours", "seed": 1, "val/loss": 3.0}
    assert again.find(who="ours", seed=2) is None
    assert spread([1.0, 2.0, 3.0], 1) == "2.0 ± 1.0"


def test_a_run_is_known_by_what_it_was_made_of(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its data, and not by the path of its config; nanoGPT's do not depend on our optimizer."""
    monkeypatch.chdir(project)
    command = time_to_loss.TimeToLossCommand("", "tiny.py")
    ablated = ablation.AblationCommand("tiny.py")

    def keys() -> list[object]:
        ours, theirs = time_to_loss.what_ours_depends_on(command), time_to_loss.what_peer_depends_on(command)
        return [ablation.key_of(ablated, "default"), ours, theirs]

    before = keys()
    text = (project / "tiny.py").read_text()
    (project / "tiny.py").write_text(text.replace("dropout=0.1", "dropout=0.2"))
    assert [one == other for one, other in zip(before, keys(), strict=True)] == [False, False, True]
    (project / "tiny.py").write_text(text)
    make_dataset(project / "data" / "tiny", seed=1)
    assert [one == other for one, other in zip(before, keys(), strict=True)] == [False, False, False]
    command = replace(command, compiled=False)
    assert keys()[2] != time_to_loss.what_peer_depends_on(replace(command, compiled=True))
    assert ablation.key_of(replace(ablated, jobs=2), "default") != before[0]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_nanogpt_computes_as_asked(nanogpt: str, precision: Literal["fp32", "bf16"]) -> None:
    shape = replace(TINY.model, layers=1)
    peer = Peer(nanogpt, shape, 1e-3, 0, compiled=False, precision=Precision(precision, ""))
    seen: list[torch.dtype] = []
    peer.model.body.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    ids = torch.zeros(1, 32, dtype=torch.long)
    peer.step([(ids, ids)], 1)
    peer.losses(ids, ids)
    assert seen == [Precision(precision, "").dtype] * 2


def test_fp16_is_refused_where_nothing_scales_the_loss() -> None:
    for command in (
        BenchmarkCommand(replace(TINY, precision="fp16"), vary=()),
        BenchmarkCommand(TINY, vary=(), against=("precision fp16",)),
    ):
        with pytest.raises(UserError, match="no gradient scaler"):
            variants_of(command)


def test_time_to_loss(
    project: Path, nanogpt: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The best of the rates is the one compared; asked again, nothing is run twice."""
    monkeypatch.chdir(project)
    arguments = [
        *("--config", "tiny.py", "--peer", nanogpt, "--no-compiled", "--rates", "1e-9", "0.01", "--seeds", "1"),
        *("--steps", "30", "--tokens-per-step", "512", "--layers", "1", "--width", "128", "--fraction", "20"),
    ]
    time_to_loss.main([*arguments, "--trials-only"])
    assert "nanoGPT at 1e-09: " in capsys.readouterr().out
    time_to_loss.main(arguments)
    first = capsys.readouterr().out
    assert "nanoGPT at 0.01 " in first and "ours, in its size, in 20 of nanoGPT's time: at or below its loss" in first
    rows = Results(Path("benchmarks/results/time_to_loss.jsonl")).rows
    losses = {(row["who"], row.get("rate"), row.get("same_size")): row["val/loss"] for row in rows}
    assert losses["trial", 0.01, None] < losses["trial", 1e-9, None] - 0.1
    assert list(losses)[2:] == [("nanoGPT", 0.01, None), ("ours", None, False), ("ours", None, True)]
    monkeypatch.setattr(time_to_loss, "train", None)
    monkeypatch.setattr(time_to_loss, "run_peer", None)
    time_to_loss.main(arguments)
    assert capsys.readouterr().out == first[first.index("┏") :]


def test_ids_beyond_16_bits_reach_nanogpt_whole(
    project: Path, nanogpt: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    data = project / "data" / "tiny"
    ids = np.fromfile(data / "train_00000.bin", "<u2").astype("<u4") + 70_000
    ids.tofile(data / "train_00000.bin")
    write_json(data / "manifest.json", {**read_json(data / "manifest.json"), "dtype": "<u4"})
    seen: list[np.ndarray] = []

    def note(tokens: np.ndarray, batch: int, context: int) -> None:
        seen.append(tokens)
        raise UserError("seen")

    monkeypatch.setattr(time_to_loss, "random_windows", note)
    command = time_to_loss.TimeToLossCommand(nanogpt, "tiny.py", layers=1, width=128, compiled=False)
    with pytest.raises(UserError, match="seen"):
        time_to_loss.run_peer(command, 1e-3, 0)
    np.testing.assert_array_equal(seen[0], ids)
    made = random_tokens(replace(TINY, model=replace(TINY.model, vocab_size=100_000)), tmp_path)
    assert made.read(0, 1000).max() > 70_000


def test_a_run_as_a_measurement(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures are those of the run's last validation, and a run that fails is an error."""
    run_train(project, "--budget.steps", "6")
    monkeypatch.chdir(project)
    result = train("tiny.py", "measured", ("--budget.steps", "6"))
    assert result["step"] == 6 and result["tokens"] == 6 * 512 and result["val/loss"] > 0
    with pytest.raises(UserError, match="this run failed"):
        train("tiny.py", "broken", ("--batch.tokens-per-step", "200"))


def test_as_many_documents_as_asked_are_spread_over_all() -> None:
    for total, wanted in ((10, 6), (11, 10), (7, 7), (7, 50), (1000, 3), (5, 1)):
        chosen = list(data.spread_over(iter(range(total)), total, wanted))
        gaps = {after - before for before, after in itertools.pairwise(chosen)}
        assert len(chosen) == min(total, wanted) and chosen[0] == 0 and len(gaps) <= 2, (total, wanted)
        assert total - chosen[-1] <= -(-total // wanted)
    with pytest.raises(UserError, match="--documents 0"):
        data.DataCommand(documents=0)


PEER = """
import json, sys
task, documents, folder = sys.argv[2:]
count = len(open(documents).readlines())
answer = {"seconds": 2.0}
if task == "datatrove_deduplication":
    answer["kept"] = list(range(count))
elif not task.endswith("signatures"):
    answer["reasons"] = {name: [None] * count for name in task.split("+")}
print(json.dumps(answer))
"""


def test_data_is_compared_task_by_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ours really run; the others are a stand-in that drops nothing and takes two seconds."""
    peer = tmp_path / "peer"
    peer.write_text(f"#!{sys.executable}\n{PEER}", encoding="utf-8")
    peer.chmod(0o755)
    texts = [prose(seed, 300) for seed in range(5)]
    rows = [vars(Document(str(number), 0, "prose", "", "", "", text)) for number, text in enumerate([*texts, texts[0]])]
    monkeypatch.setattr(data, "write_documents", lambda _, path: (path.write_text(lines_of(rows)), (6, 0.01))[1])
    data.main(["--peer-python", str(peer), "--rounds", "1", "--json", str(tmp_path / "figures")])
    said = capsys.readouterr().out
    for filter_name in data.RULES:
        assert f"{filter_name}: 100.00 % of 6 decisions equal" in said
    assert "kept: 5 by ours, 6 by datatrove" in said
    for task, columns in (("c4", 2), ("signatures", 3), ("deduplication", 2)):
        figures = read_json(tmp_path / f"figures_{task}.json")["variants"]
        assert len(figures) == columns and figures["datatrove"]["documents/s"]["median"] == 3
        assert figures["ours"]["documents/s"]["median"] > 3


def lines_of(rows: list[dict[str, object]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)
