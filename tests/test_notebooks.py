"""The notebooks run from a clean kernel with their default settings, and are stored without outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nbformat
import pytest
from forks import PROJECT
from nbclient import NotebookClient

NOTEBOOKS = sorted((PROJECT / "notebooks").glob("*.ipynb"))


def execute(name: str, expression: str, where: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a notebook in `where` and return `expression` as its last cell sees it, through JSON."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    notebook = nbformat.read(PROJECT / "notebooks" / name, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(f"import json\nprint(json.dumps({expression}))"))
    # A cell that takes longer than any of these should is a hang.
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(where)}}).execute()
    return json.loads(notebook.cells[-1].outputs[-1].text)


def test_data(monkeypatch: pytest.MonkeyPatch) -> None:
    expression = """{
        "strict": strict_filter["documents_out"],
        "kept": sum(split["documents"] for split in manifest["splits"].values()),
        "sweep": [counts["kept"] for counts in sweep.values()],
        "removed": [[pair.removed.split("/")[0], pair.reason] for pair in pairs],
        "jaccard": jaccard,
        "compression": compression["reference"],
        "wrong": sum(check.wrong for check in checks),
    }"""
    found = execute("01_data.ipynb", expression, PROJECT / "notebooks", monkeypatch)
    assert found["strict"] < found["kept"] and found["sweep"] == sorted(found["sweep"])  # a lower threshold keeps more
    assert ["mirror", "near_duplicate"] in found["removed"] and 0.7 <= found["jaccard"] <= 0.9
    per_size = list(found["compression"].values())
    assert per_size == sorted(per_size)  # a larger vocabulary makes texts shorter
    assert found["wrong"] == 0


def test_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    expression = """{
        "perplexities": [perplexity for perplexity, _ in by_vocabulary.values()],
        "bits": [bits for _, bits in by_vocabulary.values()],
        "bleu": [by_hand, theirs],
        "rouge": [[by_hand_rouge[kind], package[kind].fmeasure, project[kind].f] for kind in by_hand_rouge],
        "distinct": curves["distinct-1"],
        "coherence": [float(np.mean(shuffled)), in_order, repeating],
        "difference": [comparison.interval.low, comparison.difference, comparison.interval.high, comparison.p],
    }"""
    found = execute("02_metrics.ipynb", expression, PROJECT, monkeypatch)
    assert found["perplexities"][-1] > 2 * found["perplexities"][0]
    assert found["bits"][-1] < found["bits"][0]  # though the model is the better one
    assert found["bleu"][0] == pytest.approx(found["bleu"][1], abs=1e-9)
    assert all(value == pytest.approx(values[0], abs=1e-12) for values in found["rouge"] for value in values)
    assert found["distinct"] == sorted(found["distinct"], reverse=True)
    assert found["coherence"] == sorted(found["coherence"])
    low, difference, high, p = found["difference"]
    assert low < difference < high and difference > 0 and p < 0.05


def test_training(monkeypatch: pytest.MonkeyPatch) -> None:
    expression = """{
        "start": [start_loss, math.log(config.vocab_size)],
        "final": [final_loss, baselines["unigram"]],
        "shape": list(trained_weights.shape),
        "killed": logged_when_killed,
        "same": [whole_losses == resumed_losses, identical, len(resumed_losses)],
    }"""
    found = execute("03_training.ipynb", expression, PROJECT / "notebooks", monkeypatch)
    assert found["start"][0] == pytest.approx(found["start"][1], abs=0.1)
    assert found["final"][0] < found["final"][1] - 0.5
    assert found["shape"][:2] == [2, 3]
    assert 14 <= found["killed"] < 30 and found["same"] == [True, True, 30]


def test_fine_tuning_and_serving(monkeypatch: pytest.MonkeyPatch) -> None:
    expression = """{
        "lora": [untouched, lora_difference],
        "shares": shares[ASKED_OTHERWISE],
        "merge": merge_difference,
        "quantized": {name: loss for name, (loss, _) in quantized.items()},
        "streamed": ["".join(pieces), answer.choices[0].message.content, facts["statistics"]],
        "tokens": tokens_written,
        "ended": not thread.is_alive(),
    }"""
    found = execute("04_fine_tuning_and_serving.ipynb", expression, PROJECT, monkeypatch)
    assert found["lora"][0] is True and found["lora"][1] < 1e-4 and found["merge"] < 1e-3
    before, after = found["shares"]
    assert before == 0 and after > 0.7
    losses = found["quantized"]
    assert abs(losses["8 bits"] - losses["fp32"]) < 0.05 < losses["2 bits"] - losses["fp32"]
    streamed, whole, fact = found["streamed"]
    assert streamed == whole and whole.strip() == fact
    assert found["tokens"] > 50 and found["ended"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_without_outputs(path: Path) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    nbformat.validate(notebook)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert code and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert all(not cell["metadata"] for cell in notebook["cells"])
    assert set(notebook["metadata"]) <= {"kernelspec", "language_info"}
    text = json.dumps(notebook["cells"])
    assert '"/home/' not in text and '"/tmp/' not in text  # works wherever it is
