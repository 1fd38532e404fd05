"""What a run that trained an adapter leaves beside its checkpoints: the adapter as PEFT loads it."""

from __future__ import annotations

from pathlib import Path

from common.files import atomic_directory
from common.runs import Run
from inference.loading import load_run
from model.adapters.files import save_adapter
from model.convert.opening import adapter_of

DIRECTORY = "adapter"


def leave_adapter(run: Run) -> Path | None:
    """Write the adapter of the best checkpoint to `RUN/adapter`; None where the run has trained the whole model.

    It is read back from the checkpoint, as whoever uses the run will read it.

    Raises:
        UserError: it cannot be loaded.
    """
    loaded = load_run(run, device="cpu")
    config = adapter_of(loaded.config, run)
    if config is None:
        return None
    with atomic_directory(run.path / DIRECTORY) as directory:
        save_adapter(loaded.model, config, directory, base=loaded.config["start_from"])
    return run.path / DIRECTORY


def how_to_load(run: Run, start_from: str, adapter: Path | None) -> list[str]:
    """Commands and lines of Python that load what was trained."""
    name = run.path.as_posix()
    lines = [f"python sample.py --run {name} --ask 'Your question'"]
    if adapter is None:
        return [*lines, f"python -m model.convert to-hf {name} OUT  # for transformers and vLLM"]
    return [
        *lines,
        f"python -m model.convert to-hf {name} OUT  # merged into the base",
        "from peft import PeftModel; from transformers import AutoModelForCausalLM",
        f"base = AutoModelForCausalLM.from_pretrained({start_from!r})  # a run: first python -m model.convert to-hf",
        f"model = PeftModel.from_pretrained(base, {adapter.as_posix()!r})",
    ]
