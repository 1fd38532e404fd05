"""What a run in stages keeps and forgets: every stage's model on every part, and how varied its text is.

python -m evaluation.stages NAME makes it all again for the stages NAME_stage_1, NAME_stage_2, ...
"""

from __future__ import annotations

from common.threads import bind_threads, keep_freed_memory

bind_threads()
keep_freed_memory()

import math  # noqa: E402
from collections.abc import Callable, Sequence  # noqa: E402
from dataclasses import asdict, dataclass, field, replace  # noqa: E402
from functools import partial  # noqa: E402
from pathlib import Path  # noqa: E402

import tyro  # noqa: E402

from common.cli import from_dict, run_command  # noqa: E402
from common.errors import UserError  # noqa: E402
from common.files import atomic_write, read_json, write_json  # noqa: E402
from common.runs import RUNS_ROOT, Run  # noqa: E402
from data_pipeline.tokenizer import Tokenizer  # noqa: E402
from evaluation.coherence import Coherence, SentenceEncoder, measure_coherence, measure_repetition  # noqa: E402
from evaluation.diversity import WORD_BUDGET, measure_diversity, split_words  # noqa: E402
from evaluation.example_loss import mean_loss  # noqa: E402
from evaluation.fine_tuning_plots import series  # noqa: E402
from evaluation.fine_tuning_summary import read_metrics  # noqa: E402
from evaluation.sentences import Unit  # noqa: E402
from evaluation.stage_parts import (  # noqa: E402
    OPTIONS,
    SAMPLES,
    HeldOut,
    Part,
    Prompts,
    identity_of,
    load_held_out,
    reference_texts,
    unit_of,
)
from evaluation.stage_plots import draw_figures  # noqa: E402
from evaluation.stage_results import Stages, Varied, forgetting  # noqa: E402
from evaluation.stage_text import describe  # noqa: E402
from inference import generate, load_run, read_config  # noqa: E402
from inference.loading import load_base  # noqa: E402
from model import Decoder  # noqa: E402
from model.device import DeviceName  # noqa: E402

RESULT, TEXT = "stages.json", "stages.md"
FEWEST_WORDS = 100  # that texts are compared at, if they have them
HUMAN = "held-out text"


@dataclass(frozen=True)
class Measured:
    """What was found out about one model, or about texts by people. It stands in stages.json for the next time."""

    place: str
    identity: str
    """Of the weights; equal ones are not measured again."""
    losses: dict[str, float] = field(default_factory=dict)
    """Mean loss of a target in nats, by the fingerprint of the held-out examples."""
    prompts: str = ""
    """Key of the prompts that `texts` continue."""
    texts: tuple[str, ...] = ()
    coherence: Coherence | None = None
    """None where its package is missing."""
    unit: Unit = "sentences"
    """What the coherence is that of."""


@dataclass(frozen=True)
class Model:
    """One row of the matrix: a model that may have to be loaded."""

    name: str
    place: str
    load: Callable[[], Decoder]


