"""Weights & Biases as a dashboard: it never asks, never waits for a server in the middle of a run, never stops one."""

from __future__ import annotations

import os
import queue
import re
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from common.cli import to_dict
from common.files import read_json_lines
from common.runs import Checkpoint
from training.histograms import Histogram
from training.job import Job

SAMPLE_COLUMNS = ("step", "tokens", "prompt", "text")

# What W&B shows of a metric whose best value is not its last one.
SUMMARIES = {"val/loss": "min", "val/perplexity": "min", "val/bits_per_byte": "min", "tokens_per_second": "mean"}

# Seconds, where the environment does not say otherwise: how long a server may take to accept the run, how long the
# end of a run waits for the last uploads, and how much of an offline run a power cut may cost.
PATIENCE = {
    "WANDB_INIT_TIMEOUT": "30",
    "WANDB_FINISH_TIMEOUT": "60",
    "WANDB_X_TRANSACTION_LOG_FLUSH_INTERVAL": "1",
}


# Seconds for each of the two waits at the end after a request to stop: whoever asked, such as `torchrun`, kills the run
# 30 seconds later, and its step and checkpoint come first. What is left can be uploaded with `wandb sync`.
HURRY = 5.0


def start_wandb(job: Job, run_id: str | None) -> Wandb | None:
    """A W&B run, or None with a one-line reason. `run_id` is that of the run to go on with, if there is one."""
    mode = wandb_mode(job.config.tracking.wandb)
    if mode is None:
        return None
    # Reports of its own errors would be waited for at exit, for up to half a minute when the server hangs.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    try:
        import wandb
    except Exception as error:  # not installed, or not fit for what else is installed
        print(f"tracking: W&B cannot be used ({error}), metrics go to metrics.jsonl only", file=sys.stderr)
        return None
    for attempt in dict.fromkeys((mode, "offline")):
        try:
            return Wandb(wandb, job, run_id, attempt)
        except Exception as error:
            print(f"tracking: W&B {attempt} did not start ({error})", file=sys.stderr)
    return None


def wandb_mode(setting: str) -> Literal["online", "offline"] | None:
    """ "online" or "offline" for a setting of `tracking.wandb`, None for neither. Nobody is ever asked for a key."""
    mode = setting
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE") or ("online" if has_api_key() else "offline")
    if mode == "online" and not has_api_key():
        print("tracking: no W&B API key (log in with: wandb login), so the run is offline", file=sys.stderr)
        mode = "offline"
    return None if mode in ("off", "disabled") else "online" if mode == "online" else "offline"


def has_api_key() -> bool:
    """Whether W&B can log in without asking: a key in the environment, or in the netrc file of `wandb login`."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    import netrc

    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].split("/")[0].split(":")[0]
    try:
        return netrc.netrc(str(path)).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def git_revision() -> str | None:
    """The commit that this code is at, `-dirty` when files were changed since; None outside a git checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude", "*"]
    try:
        found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


class Background:
    """One thread that does what it is given, in order: some calls of W&B wait for the server, training must not."""

    def __init__(self) -> None:
        self._actions: queue.SimpleQueue[Callable[[], Any] | None] = queue.SimpleQueue()
        self._said: set[str] = set()
        self._given_up = False
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        self._thread.start()

    def do(self, action: Callable[[], Any]) -> None:
        """Returns at once. What `action` raises is said, the same thing once only."""
        self._actions.put(action)

    def close(self, seconds: float | None) -> bool:
        """Whether everything that was given could be done within `seconds`, if given; what could not is dropped."""
        self._actions.put(None)
        self._thread.join(seconds)
        self._given_up = self._thread.is_alive()
        return not self._given_up

    def _work(self) -> None:
        while not self._given_up and (action := self._actions.get()) is not None:
            try:
                action()
            except Exception as error:
                if str(error) not in self._said and not self._given_up:
                    print(f"tracking: W&B does not take everything ({error}); training goes on", file=sys.stderr)
                self._said.add(str(error))


