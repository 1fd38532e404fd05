"""Where a run's numbers go: metrics.jsonl and samples.jsonl always, Weights & Biases when it is there."""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from common.files import atomic_write, read_json_lines, sync_file
from common.runs import Run
from training.config import RunConfig

SAMPLE_COLUMNS = ("step", "tokens", "prompt", "text")


class JsonLines:
    """An append-only file of one JSON object a line, each with a `step`."""

    def __init__(self, path: Path, resume_step: int) -> None:
        """Keep the lines up to `resume_step`: what a killed run logged after its last checkpoint will come again."""
        self.path = path
        kept = [row for row in read_json_lines(path) if row.get("step", 0) <= resume_step]
        with atomic_write(path) as file:
            file.writelines(_line(row) for row in kept)
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - open for the whole run

    def write(self, rows: Iterable[dict[str, Any]]) -> None:
        self._file.writelines(_line(row) for row in rows)
        self._file.flush()

    def sync(self) -> None:
        sync_file(self.path)

    def close(self) -> None:
        self._file.close()


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


class Tracker:
    """Everything that the main process logs. Processes other than the main one have none."""

    def __init__(self, run: Run, config: RunConfig, config_values: dict[str, Any], step: int, wandb_id: str | None):
        self.metrics = JsonLines(run.metrics, step)
        self.samples = JsonLines(run.samples, step)
        self._sample_rows = read_json_lines(run.samples)
        self.wandb = start_wandb(run, config, config_values, wandb_id)

    @property
    def wandb_id(self) -> str | None:
        return self.wandb.id if self.wandb else None

    def log(self, row: dict[str, Any], samples: list[dict[str, Any]]) -> None:
        """Log one step: its metrics and, where there are any, its samples."""
        self.metrics.write([row])
        self.samples.write(samples)
        self._sample_rows += samples
        if self.wandb:
            self.wandb.log(row, self._sample_rows if samples else [])

    def sync(self) -> None:
        """Make what was logged as durable as the checkpoint that is about to be written."""
        self.metrics.sync()
        self.samples.sync()

    def close(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        """Called with the exception that ended the run, or with None three times."""
        if self.wandb:
            self.wandb.close(failed=error is not None)
        self.metrics.close()
        self.samples.close()


def start_wandb(run: Run, config: RunConfig, config_values: dict[str, Any], run_id: str | None) -> Wandb | None:
    """A W&B run, or None with a one-line reason: tracking never asks, and never stops a training run."""
    mode: str = config.tracking.wandb
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE") or ("online" if _has_api_key() else "offline")
    if mode in ("off", "disabled"):
        return None
    try:
        import wandb
    except Exception as error:  # not installed, or not fit for what else is installed
        print(f"tracking: W&B cannot be used ({error}), metrics go to metrics.jsonl only", file=sys.stderr)
        return None
    if mode == "online" and not _has_api_key():
        print("tracking: no W&B API key (log in with: wandb login), so the run is offline", file=sys.stderr)
        mode = "offline"
    for attempt in dict.fromkeys((mode, "offline")):
        try:
            return Wandb(wandb, run, config, config_values, run_id, attempt)
        except Exception as error:
            print(f"tracking: W&B {attempt} did not start ({error})", file=sys.stderr)
    return None


def _has_api_key() -> bool:
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


class Wandb:
    """One W&B run over all resumptions, with every metric drawn over the number of tokens."""

    def __init__(
        self, wandb: Any, run: Run, config: RunConfig, config_values: dict[str, Any], run_id: str | None, mode: str
    ) -> None:
        self._wandb = wandb
        self.id = run_id or secrets.token_hex(4)
        # Tables wait for their upload beside the run, not in the user's home.
        os.environ.setdefault("WANDB_DATA_DIR", str((run.path / "wandb").absolute()))
        # The id and resume="allow" are given offline too: `wandb sync` then joins the parts of a resumed run.
        self._run = wandb.init(
            project=config.tracking.wandb_project,
            name=config.name,
            id=self.id,
            resume="allow",
            dir=str(run.path),
            mode=mode,
            config=config_values,
            job_type="train",
            settings=wandb.Settings(init_timeout=30, console="off", silent=True),
        )
        self._run.define_metric("tokens")
        self._run.define_metric("*", step_metric="tokens")
        self._run.define_metric("val/loss", step_metric="tokens", summary="min")
        place = self._run.url if mode == "online" else f"upload it with: wandb sync {Path(self._run.dir).parent}"
        print(f"tracking: W&B {mode}, {place}", file=sys.stderr)

    def log(self, row: dict[str, Any], samples: list[dict[str, Any]]) -> None:
        values: dict[str, Any] = dict(row)
        if samples:
            rows = [[sample[column] for column in SAMPLE_COLUMNS] for sample in samples]
            values["samples"] = self._wandb.Table(columns=list(SAMPLE_COLUMNS), data=rows)
        try:
            self._run.log(values, step=row["step"])
        except Exception as error:
            print(f"tracking: W&B did not take step {row['step']} ({error})", file=sys.stderr)

    def close(self, failed: bool) -> None:
        try:
            self._run.finish(exit_code=int(failed))
        except Exception as error:
            print(f"tracking: W&B did not finish cleanly ({error})", file=sys.stderr)
