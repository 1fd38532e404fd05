"""An evaluation in Weights & Biases: its figures in the summary of the run that was trained, and its tables beside."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from typing import Any, Literal

from common.files import read_json_lines
from common.runs import Run, choose_checkpoint
from common.threads import unbound
from evaluation.report_facts import comparison
from evaluation.report_metrics import generation_rows
from training.wandb_run import PATIENCE, wandb_mode

RESULT_COLUMNS = (
    "source", "predictor", "bits_per_byte", "low", "high", "behind", "behind_low", "behind_high", "loss", "perplexity",
)  # fmt: skip
FIGURES = (
    "val_loss",
    "val_perplexity",
    "val_bits_per_byte",
    "val_tokens",
    "checkpoint_step",
    "baseline_training_tokens",
)


@dataclass(frozen=True)
class EvaluationTracking:
    """Whether the results go to Weights & Biases too."""

    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    """"auto": into the W&B run that training wrote, if it wrote one, as it was written; the others as in train.py."""
    wandb_project: str | None = None
    """W&B project; by default that of the run."""


def log_results(run: Run, config: dict[str, Any], summary: dict[str, Any], tracking: EvaluationTracking) -> None:
    """Put the summary's figures and tables into the W&B run of `run`, or into a new one where it has none.

    Trouble with it is said, and nothing else: the results lie in the run's directory already.
    """
    trained = config.get("tracking") or {}
    run_id = choose_checkpoint(run, "last").state.get("wandb_id")
    if tracking.wandb == "auto" and run_id is None:
        return
    mode = wandb_mode(trained.get("wandb", "auto") if tracking.wandb == "auto" else tracking.wandb)
    if mode is None:
        return
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    os.environ.setdefault("WANDB_DATA_DIR", str(run.wandb.absolute()))
    for variable, seconds in PATIENCE.items():
        os.environ.setdefault(variable, seconds)
    try:
        with unbound():
            place = _log(run, trained, summary, tracking, run_id, mode)
    except Exception as error:
        print(f"tracking: W&B does not take the results ({error}); they are in {run.summary}", file=sys.stderr)
    else:
        print(f"tracking: W&B {mode}, {place}", file=sys.stderr)


def _log(
    run: Run,
    trained: dict[str, Any],
    summary: dict[str, Any],
    tracking: EvaluationTracking,
    run_id: str | None,
    mode: Literal["online", "offline"],
) -> str:
    import wandb

    writing: Any = wandb.init(
        project=tracking.wandb_project or trained.get("wandb_project", "mini-gpt"),
        name=run.name,
        id=run_id,
        resume="allow",  # offline too: `wandb sync` then joins this to what training wrote
        dir=str(run.path),
        mode=mode,
        job_type="train" if run_id else "evaluation",
        settings=wandb.Settings(console="off", silent=True),
    )
    writing.summary.update(figures(summary))
    made = {
        f"evaluation/{name}": wandb.Table(columns=list(columns), data=rows)
        for name, (columns, rows) in tables(summary).items()
        if rows
    }
    last = max((row.get("step", 0) for row in read_json_lines(run.metrics)), default=0)
    writing.log({**made, "tokens": summary["tokens_trained"]}, step=last + 1)
    writing.finish()
    return str(writing.url) if mode == "online" else f"upload it with: wandb sync {run.wandb}/offline-run-*"


def figures(summary: dict[str, Any]) -> dict[str, float]:
    """What stands in W&B's summary: names below `evaluation/`, with the letters that W&B takes."""
    found = {name: summary[name] for name in FIGURES}
    for source, score in summary["per_source"].items():
        found[f"{source}/bits_per_byte"] = score["bits_per_byte"]
    for name, score in summary["baselines"].items():
        found[f"baselines/{name}/bits_per_byte"] = score["bits_per_byte"]
    return {"evaluation/" + re.sub(r"[^\w/]", "_", name): value for name, value in found.items()}


def tables(summary: dict[str, Any]) -> dict[str, tuple[tuple[str, ...], list[list[Any]]]]:
    """Columns and rows by name: the results, the measures of what is written, and the samples."""
    results = []
    for row in comparison(summary):
        bounds, behind = row["interval"] or (None, None), row["behind_interval"] or (None, None)
        results.append(
            [
                row["source"],
                row["name"],
                row["bits_per_byte"],
                *bounds,
                row["behind"],
                *behind,
                row["loss"],
                row["perplexity"],
            ]
        )
    writing = [[row["name"], row["model"], row["human"]] for row in generation_rows(summary.get("generation") or {})]
    samples = [[one["title"], one["prompt"], one["text"]] for one in summary["samples"]["texts"]]
    return {
        "results": (RESULT_COLUMNS, results),
        "writing": (("measure", "model", "human"), writing),
        "samples": (("title", "prompt", "text"), samples),
    }
