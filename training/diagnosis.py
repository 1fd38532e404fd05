"""What is known at the moment training diverges, written beside the run before it stops."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from common.errors import UserError
from common.files import write_json
from model.tensor_files import some
from training.distribution import local_part
from training.job import Job
from training.plan import BatchSplit

MOST_DOCUMENTS = 64  # listed for one process


class TrainingDiverged(UserError):
    """The loss or its gradients are no longer finite."""

    def __init__(self, job: Job, symptom: str, report: str = "") -> None:
        checkpoints = job.run.checkpoints()
        back = f"the newest checkpoint is {checkpoints[-1].path}" if checkpoints else "there is no checkpoint yet"
        super().__init__(
            f"{symptom} after step {job.progress.step}: training has diverged ({back}). {report}Lower "
            "--optimizer.lr, lengthen --schedule.warmup, or try --precision fp32; --optimizer.skip-spikes 6 passes "
            "over single bad batches"
        )


def check_gradients(job: Job) -> None:
    """Look, after the first backward pass of this process, whether all that is to be trained has a gradient.

    Raises:
        UserError: a parameter has none, so it would stay as it is.
    """
    if job.gradients_checked:
        return
    trained = [(name, p) for name, p in job.model.named_parameters() if p.requires_grad]
    without = [name for name, parameter in trained if parameter.grad is None]
    if without:
        raise UserError(f"{some(without)} got no gradient: the loss does not depend on it, so it cannot be trained")
    job.gradients_checked = True


def diverged(job: Job, split: BatchSplit, losses: Tensor, lr: float, symptom: str) -> TrainingDiverged:
    """Write `diverged_step_XXXXXXXX.json`, which names the batch; all processes take part.

    Args:
        losses: this process's summed loss of each micro-batch of the step, (accumulation,).
    """
    mine = {"rank": job.world.rank, "micro_batches": describe_batch(job, split, losses.tolist())}
    mine["gradients_not_finite"] = [
        name
        for name, parameter in job.model.named_parameters()
        if parameter.grad is not None and not local_part(parameter.grad).isfinite().all()
    ]
    processes = job.world.gather(mine)
    step = job.progress.step + 1
    path = job.run.path / f"diverged_step_{step:08d}.json"
    if job.world.is_main:
        about = {"step": step, "symptom": symptom, "lr": lr, "scale": job.scaler.get_scale(), "processes": processes}
        write_json(path, about)
    return TrainingDiverged(job, symptom, f"{path} names the batch and the gradients. ")


def describe_batch(job: Job, split: BatchSplit, losses: list[float]) -> list[dict[str, Any]]:
    """This process's micro-batches: mean loss, windows and, where the loss is not finite, the documents in them."""
    rows = []
    for number, loss_sum in enumerate(losses):
        windows = job.windows_of(split, number)
        loss = loss_sum / job.data.micro_batch(windows, split.sequence).losses
        row: dict[str, Any] = {
            "loss": loss if math.isfinite(loss) else str(loss),
            "windows": [windows.start, windows.stop],
            "positions": [job.data.position(window) for window in windows],
        }
        if not math.isfinite(loss):
            row["documents"] = job.data.documents(windows)[:MOST_DOCUMENTS]
        rows.append(row)
    return rows
