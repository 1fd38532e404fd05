"""What the stages of a run are measured on: the held-out part of each, and prompts that all of them continue."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from common.cli import from_dict
from common.errors import UserError
from common.files import read_json, sha256_of
from common.hub import local_model
from common.runs import Run, choose_checkpoint, find_run
from data_pipeline.examples.dataset import ExampleOptions, ExampleSet, load_examples
from data_pipeline.examples.records import as_json
from data_pipeline.tokenizer import Tokenizer
from evaluation.sentences import Unit, split_lines, split_sentences
from inference import SamplingOptions, read_config
from inference.asking import prompt_style
from model.adapters.config import AdapterConfig
from model.convert.opening import adapter_of
from model.convert.source import read_config_file

SAMPLES = 8  # of each prompt
OPTIONS = SamplingOptions(max_new_tokens=128, temperature=0.8, top_k=50)
REFERENCE_TEXTS, REFERENCE_LENGTH = 32, 2000  # texts by people to compare with, and their characters at most


@dataclass(frozen=True)
class Part:
    """What one stage is trained on and held out from, as its config says."""

    name: str
    files: tuple[str, ...]
    options: ExampleOptions

    @staticmethod
    def of(config: Mapping[str, Any]) -> Part:
        """From the whole config of a stage's run, as in config.json. Raises UserError when it is damaged."""
        try:
            examples, context = config["examples"], int(config["model"]["context_length"])
            adapter = from_dict(AdapterConfig, config.get("adapter") or {}, where="adapter")
            files = tuple(str(path) for path in examples["files"])
            values = {field.name: examples[field.name] for field in fields(ExampleOptions)}
            name = Path(files[0]).stem
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise UserError(
                f"the config of stage {config.get('name')} names no examples ({error!r}); a stage is a run that "
                "train.py made of a config with examples.stages"
            ) from error
        options = from_dict(ExampleOptions, values, where=f"config of {config.get('name')}: examples")
        # One token more than the model reads, because the last one is only ever predicted: as in training.
        return Part(name, files, replace(options, max_length=min(options.max_length, context - adapter.positions + 1)))


@dataclass(frozen=True)
class HeldOut:
    """The held-out examples of a part; None where it holds out none, or they cannot be read."""

    part: Part
    examples: ExampleSet | None

    @cached_property
    def fingerprint(self) -> str | None:
        return None if self.examples is None else self.examples.fingerprint

    def texts(self, tokenizer: Tokenizer) -> list[str]:
        """What is learned of each example, as text."""
        if self.examples is None:
            return []
        ends = set(tokenizer.eos_ids)
        numbers = range(len(self.examples))
        learned = (self.examples.ids(number)[self.examples.learned(number)].tolist() for number in numbers)
        texts = (tokenizer.decode([token for token in ids if token not in ends]) for ids in learned)
        return [text for text in texts if text.strip()]


def load_held_out(part: Part, tokenizer: Tokenizer, notes: list[str]) -> HeldOut:
    """The held-out examples of `part`; why there are none is added to `notes`."""
    try:
        examples = load_examples(part.files, tokenizer, part.options).validation
    except UserError as error:
        notes.append(f"the held-out part of {part.name} cannot be read: {error}")
        return HeldOut(part, None)
    if examples is None:
        notes.append(
            f"nothing of {part.name} is held out, so no perplexity is measured on it; give examples.validation_files "
            "or examples.validation_fraction"
        )
    return HeldOut(part, examples)


def reference_texts(parts: Sequence[HeldOut], tokenizer: Tokenizer) -> list[str]:
    """Texts by people, as many from each part, for the measures of generated text to be compared with."""
    share = max(1, REFERENCE_TEXTS // max(1, len(parts)))
    return [text[:REFERENCE_LENGTH] for part in parts for text in part.texts(tokenizer)[:share]]


def unit_of(texts: Sequence[str]) -> Unit:
    """What follows one another in such texts: lines where these are more than the sentences, as in poems and songs."""
    lines, sentences = (sum(len(split(text)) for text in texts) for split in (split_lines, split_sentences))
    return "lines" if lines > sentences else "sentences"


@dataclass(frozen=True)
class Prompts:
    """What every model continues, asked as the examples of the first stage ask."""

    texts: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]

    @staticmethod
    def of(run: Run, tokenizer: Tokenizer) -> Prompts:
        """The validation prompts of `run`, or the beginning of a text where it has none."""
        texts = tuple((read_config(run).get("validation") or {}).get("prompts") or ("",))
        style = prompt_style(run)
        return Prompts(texts, tuple(tuple(style.ids(tokenizer, text)) for text in texts))

    @property
    def key(self) -> str:
        """Equal for equal prompts and options."""
        return hashlib.sha256(as_json([self.ids, vars(OPTIONS), SAMPLES]).encode()).hexdigest()


def identity_of(place: str) -> str:
    """Changes when the weights at `place` do, which is a run, or a directory of Hugging Face or an address of its hub.

    Raises:
        UserError: there are none, or they are damaged.
    """
    directory = local_model(place)
    config_file = directory / "config.json"
    if config_file.is_file() and "model_type" in read_config_file(config_file):
        files = [config_file, *sorted(directory.glob("*.safetensors")), *sorted(directory.glob("*.bin"))]
        return _digest([sha256_of(file) for file in files])
    run = find_run(place)
    weights = choose_checkpoint(run).weights
    sha256 = str(read_json(weights.parent / "manifest.json")["files"][weights.name]["sha256"])
    config = read_config(run)
    # An adapter means something on its base only.
    base = [identity_of(str(config.get("start_from")))] if adapter_of(config, run) is not None else []
    return _digest([sha256, *base])


def _digest(parts: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
