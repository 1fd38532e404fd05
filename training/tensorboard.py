"""TensorBoard as a dashboard: event files in the run's directory, no account, no server until one looks at them."""

from __future__ import annotations

import sys
from typing import Any

from common.runs import Checkpoint
from training.histograms import Histogram
from training.job import Job


def start_tensorboard(job: Job, logged: int) -> TensorBoard | None:
    """TensorBoard when the config asks for it, or None, with a one-line reason where it cannot be had.

    What it has of steps after `logged` is purged.
    """
    if not job.config.tracking.tensorboard:
        return None
    try:
        return TensorBoard(job, logged)
    except Exception as error:  # not installed, not fit for what else is installed, or a disk that refuses
        print(
            f"tracking: TensorBoard cannot be used ({error}); install it with: pip install -c constraints.txt -e "
            "'.[tensorboard]'",
            file=sys.stderr,
        )
        return None


class TensorBoard:
    """Scalars, samples and histograms over steps, in `runs/<name>/tensorboard/`."""

    name = "TensorBoard"

    def __init__(self, job: Job, logged: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        directory = job.run.tensorboard
        # What a killed run wrote after the checkpoint it resumes from is purged: those steps come again.
        self._writer = SummaryWriter(str(directory), purge_step=logged + 1)
        print(f"tracking: TensorBoard, look at it with: tensorboard --logdir {directory}", file=sys.stderr)

    def log(self, row: dict[str, Any], samples: list[dict[str, Any]], histograms: dict[str, Histogram]) -> None:
        step, writer = row["step"], self._writer
        for key, value in row.items():
            if key != "step" and value is not None:
                writer.add_scalar(key, value, step)
        for number, sample in enumerate(samples, start=1):
            # Indented by four spaces a text is shown as it is, not as Markdown.
            lines = (sample["prompt"] + sample["text"]).splitlines()
            writer.add_text(f"samples/{number}", "\n".join(f"    {line}" for line in lines), step)
        for tag, taken in histograms.items():
            writer.add_histogram_raw(
                tag,
                min=taken.edges[0],
                max=taken.edges[-1],
                num=sum(taken.counts),
                sum=taken.total,
                sum_squares=taken.squares,
                bucket_limits=taken.edges[1:],
                bucket_counts=taken.counts,
                global_step=step,
            )

    def sync(self) -> None:
        self._writer.flush()

    def add_checkpoint(self, checkpoint: Checkpoint, best: bool) -> None:
        """TensorBoard keeps no files."""

    def close(self, failed: bool, hurried: bool) -> None:
        self._writer.close()
