"""Run directories as a fine-tuning run leaves them, for the tests of what is made from them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from common.files import write_json
from common.runs import Run

PROMPTS = ("Pregunta: Descríbeme a Pikachu\nRespuesta:", "Pregunta: ¿Qué es | Charizard?\nRespuesta:")
LOADING = ["from peft import PeftModel", "model = PeftModel.from_pretrained(base, 'runs/pokemon/adapter')"]


def curve(steps: int = 300, end: float = 1.4, noise: float = 0.12, seed: int = 0) -> list[float]:
    """A loss that falls from 3.3 to about `end`, with noise."""
    rng = np.random.default_rng(seed)
    time = np.arange(1, steps + 1) / steps
    return [float(loss) for loss in end + (3.3 - end) * np.exp(-4 * time) + rng.normal(0, noise, steps)]


def make_rows(losses: list[float], validation: dict[int, float] | None = None, epochs: int = 3) -> list[dict[str, Any]]:
    """Logged steps as the training loop writes them, with a validation at the steps of `validation`."""
    rows: list[dict[str, Any]] = []
    for step, loss in enumerate(losses, start=1):
        rows.append(
            {
                "step": step,
                "tokens": 512 * step,
                "seconds": round(1.37 * step, 3),
                "epoch": epochs * step / len(losses),
                "train/loss": loss,
                "lr": 2e-4 * (1 - step / len(losses)),
                "grad_norm": None if step == 3 else 1.5,
                "tokens_per_second": 373.7,
                "memory_mb": 600.0 + step % 7,
            }
        )
        if validation and step in validation:
            rows[-1] |= {"val/loss": validation[step], "val/perplexity": math.exp(validation[step])}
    return rows


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def make_run(path: Path) -> Run:
    """300 noisy steps over three epochs, a validation every 50, two prompts, all that a run may hold."""
    run = Run(path)
    run.path.mkdir()
    validation = {step: 1.5 + 1.9 * math.exp(-step / 75) for step in range(50, 301, 50)}
    write_lines(run.metrics, make_rows(curve(), validation))
    samples = [
        {"step": step, "tokens": 512 * step, "prompt": prompt, "text": text}
        for step, text in ((0, " of the\x1b[31m the\n\n```|"), (150, " Un Pokémon."), (300, " Pikachu es eléctrico."))
        for prompt in PROMPTS
    ]
    write_lines(run.samples, samples)
    write_json(run.config, {"seed": 1})
    write_json(run.path / "adapter.json", {"r": 16, "trainable_parameters": 2_359_296, "total_parameters": 126_799_104})
    problems = [{"path": "pokemon.txt", "line": line, "reason": "no answer"} for line in range(7)]
    write_json(run.path / "examples.json", {"records": 1442, "lengths": {"longest": 256}, "problems": problems})
    return run