def write_stages(runs: Sequence[Run], parts: Sequence[Part]) -> Stages:
    """Measure the stages so far and write stages.json, stages.md and the figures into the directory of their name.

    Every model, that before the first stage included, is scored on the held-out part of every stage, also of those to
    come, and continues the validation prompts. What stages.json already says of the same weights is not done again.

    Args:
        runs: NAME_stage_1, ..., in their order, as far as they are trained.
        parts: what each stage is trained on, that of those to come included: `Part.of` the config of each.

    Raises:
        UserError: the tokenizer or the way to ask of the first stage is missing or damaged.
    """
    assert runs and len(parts) >= len(runs)
    directory = runs[0].path.parent / runs[0].name.removesuffix("_stage_1")
    notes: list[str] = []
    tokenizer = Tokenizer(runs[0].tokenizer)
    held_out = [load_held_out(part, tokenizer, notes) for part in parts]
    prompts = Prompts.of(runs[0], tokenizer)
    saved = _saved(directory)
    models = _models(runs)
    measured = [_measure(model, held_out, prompts, tokenizer, saved, notes) for model in models]
    known = [(model.name, found) for model, found in zip(models, measured, strict=True) if found is not None]
    human = reference_texts(held_out, tokenizer)
    unit = unit_of(human)
    if human:
        earlier = next((found for found in saved if found.place == HUMAN and found.texts == tuple(human)), None)
        known.append((HUMAN, earlier or Measured(HUMAN, HUMAN, texts=tuple(human))))
    coherent = _with_coherence([found for _, found in known], unit, notes)
    rows = [_losses(found, held_out) for found in measured]
    names = tuple(model.name for model in models)
    stages = Stages(
        name=directory.name,
        parts=tuple(part.name for part in parts),
        models=names,
        losses=tuple(rows),
        forgetting=tuple(forgetting(names, [row[column] for row in rows]) for column in range(len(parts))),
        varied=_varied([name for name, _ in known], coherent, unit),
        unit=unit,
        curves=tuple(_curve(run, notes) for run in runs),
        prompts=prompts.texts,
        samples=f"{SAMPLES} texts a prompt of at most {OPTIONS.max_new_tokens} tokens, temperature "
        f"{OPTIONS.temperature}, top-k {OPTIONS.top_k}",
        notes=tuple(notes),
    )
    _write(directory, stages, parts, coherent)
    return stages


def _models(runs: Sequence[Run]) -> list[Model]:
    """The model before the first stage and that after each."""
    config = read_config(runs[0])
    device: DeviceName = config.get("device") or "auto"
    stages = [
        Model(f"stage {number}", str(run.path), partial(_load, run, device)) for number, run in enumerate(runs, 1)
    ]
    return [Model("base", str(config.get("start_from")), partial(load_base, runs[0], device)), *stages]


def _load(run: Run, device: DeviceName) -> Decoder:
    return load_run(run, "best", device).model


def _measure(
    model: Model,
    held_out: Sequence[HeldOut],
    prompts: Prompts,
    tokenizer: Tokenizer,
    saved: Sequence[Measured],
    notes: list[str],
) -> Measured | None:
    """Everything about one model, what is known already included; None where nothing is, because it is gone."""
    try:
        identity = identity_of(model.place)
        known = next((found for found in saved if found.identity == identity), Measured(model.place, identity))
        missing = [part for part in held_out if part.fingerprint is not None and part.fingerprint not in known.losses]
        if not missing and known.prompts == prompts.key:
            return known
        network = model.load()
    except UserError as error:
        earlier = next((found for found in saved if found.place == model.place), None)
        figures = "nothing is known of it" if earlier is None else "its figures are those of the last time"
        notes.append(f"{model.name} ({model.place}) cannot be opened, so {figures}: {error}")
        return earlier
    device, losses = network.embedding.weight.device, dict(known.losses)
    for part in missing:
        assert part.examples is not None and part.fingerprint is not None
        if part.examples.lengths.max() - 1 > network.room:
            notes.append(
                f"{model.name} reads {network.room} tokens, too few for {part.part.name}: lower its max_length"
            )
            continue
        loss = mean_loss(network, part.examples, device)
        if math.isfinite(loss):
            losses[part.fingerprint] = loss
        else:
            notes.append(f"{model.name} has no finite loss on {part.part.name}: its training diverged")
    if known.prompts == prompts.key:
        return replace(known, losses=losses)
    texts = tuple(
        completion.text
        for number, ids in enumerate(prompts.ids)
        # A seed for each prompt: with the same one, a model that does not heed its prompt would write the same texts.
        for completion in generate(network, tokenizer, [ids], replace(OPTIONS, seed=number), SAMPLES)
    )
    return replace(known, losses=losses, prompts=prompts.key, texts=texts, coherence=None)


def _losses(measured: Measured | None, held_out: Sequence[HeldOut]) -> tuple[float | None, ...]:
    """The loss on every part, None where it is not known."""
    known = {} if measured is None else measured.losses
    return tuple(known.get(part.fingerprint or "") for part in held_out)


