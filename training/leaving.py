"""What a run that trained an adapter leaves beside its checkpoints: the adapter as PEFT loads it."""

from __future__ import annotations

from pathlib import Path

from common.cli import from_dict
from common.errors import UserError
from common.files import atomic_directory, write_json
from common.runs import Run
from inference.asking import EXAMPLES, prompt_style
from inference.loading import load_run, read_config
from model import ModelConfig
from model.adapters.base_model import base_model, exported_name
from model.adapters.card import peft_loads
from model.adapters.files import save_adapter
from model.convert.opening import NEVER_MERGED, adapter_of, is_quantized

DIRECTORY = "adapter"


def leave_adapter(run: Run) -> Path | None:
    """Write the adapter of the best checkpoint to `RUN/adapter`, with how it is asked; None where the run has trained
    the whole model.

    It is read back from the checkpoint, as whoever uses the run will read it.

    Raises:
        UserError: it cannot be loaded, or not be written.
    """
    loaded = load_run(run, device="cpu")
    config = adapter_of(loaded.config, run)
    if config is None:
        return None
    try:
        with atomic_directory(run.path / DIRECTORY) as directory:
            save_adapter(loaded.model, config, directory, base=loaded.config["start_from"])
            write_json(directory / EXAMPLES, prompt_style(run).to_dict())  # which PEFT does not look at
    except OSError as error:
        raise UserError(f"{run.path / DIRECTORY} could not be written: {error}") from error
    return run.path / DIRECTORY


def how_to_sample(run: Run) -> str:
    """The command that has a fine-tuned run write: a question to it, or the beginning of a text if it learned texts."""
    return f"python sample.py --run {run.path.as_posix()} {_words(run)}"


def _words(run: Run) -> str:
    learned_texts = prompt_style(run).style.format == "text"
    return "--prompt 'The beginning'" if learned_texts else "--ask 'Your question'"


def how_to_load(run: Run, start_from: str, adapter: Path | None) -> list[str]:
    """Commands, and behind them lines of Python, that load what was trained."""
    name, exported = run.path.as_posix(), exported_name(run)
    lines = [how_to_sample(run)]
    if adapter is None:
        return [*lines, f"python -m model.convert to-hf {name} {exported}  # for transformers and vLLM"]
    values = read_config(run)
    config = adapter_of(values, run)
    assert config is not None
    base = base_model(start_from, from_dict(ModelConfig, values["model"], where=f"{run.config}: model"))
    if config.method not in NEVER_MERGED:
        lines.append(f"python -m model.convert to-hf {name} {exported}  # merged into the base")
        if is_quantized(values, run):
            lines.append(f"python -m evaluation.merging {name}  # what merging costs, into which base")
    if base.run is not None and not peft_loads(config.method, base):
        lines.append(f"python sample.py --run {base.run} --adapter {adapter.as_posix()} {_words(run)}")
    if not peft_loads(config.method, base):
        return lines
    if base.export is not None:
        lines.append(f"{base.export}  # the base, for what follows")
    return [
        *lines,
        "from peft import PeftModel",
        "from transformers import AutoModelForCausalLM",
        f"base = AutoModelForCausalLM.from_pretrained({base.arguments})",
        f"model = PeftModel.from_pretrained(base, {adapter.as_posix()!r})",
    ]
