"""What merging an adapter into its base costs: loss on the held-out examples, and how far the logits move.

python -m evaluation.merging RUN
"""

from __future__ import annotations

from common.threads import bind_threads, keep_freed_memory

bind_threads()
keep_freed_memory()

from collections.abc import Sequence  # noqa: E402
from dataclasses import asdict, dataclass  # noqa: E402

import torch  # noqa: E402
import tyro  # noqa: E402

from common.cli import run_command  # noqa: E402
from common.errors import UserError  # noqa: E402
from common.files import write_json  # noqa: E402
from common.runs import Run, find_run  # noqa: E402
from data_pipeline.examples.dataset import ExampleSet  # noqa: E402
from evaluation.example_loss import mean_loss  # noqa: E402
from evaluation.fine_tuning_text import merging_table  # noqa: E402
from evaluation.stage_parts import Part, load_held_out  # noqa: E402
from inference import load_run  # noqa: E402
from model import Decoder  # noqa: E402
from model.convert.opening import MergeBase, adapter_of, is_quantized, load_merged  # noqa: E402
from model.device import DeviceName  # noqa: E402

RESULT = "merging.json"


@dataclass(frozen=True)
class Merging:
    """One way to use what a run has trained."""

    name: str
    validation_loss: float
    """In nats a target, on the held-out examples, in fp32."""
    largest_logit_difference: float
    """From the model as it was trained, over all tokens of the held-out examples."""


@dataclass(frozen=True)
class MergingCommand:
    """Compare a run that trained an adapter with what it is when the adapter is merged into the base."""

    run: tyro.conf.Positional[str]
    """Name below runs/, or path, of the run."""
    checkpoint: str = "best"
    """"best" (lowest validation loss), "last", or a step."""
    device: DeviceName = "auto"
    """Where to compute."""


def main(argv: Sequence[str]) -> None:
    """Parse the command line, measure, write merging.json and print. A bad flag ends the process with status 2."""
    command = tyro.cli(MergingCommand, args=list(argv), prog="python -m evaluation.merging")
    run = find_run(command.run)
    step, rows = measure_merging(run, command.checkpoint, command.device)
    result = {"checkpoint_step": step, "rows": [asdict(row) for row in rows]}
    write_json(run.path / RESULT, result)
    print("\n".join(merging_table(result)))
    print(f"result {run.path / RESULT}; python -m evaluation.fine_tuning {run.path} puts it into summary.md")


def measure_merging(run: Run, checkpoint: str, device: DeviceName) -> tuple[int, list[Merging]]:
    """The step of the checkpoint, and a row for every way: as trained, and merged into each base there is.

    Raises:
        UserError: the run trained no adapter, or one that cannot be merged, or there are no held-out examples.
    """
    loaded = load_run(run, checkpoint, device)
    if adapter_of(loaded.config, run) is None:
        raise UserError(f"{run.path} trained the whole model, so there is nothing to merge")
    notes: list[str] = []
    held_out = load_held_out(Part.of(loaded.config), loaded.tokenizer, notes).examples
    if held_out is None:
        raise UserError(f"nothing to measure {run.path} on: {'; '.join(notes)}")
    rows = [Merging("as trained", mean_loss(loaded.model, held_out, loaded.device), 0.0)]
    ways: dict[str, MergeBase] = {"merged into the base": "original"}
    if is_quantized(loaded.config, run):
        ways = {"merged into the dequantized base": "dequantized", "merged into the original base": "original"}
    for name, merge_base in ways.items():
        merged = load_merged(run, loaded.checkpoint, loaded.config, loaded.device, merge_base).eval()
        difference = largest_logit_difference(loaded.model, merged, held_out, loaded.device)
        rows.append(Merging(name, mean_loss(merged, held_out, loaded.device), difference))
    return loaded.checkpoint.step, rows


@torch.no_grad()
def largest_logit_difference(first: Decoder, second: Decoder, examples: ExampleSet, device: torch.device) -> float:
    """Over all tokens of all examples, one example at a time: logits are large."""
    largest = 0.0
    for number in range(len(examples)):
        ids = torch.from_numpy(examples.ids(number)[:-1]).long()[None].to(device)
        largest = max(largest, (first(ids) - second(ids)).abs().max().item())
    return largest


if __name__ == "__main__":
    run_command(main)
