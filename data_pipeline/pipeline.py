"""The whole road from raw text to a dataset directory, stage by stage."""

from __future__ import annotations

import hashlib
import time
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from common.cli import to_dict
from common.files import only_process_in, sha256_of
from data_pipeline import cleaning, collect, encoding, manifest, tokenizer_training
from data_pipeline.config import SPECIAL_TOKENS, DataConfig, TokenizerConfig
from data_pipeline.config_checks import check
from data_pipeline.dedup import duplicates, evaluation_texts, sketches, split
from data_pipeline.executors import Run, check_executor, open_executor
from data_pipeline.quality import character_model, filters, signals
from data_pipeline.report import render
from data_pipeline.stages import StageResult, StageRunner, input_tasks
from data_pipeline.tokenizer import Tokenizer

STAGE_COUNT = 15


def curate(config: DataConfig, out: Path, workers: int, executor: str = "processes") -> dict[str, Any]:
    """Bring the dataset in `out` up to date with `config` and return its manifest.

    The result does not depend on `workers` or `executor` (see `open_executor`). While anything is being recomputed
    `out` has no manifest, so no reader can take an old index for a new shard.

    Raises:
        UserError: a source cannot be read, two sources share a name, too little text is left, or the executor cannot
            be used.
    """
    check(config)
    check_executor(executor)
    started = time.perf_counter()
    stages = out / "stages"
    with ExitStack() as stack:
        stack.enter_context(only_process_in(stages))
        run = Run.begin(stages / "run")
        parts = collect.tasks_of(collect.plan(config.sources, config.collection, out.parent / "downloads"))
        chosen = stack.enter_context(open_executor(executor, workers, run, collect.local_files(parts.values())))
        runner = StageRunner(
            stages,
            chosen,
            run,
            STAGE_COUNT + bool(config.decontamination.patterns),
            on_work=lambda: (out / "manifest.json").unlink(missing_ok=True),
        )
        filtered = _curate_text(runner, config, parts)
        assigned, sizes = _split(runner, config, _deduplicate(runner, config, filtered))
        tokenizer = _train_tokenizer(runner, config, assigned, sizes)
        packed = _encode(runner, config, assigned, tokenizer)
        result = manifest.publish(config, out, runner.results, tokenizer, packed)
        render.bring_up_to_date(out, chosen)
    print(manifest.summary(result, out, time.perf_counter() - started), flush=True)
    return result


def _curate_text(runner: StageRunner, config: DataConfig, parts: dict[str, collect.Part]) -> StageResult:
    """Collect, clean, learn what good text reads like, measure and filter."""
    collected = runner.run(
        "collect",
        collect.collect_part,
        parts,
        to_dict(config.collection),
        keys={task: _identity(part) for task, part in parts.items()},
    )
    cleaned = runner.run(
        "clean",
        cleaning.clean_shard,
        {task: cleaning.CleanArgument(path, config.cleaning) for task, path in input_tasks(collected).items()},
        to_dict(config.cleaning),
        own=[collected],
    )
    reference = _train_reference(runner, config, parts, cleaned)
    model = next(iter(reference.paths(".npz")), None)
    measured = runner.run(
        "measure",
        signals.measure_shard,
        {task: signals.MeasureArgument(path, config.measures, model) for task, path in input_tasks(cleaned).items()},
        signals.settings(config.measures),
        own=[cleaned],
        whole=[reference],
    )
    limits = filters.resolved(config.filters, measured.paths(".signals.npz"))
    return runner.run(
        "filter",
        filters.filter_shard,
        {
            task: filters.FilterArgument(path, measured.directory / f"{task}.signals.npz", limits)
            for task, path in input_tasks(cleaned).items()
        },
        to_dict(limits),
        own=[cleaned, measured],
    )


def _train_reference(
    runner: StageRunner, config: DataConfig, parts: dict[str, collect.Part], cleaned: StageResult
) -> StageResult:
    """Train the character model of the reference sources, where there are any."""
    wanted = config.measures.reference_sources
    paths = [path for task, path in input_tasks(cleaned).items() if parts[task.partition("-")[0]].source.name in wanted]
    size = config.measures.reference_bytes
    argument = character_model.TrainArgument(tuple(paths), size)
    texts = [cleaned.hashes[path.name] for path in paths]
    return runner.run(
        "reference",
        character_model.train_reference,
        {"reference": argument} if wanted else {},
        [size, texts],
    )


@dataclass(frozen=True)
class _Deduplicated:
    """What deduplication left, and what the split has to know of it."""

    documents: StageResult
    sketched: StageResult  # of these documents, or of those before, of which `verdicts` tells the ones that went
    found: StageResult
    verdicts: Path | None


def _deduplicate(runner: StageRunner, config: DataConfig, filtered: StageResult) -> _Deduplicated:
    """Find and remove duplicates, documents that hold evaluation texts, and repeated paragraphs."""
    dedup = config.deduplication
    shards = input_tasks(filtered)
    evaluation = _read_evaluation(runner, config)
    texts = evaluation[0].directory if evaluation else None
    sketched = runner.run(
        "sketch",
        sketches.sketch_shard,
        {task: sketches.SketchArgument(path, dedup, texts) for task, path in shards.items()},
        [dedup.shingle_words, dedup.bands, dedup.rows, dedup.paragraphs and dedup.paragraph_characters],
        own=[filtered],
        whole=evaluation,
    )
    tables = sketched.paths(".documents.npy")
    found = runner.run(
        "duplicates",
        duplicates.find_duplicates,
        {"all": duplicates.FindArgument(tables, dedup, config.decontamination, texts)},
        [to_dict(dedup), to_dict(config.decontamination)],
        whole=[sketched, *evaluation],
    )
    starts, _ = _numbering(sketched)
    kept = runner.run(
        "deduplicate",
        duplicates.remove_duplicates,
        {task: duplicates.RemoveArgument(path, found.directory, starts[task], dedup) for task, path in shards.items()},
        [dedup.paragraphs and dedup.shingle_words],
        own=[filtered],
        whole=[found],
        keys=starts,
    )
    if dedup.paragraphs:  # documents are no longer what they were, and were sketched again
        return _Deduplicated(kept, kept, found, None)
    return _Deduplicated(kept, sketched, found, found.directory / "all.verdicts.npy")


