"""What happens around the optimizer steps: validation, samples, logging, checkpoints, and requests to stop."""

from __future__ import annotations

import math
import signal
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from types import FrameType
from typing import Any

from inference.generation import SamplingOptions, generate
from training.checkpoints import capture_random_state, prune, save_checkpoint, take_snapshot
from training.compilation import uncompiled
from training.config import ValidationConfig
from training.console import ProgressDisplay
from training.diagnosis import TrainingDiverged
from training.distribution import in_lockstep, is_sharded
from training.hardware import peak_memory
from training.histograms import Histogram, HistogramRecorder
from training.job import Job
from training.tracking import Tracker
from training.validation import ValidationResult, validate


@dataclass(frozen=True)
class Step:
    """What the loop knows of an optimizer step it has just taken."""

    loss: float | None  # mean over the step's tokens, nats; None where it is not finite
    lr: float
    grad_norm: float | None  # before clipping; None where it is not finite
    tokens: int
    sequence: int  # tokens that saw each other
    seconds: float
    skipped: bool = False  # the weights were left as they were


class StopRequest:
    """Becomes true on SIGTERM or the first Ctrl-C, so that the loop ends after its step with a checkpoint."""

    def __init__(self) -> None:
        self.asked = False
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGINT)}

    def close(self) -> None:
        """Give the signals back to whoever handled them before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = True


def gives_up(config: ValidationConfig, without_gain: int) -> bool:
    """Whether a run ends early after so many validations one after the other that were not better than the best."""
    return config.patience is not None and without_gain >= config.patience


class Journal:
    """Keeps the record of one process's run; only the main process has a tracker and a display."""

    def __init__(
        self,
        tracker: Tracker | None,
        display: ProgressDisplay | None,
        histograms: HistogramRecorder | None,
        stop: StopRequest,
        state: dict[str, Any],
        seconds: float,
    ) -> None:
        """`state` is that of the checkpoint the run resumes from, or empty; `seconds` its training time."""
        self.tracker, self.display, self.histograms, self.stop = tracker, display, histograms, stop
        self.best_loss: float | None = state.get("best_val_loss")
        self.wandb_id = tracker.wandb_id if tracker else None
        self._cut_short: dict[str, Any] | None = state.get("cut_short")
        self._saved_at = seconds
        self._since_logged: list[Step] = []
        self._skipped = int(state.get("skipped_steps", 0))
        self._without_gain = int(state.get("validations_without_gain", 0))

    @property
    def stop_requested(self) -> bool:
        return self.stop.asked

    def complete_step(self, job: Job) -> bool:
        """Do what a request to stop had cut short after the last step of a resumed run.

        Returns whether the run ends there.
        """
        if self._cut_short is None:
            return False  # a run whose budget is used is not resumed; compiling may not use up what is left
        step = Step(**{"sequence": job.split.sequence, **self._cut_short})  # older checkpoints do not say it
        self._skipped -= step.skipped  # it was counted before it was cut short, and is once more
        return self.after_step(job, step, stopping=False)

    def after_step(self, job: Job, step: Step, stopping: bool) -> bool:
        """Validate, log and save whatever is due after this step, in this order; returns whether the run ends here.

        That is so when its budget is used, when it was asked to stop, and when validations have not been better for too
        long.

        A run that was asked to stop only saves, even in the middle of a validation: whoever asked may not wait.
        The validation is then done in full, and logged, when the run is resumed.
        """
        number, config, finished = job.progress.step, job.config, job.fraction_used() >= 1
        self._since_logged.append(step)
        self._skipped += step.skipped
        due = finished or number % config.validation.every == 0
        result = self._validate(job) if due and not stopping else None
        cut_short = due and result is None and job.data.validation is not None
        if result is not None and not math.isfinite(result.loss):
            raise TrainingDiverged(job, f"validation loss {result.loss}")
        improved = result is not None and self._improves(result.loss)
        stopped, given_up = stopping or cut_short, gives_up(config.validation, self._without_gain)
        ends = finished or stopped or given_up
        histograms = self.histograms.take() if self.histograms else {}
        logged = due or number == 1 or number % config.tracking.log_every == 0 or bool(histograms)
        if logged and not cut_short:
            self._log(job, step, result, histograms, samples=due and not stopping)
        if ends or improved or self._save_is_due(job):
            self._save(job, result, step if cut_short else None, improved)
        if stopped and self.display:
            self.display.note(f"stopped as asked after step {number}; the same command goes on from there")
        elif given_up and self.display:
            self.display.note(
                f"stopped after step {number}: {self._without_gain} validations have not been better than the best, "
                f"{self.best_loss:.4f}"
            )
        return ends

    def _improves(self, loss: float) -> bool:
        """Whether a validation loss is the best so far; it counts from now on."""
        improved = self.best_loss is None or loss < self.best_loss
        self._without_gain = 0 if improved else self._without_gain + 1
        self.best_loss = loss if improved else self.best_loss
        return improved

    def _save_is_due(self, job: Job) -> bool:
        every, minutes = job.config.checkpoint.every, job.config.checkpoint.minutes
        on_step = every is not None and job.progress.step % every == 0
        return on_step or (minutes is not None and job.progress.seconds - self._saved_at >= 60 * minutes)

    def begin(self, job: Job) -> None:
        """Validate and sample before the first step of a run, where that is wanted."""
        if job.progress.step or not job.config.validation.at_start:
            return
        result = self._validate(job)
        if any(job.world.gather(self.stop_requested)):  # whoever asked may not wait; samples need all processes
            return
        row = {"step": 0, "tokens": 0, "seconds": round(job.progress.seconds, 3)}
        row |= result.to_metrics() if result else {}
        samples = self._samples(job) if self.tracker or is_sharded(job.model) else []
        if self.tracker:
            self.tracker.log(row, samples, {})
        if self.display:
            self.display.note(f"before training: validation loss {result.loss:.4f}" if result else "before training")
            self._show(samples)

    def _validate(self, job: Job) -> ValidationResult | None:
        """None where nothing is held out, or where it was interrupted."""
        if job.data.validation is None:
            return None
        split = job.data.validation.thinned(job.config.validation.tokens)
        with uncompiled(), self._final_weights(job):
            return validate(
                *(job.model, split, job.world, job.device, job.precision, job.split.micro_batch),
                lambda: self.stop.asked,
            )

    def _final_weights(self, job: Job) -> AbstractContextManager[None]:
        """Within, the model has the weights that it is to be judged by."""
        return job.average.in_place_of_weights(job.model) if job.average else nullcontext()

    def _log(
        self,
        job: Job,
        step: Step,
        result: ValidationResult | None,
        histograms: dict[str, Histogram],
        samples: bool,
    ) -> None:
        steps, self._since_logged = self._since_logged, []
        seconds = sum(step.seconds for step in steps)
        tokens_per_second = sum(step.tokens for step in steps) / seconds
        row: dict[str, Any] = {
            "step": job.progress.step,
            "tokens": job.progress.tokens,
            "epoch": round(job.progress.windows / job.data.windows_per_epoch, 4),
            "seconds": round(job.progress.seconds, 3),
            "train/loss": step.loss,
            "lr": step.lr,
            "grad_norm": step.grad_norm,
            "tokens_per_second": round(tokens_per_second, 1),
            "memory_mb": round(peak_memory(job.device) / 1e6),
        }
        if job.peak_flops is not None:
            flops = sum(step.tokens * job.model.flops_per_token(step.sequence) for step in steps)
            row["mfu"] = round(flops / seconds / (job.peak_flops * job.world.size), 4)
        if job.config.optimizer.skip_spikes is not None:
            row["skipped_steps"] = self._skipped
        if result is not None:
            row |= result.to_metrics()
        sampling = samples and (self.tracker or is_sharded(job.model))
        taken = self._samples(job) if sampling else []
        if self.tracker:
            self.tracker.log(row, taken, histograms)
        if self.display:
            fraction = job.fraction_used()
            self.display.update(row, fraction, job.progress.seconds * (1 - fraction) / fraction)
            self._show(taken)

    def _show(self, samples: list[dict[str, Any]]) -> None:
        if self.display:
            for sample in samples:
                self.display.note(f"      {sample['prompt']!r} -> {sample['text']!r}")

    def _samples(self, job: Job) -> list[dict[str, Any]]:
        """One continuation of every configured prompt."""
        validation = job.config.validation
        length = min(validation.sample_tokens, job.model.room)
        if length < 1:
            return []
        options = SamplingOptions(length, validation.temperature, top_k=50, seed=job.config.seed)
        rows = []
        for prompt in validation.prompts:
            autocast = job.precision.autocast(job.device, keep_weights=True)
            with autocast, in_lockstep(job.model), uncompiled(), self._final_weights(job):
                completion = generate(job.model, job.data.tokenizer, [job.data.prompt(prompt)], options)[0]
            rows.append(
                {"step": job.progress.step, "tokens": job.progress.tokens, "prompt": prompt, "text": completion.text}
            )
        return rows

    def _save(self, job: Job, result: ValidationResult | None, cut_short: Step | None, improved: bool) -> None:
        self._saved_at = job.progress.seconds
        random_states = job.world.gather(capture_random_state(job.device))
        snapshot = take_snapshot(job.model, job.optimizers, job.average, keep=job.world.is_main)
        if self.tracker:
            self.tracker.sync()
            state = {
                **asdict(job.progress),
                "val_loss": result.loss if result else None,
                "best_val_loss": self.best_loss,
                "validations_without_gain": self._without_gain,
                "tokenizer_sha256": job.data.tokenizer.sha256,
                "data_fingerprint": job.data.fingerprint,
                "base_fingerprint": job.base_fingerprint,
                "scaler": job.scaler.state_dict(),
                "spikes": job.spikes.state(),
                "skipped_steps": self._skipped,
                "compiled": job.compiled,
                "wandb_id": self.wandb_id,
                "world_size": job.world.size,
                "cut_short": asdict(cut_short) if cut_short else None,
            }
            checkpoint = save_checkpoint(job.run, snapshot, state, random_states)
            self.tracker.add_checkpoint(checkpoint, best=improved)
            prune(job.run, job.config.checkpoint.keep)
        job.world.barrier()