class Wandb:
    """One W&B run over all resumptions, with every metric drawn over the number of tokens."""

    name = "W&B"

    def __init__(self, wandb: Any, job: Job, run_id: str | None, mode: str) -> None:
        self._wandb, self._job = wandb, job
        self.id = run_id or secrets.token_hex(4)
        # Tables and artifacts wait for their upload beside the run, not in the user's home.
        os.environ.setdefault("WANDB_DATA_DIR", str(job.run.wandb.absolute()))
        for variable, seconds in PATIENCE.items():
            os.environ.setdefault(variable, seconds)
        tracking = job.config.tracking
        # The id and resume="allow" are given offline too: `wandb sync` then joins the parts of a resumed run.
        self._run = wandb.init(
            project=tracking.wandb_project,
            name=job.config.name,
            group=tracking.wandb_group,
            tags=tracking.wandb_tags or None,
            id=self.id,
            resume="allow",
            dir=str(job.run.path),
            mode=mode,
            config=to_dict(job.config) | describe(job),
            job_type="train",
            settings=wandb.Settings(console="off", silent=True),
        )
        # Exact names beside one pattern: of two patterns that match, W&B takes either.
        self._run.define_metric("tokens")
        self._run.define_metric("*", step_metric="tokens")
        for metric, summary in SUMMARIES.items():
            self._run.define_metric(metric, step_metric="tokens", summary=summary)
        # Both files end at the step that the run goes on from.
        self._samples, rows = read_json_lines(job.run.samples), read_json_lines(job.run.metrics)
        if mode == "online" or run_id is None:
            # What the server has not got: a killed run takes its last seconds with it, an offline one everything.
            for row in rows:
                if row["step"] >= self._run.starting_step:
                    self._run.log(row, step=row["step"])
        self._best: float | None = None
        for row in rows:
            self._summarize(row)
        self._background = Background()
        self._directory = Path(self._run.dir).parent
        # All parts of a resumed run in one command, oldest first: that is how W&B joins them.
        place = self._run.url if mode == "online" else f"upload it with: wandb sync {job.run.wandb}/offline-run-*"
        print(f"tracking: W&B {mode}, {place}", file=sys.stderr)

    def log(self, row: dict[str, Any], samples: list[dict[str, Any]], histograms: dict[str, Histogram]) -> None:
        values: dict[str, Any] = dict(row)
        for key, taken in histograms.items():
            values[key] = self._wandb.Histogram(np_histogram=(taken.counts, taken.edges))
        self._run.log(values, step=row["step"])
        self._summarize(row)
        if samples:
            self._samples += samples
            rows = [[sample[column] for column in SAMPLE_COLUMNS] for sample in self._samples]
            self._background.do(lambda: self._log_table(rows))

    def _summarize(self, row: dict[str, Any]) -> None:
        """The best loss so far and its step: beside the summary "min" of val/loss, which does not know its step."""
        loss = row.get("val/loss")
        if loss is not None and (self._best is None or loss < self._best):
            self._best = loss
            self._run.summary.update({"best/val_loss": loss, "best/step": row["step"]})

    def _log_table(self, rows: list[list[Any]]) -> None:
        """All samples so far: W&B shows the newest table of a name. It asks the server before it takes one."""
        table = self._wandb.Table(columns=list(SAMPLE_COLUMNS), data=rows)
        self._run.log({"samples": table}, commit=False)  # with the step that is being logged by now

    def sync(self) -> None:
        """There is no way to ask W&B for it: its own process writes to disk every second."""

    def add_checkpoint(self, checkpoint: Checkpoint, best: bool) -> None:
        """Copy a checkpoint into an artifact when the config wants it: a run directory of its own, once downloaded."""
        wanted = self._job.config.tracking.artifacts
        if wanted == "none" or (wanted == "best" and not best):
            return
        run, state = self._job.run, checkpoint.state
        name = re.sub(r"[^\w.-]", "-", f"{run.name}-{self.id}")
        metadata = {key: state[key] for key in ("step", "tokens", "val_loss")}
        artifact = self._wandb.Artifact(name, type="model", metadata=metadata)
        for file in (run.config, run.tokenizer, *sorted(checkpoint.path.iterdir())):
            artifact.add_file(str(file), name=file.relative_to(run.path).as_posix(), skip_cache=True)
        aliases = ["latest", "best"] if best else ["latest"]
        self._background.do(lambda: self._run.log_artifact(artifact, aliases=aliases))

    def close(self, failed: bool, hurried: bool) -> None:
        patience = float(os.environ["WANDB_FINISH_TIMEOUT"]) or None  # to W&B, 0 is no limit
        in_time = self._background.close(HURRY if hurried else patience)
        if hurried:
            finishing = Background()
            finishing.do(lambda: self._run.finish(exit_code=int(failed)))
            if not finishing.close(HURRY):
                in_time = False
                # Its own limit cannot be changed any more, and it is waited for at exit. By now all is on disk.
                service = self._wandb.setup().ensure_service()
                service._proc._process.kill()
                with suppress(ConnectionError):
                    service.teardown(0)
        else:
            self._run.finish(exit_code=int(failed))
        if not in_time:
            print(
                "tracking: W&B's server did not take everything in time; upload the metrics later with: wandb sync "
                f"--no-skip-online {self._directory}",
                file=sys.stderr,
            )


def describe(job: Job) -> dict[str, Any]:
    """What the config does not say of a run: the code, the size and the data it is made from."""
    return {
        "git_revision": git_revision(),
        "parameters": job.model.parameter_count(),
        "data_fingerprint": job.data.fingerprint,
    }