def _with_coherence(measured: Sequence[Measured], unit: Unit, notes: list[str]) -> list[Measured]:
    """All with the coherence of their texts by one scorer, if that is installed."""
    scorers = {None if found.coherence is None else found.coherence.scorer for found in measured}
    if len(scorers) == 1 and None not in scorers and all(found.unit == unit for found in measured):
        return list(measured)
    try:
        encoder = SentenceEncoder()
    except UserError as error:
        notes.append(str(error))
        return list(measured)
    return [
        found
        if found.coherence is not None and found.coherence.scorer == encoder.name and found.unit == unit
        else replace(found, coherence=measure_coherence(found.texts, encoder, unit), unit=unit)
        for found in measured
    ]


def _varied(names: Sequence[str], measured: Sequence[Measured], unit: Unit) -> tuple[Varied, ...]:
    """The measures of each one's texts, at the number of words that all of them have."""
    words = [sum(len(split_words(text)) for text in found.texts) for found in measured]
    budget = min(WORD_BUDGET, max(FEWEST_WORDS, min(words, default=0)))
    rows = []
    for name, found in zip(names, measured, strict=True):
        coherence = found.coherence if found.unit == unit else None
        rows.append(
            Varied(
                name=name,
                diversity=measure_diversity(found.texts, budget),
                coherence=None if coherence is None else coherence.coherence,
                unrelated=None if coherence is None else coherence.unrelated,
                repetition=measure_repetition(found.texts, unit),
                sample=found.texts[0] if found.texts else "",
            )
        )
    return tuple(rows)


def _curve(run: Run, notes: list[str]) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Steps and training losses of a stage; why there are none is added to `notes`."""
    try:
        rows, damaged = read_metrics(run)
    except UserError as error:
        notes.append(str(error))
        return (), ()
    notes += [f"{run.name}: {note}" for note in damaged]
    steps, losses = series(rows, "train/loss")
    return tuple(steps), tuple(losses)


def _saved(directory: Path) -> list[Measured]:
    """What stages.json says was measured; nothing where it is missing or damaged, which costs time only."""
    try:
        return [from_dict(Measured, values, where="") for values in read_json(directory / RESULT)["measured"]]
    except (OSError, ValueError, KeyError, TypeError, UserError):
        return []


def _write(directory: Path, stages: Stages, parts: Sequence[Part], measured: Sequence[Measured]) -> None:
    for name, image in draw_figures(stages).items():
        with atomic_write(directory / f"{name}.png", "wb") as file:
            file.write(image)
    with atomic_write(directory / TEXT) as file:
        file.write(describe(stages))
    whole = {**stages.to_dict(), "stages": [asdict(part) for part in parts], "measured": list(map(asdict, measured))}
    write_json(directory / RESULT, whole)  # last, so that it says that all of it was written


def stages_of(name: str) -> tuple[list[Run], list[Part]]:
    """The stages of a run that have a checkpoint, and the parts of these and of those to come.

    Raises:
        UserError: there is no such stage, or its config is damaged.
    """
    directory = RUNS_ROOT / Path(name).name
    runs: list[Run] = []
    while (run := Run(RUNS_ROOT / f"{directory.name}_stage_{len(runs) + 1}")).checkpoints():
        runs.append(run)
    if not runs:
        raise UserError(f"no {run.path} with a checkpoint; a config with examples.stages makes it with train.py")
    try:
        planned = [from_dict(Part, values, where="") for values in read_json(directory / RESULT)["stages"]]
    except (OSError, ValueError, KeyError, TypeError, UserError):
        planned = []
    return runs, [*(Part.of(read_config(run)) for run in runs), *planned[len(runs) :]]


@dataclass(frozen=True)
class StagesCommand:
    """Measure the stages of a run again, as far as they are trained, and print what they keep and forget."""

    name: tyro.conf.Positional[str]
    """NAME of the stages runs/NAME_stage_1, ..."""


def main(argv: Sequence[str]) -> None:
    """Parse the command line, measure, write and print. A bad flag ends the process with status 2."""
    command = tyro.cli(StagesCommand, args=list(argv), prog="python -m evaluation.stages")
    runs, parts = stages_of(command.name)
    stages = write_stages(runs, parts)
    print(describe(stages))
    print(f"figures and results in {RUNS_ROOT / stages.name}")


if __name__ == "__main__":
    run_command(main)
