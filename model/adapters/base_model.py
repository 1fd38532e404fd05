"""The base of an adapter under the name by which transformers, and so PEFT, can load it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from common.errors import UserError
from common.hub import is_address, repository_of
from common.runs import Run, find_run
from model.config import ModelConfig
from model.convert.registry import family_of_ours


@dataclass(frozen=True)
class BaseModel:
    """What `AutoModelForCausalLM.from_pretrained` is given."""

    name: str
    """ORG/NAME of the hub, or a directory."""
    revision: str | None = None
    """Of the hub, where it is not the newest."""
    run: str | None = None
    """The run of ours that is exported as the directory `name`; None where transformers can load the base as it is."""
    own_code: bool = False
    """Whether it is of no stock family, so that its directory holds code of its own."""

    @property
    def export(self) -> str | None:
        """The command that makes the directory, where one has to."""
        return None if self.run is None else f"python -m model.convert to-hf {self.run} {self.name}"

    @property
    def arguments(self) -> str:
        """Those of `from_pretrained`, as Python."""
        revision = "" if self.revision is None else f", revision={self.revision!r}"
        return f"{self.name!r}{revision}{', trust_remote_code=True' if self.own_code else ''}"


def base_model(start_from: str, config: ModelConfig) -> BaseModel:
    """The base that `start_from` names, of the architecture `config`: a run, a Hugging Face directory, or hf://ORG/NAME.

    What is none of these any more keeps its name.
    """
    if is_address(start_from):
        return BaseModel(*repository_of(start_from))
    own_code = family_of_ours(config) is None
    try:
        run = find_run(start_from)
    except UserError:
        return BaseModel(start_from, own_code=own_code)
    if not run.checkpoint_root.is_dir():  # a directory of Hugging Face
        return BaseModel(start_from, own_code=own_code)
    return BaseModel(exported_name(run), None, run.path.as_posix(), own_code)


def exported_name(run: Run) -> str:
    """The directory that the instructions export a run to."""
    return (Path("exported") / run.path.resolve().name).as_posix()