def _split(
    runner: StageRunner, config: DataConfig, left: _Deduplicated
) -> tuple[StageResult, dict[int, dict[str, dict[str, int]]]]:
    """Hold documents out, drop those that resemble training text, label the rest; also documents and bytes by split."""
    tables = left.sketched.paths(".documents.npy")
    starts, ends = _numbering(left.sketched)
    drawn = runner.run(
        "draw",
        split.draw_held_out,
        {"all": split.DrawArgument(tables, left.verdicts, config.split)},
        to_dict(config.split),
        whole=[left.sketched, left.found],
    )
    sides = drawn.directory / "all.sides.npy"
    held_out, index = drawn.directory / "all.held_out.npy", drawn.directory / "all.index"
    compared = runner.run(
        "compare",
        split.compare_shard,
        {
            task: split.CompareArgument(table, starts[task], sides, held_out, index, config.split)
            for task, table in zip(starts, tables, strict=True)
        },
        to_dict(config.split),
        own=[left.sketched],
        whole=[drawn],
        keys=starts,
    )
    leaked = split.leaked_by_shard(compared.paths(".npy"), starts, ends)
    assigned = runner.run(
        "split",
        split.assign_shard,
        {
            task: split.AssignArgument(path, sides, leaked[task], starts[task], ends[task])
            for task, path in input_tasks(left.documents).items()
        },
        [],
        own=[left.documents],
        whole=[drawn, compared],
        keys=starts,
    )
    return assigned, split.totals([counts.details for counts in assigned.tasks.values()])


def _read_evaluation(runner: StageRunner, config: DataConfig) -> list[StageResult]:
    """Read the evaluation texts, where there are any to keep out of the training text."""
    if not config.decontamination.patterns:
        return []
    files, states = evaluation_texts.plan(config.decontamination, config.collection)
    parts = (config.decontamination, config.collection, config.cleaning)
    return [
        runner.run(
            "evaluation",
            evaluation_texts.read_evaluation,
            {"evaluation": evaluation_texts.EvaluationArgument(files, *parts)},
            [states, *map(to_dict, parts)],
        )
    ]


def _numbering(stage: StageResult) -> tuple[dict[str, int], dict[str, int]]:
    """The number of the first document of each shard, and of the next shard's."""
    sizes = {task: counts.documents_out for task, counts in stage.tasks.items()}
    ends = dict(zip(sizes, accumulate(sizes.values()), strict=True))
    return {task: ends[task] - size for task, size in sizes.items()}, ends


def _train_tokenizer(
    runner: StageRunner, config: DataConfig, assigned: StageResult, sizes: dict[int, dict[str, dict[str, int]]]
) -> StageResult:
    source_bytes = {source: by_split["train"]["bytes"] for source, by_split in sizes.items()}
    return runner.run(
        "tokenizer",
        tokenizer_training.train_tokenizer,
        {"tokenizer": tokenizer_training.TrainArgument(assigned.paths(".jsonl"), source_bytes, config.tokenizer)},
        [
            list(SPECIAL_TOKENS),
            to_dict(config.tokenizer),
            _content(config.tokenizer),
        ],
        whole=[assigned],
    )


def _encode(runner: StageRunner, config: DataConfig, assigned: StageResult, tokenizer: StageResult) -> StageResult:
    model = tokenizer.directory / Tokenizer.file_name
    encoded = runner.run(
        "encode",
        encoding.encode_shard,
        {task: encoding.EncodeArgument(path, model) for task, path in input_tasks(assigned).items()},
        [],
        own=[assigned],
        whole=[tokenizer],
    )
    tokens = encoded.paths(".tokens")
    arranged = runner.run(
        "arrange",
        encoding.arrange_split,
        {name: encoding.ArrangeArgument(tokens, name, config.shards) for name in ("train", "val")},
        to_dict(config.shards),
        whole=[encoded],
    )
    chosen = Tokenizer(model)
    vocab_size, has_bos = chosen.vocab_size, chosen.has_bos
    names = tuple(source.name for source in config.sources)
    arguments = {}
    for name, counts in arranged.tasks.items():
        layout, ends = arranged.directory / f"{name}.layout.npy", counts.details["ends"]
        for number, (first, stop) in enumerate(pairwise([0, *ends])):
            arguments[f"{name}_{number:05d}"] = encoding.PackArgument(
                tokens, layout, first, stop, vocab_size, has_bos, names
            )
    return runner.run("pack", encoding.pack_shard, arguments, [vocab_size, has_bos, names], whole=[encoded, arranged])


def _content(config: TokenizerConfig) -> str:
    """sha256 of the file or files that the tokenizer is read from, if it is."""
    if config.kind == "existing":
        return hashlib.sha256(tokenizer_training.ready_made(config) or b"").hexdigest()
    return sha256_of(Path(config.encoding)) if Path(config.encoding).is_file() else ""


def _identity(part: collect.Part) -> list[Any]:
    return [type(part.source).__name__, to_dict(part.source), part.number, part.state]
