"""From a Hugging Face directory or hub to a run of this project, from which one can sample, fine-tune and export."""

from __future__ import annotations

from pathlib import Path

from common.cli import to_dict
from common.errors import UserError
from common.files import write_json
from common.hub import is_address
from common.runs import Checkpoint, Run, write_checkpoint_manifest
from data_pipeline.tokenizer import Tokenizer
from data_pipeline.tokenizer_import import pack
from model.convert.output import new_directory
from model.convert.source import Source, open_theirs
from model.tensor_files import SafetensorsWriter


def import_directory(place: str | Path, out: Path) -> Run:
    """Write the run `out` with one checkpoint, of step 0, that holds the weights of `place` in their own dtype.

    Args:
        place: a Hugging Face directory, or hf://ORG/NAME.

    Raises:
        UserError: `place` is damaged, or something that this decoder cannot express; `out` exists.
    """
    source = open_theirs(place)
    tokenizer = pack(source.path)
    origin = source.path.name  # of the hub a commit
    if is_address(place):
        origin = f"{str(place).partition('@')[0]}@{origin}"
    with new_directory(out) as path:
        run = Run(path)
        run.tokenizer.write_bytes(tokenizer)
        checked = Tokenizer(run.tokenizer)
        if checked.vocab_size > source.config.vocab_size:
            raise UserError(
                f"{place}: its tokenizer has {checked.vocab_size:,} ids, but vocab_size in config.json is "
                f"{source.config.vocab_size:,}; they do not belong together"
            )
        values = {"name": out.name, "model": to_dict(source.config), "converted_from": origin}
        write_json(run.config, values)
        _write_checkpoint(Checkpoint(run.checkpoint_path(0), 0), source, checked)
    return Run(out)


def _write_checkpoint(checkpoint: Checkpoint, source: Source, tokenizer: Tokenizer) -> None:
    checkpoint.path.mkdir(parents=True)
    with open(checkpoint.path / "model.safetensors", "wb") as file:
        writer = SafetensorsWriter(file, source.layouts())
        for name, tensor in source.tensors():
            writer.write(name, tensor)
        writer.finish()
    state = {"step": 0, "tokens": 0, "seconds": 0.0, "val_loss": None, "tokenizer_sha256": tokenizer.sha256}
    write_json(checkpoint.path / "state.json", state)
    write_checkpoint_manifest(checkpoint.path)
