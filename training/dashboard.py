"""The W&B dashboard of the project, as code: python -m training.dashboard [--push].

Without `--push` it writes the definition to docs/dashboard.json and talks to nobody. With it, the workspace and the
report also appear in the W&B project, or are brought up to date where they are there already.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from common.cli import run_command
from common.errors import UserError
from common.files import write_json
from training.wandb_run import has_api_key

TITLE = "mini-GPT training"
VIEW_NAME = "nw-minigpttraining-v"  # by which a second push finds the workspace of the first
INSTALL = "pip install -c constraints.txt -e '.[dashboard]'"


@dataclass(frozen=True)
class Chart:
    """Lines over the number of tokens."""

    title: str
    metrics: tuple[str, ...]  # names as in metrics.jsonl
    unit: str
    log_y: bool = False


SECTIONS: dict[str, tuple[Chart, ...]] = {
    "Loss": (
        Chart("Loss", ("train/loss", "val/loss"), "nats per token"),
        Chart("Bits per byte", ("val/bits_per_byte",), "bits"),
    ),
    "Optimization": (
        Chart("Learning rate", ("lr",), "of the weight matrices in the blocks"),
        Chart("Gradient norm", ("grad_norm",), "before clipping", log_y=True),
    ),
    "Throughput": (
        Chart("Tokens per second", ("tokens_per_second",), "tokens/s"),
        Chart("Model FLOPs utilization", ("mfu",), "fraction of the peak"),
    ),
}


@dataclass(frozen=True)
class DashboardCommand:
    """Write the definition of the W&B dashboard, and put it into a W&B project with --push."""

    project: str = "mini-gpt"
    """W&B project whose runs are shown; that of --tracking.wandb-project."""
    entity: str | None = None
    """W&B user or team that the project belongs to; your default one when unset."""
    out: Path = Path("docs/dashboard.json")
    """File that the definition is written to."""
    push: bool = False
    """Create or update workspace and report in W&B; needs an API key (wandb login)."""


def main(argv: Sequence[str]) -> None:
    """Raises UserError when a package, an API key or a permission is missing."""
    command = tyro.cli(DashboardCommand, args=argv, prog="python -m training.dashboard")
    if command.push and not has_api_key():
        raise UserError("--push needs a W&B API key and there is none; log in with: wandb login")
    definition = build_definition(command.project)
    try:
        write_json(command.out, definition)
    except OSError as error:
        raise UserError(f"cannot write {command.out}: {error}; choose another place with --out") from error
    print(f"{command.out}: workspace and report of project {command.project}")
    if command.push:
        for url in push(command.project, command.entity):
            print(url)
    else:
        print("put them into W&B with: python -m training.dashboard --push")


def build_definition(project: str) -> dict[str, Any]:
    """Workspace and report as W&B stores them, the same at every call: ids that are drawn at random are numbered."""
    models = {"workspace": make_workspace("", project), "report": make_report("", project)}
    dumps = {
        kind: json.loads(model._to_model().model_dump_json(by_alias=True, exclude_none=True))
        for kind, model in models.items()
    }
    return {kind: _with_numbered_ids(dump, [0]) for kind, dump in dumps.items()}


def make_workspace(entity: str, project: str) -> Any:
    """A saved view of the project's page: one section a topic, everything over tokens."""
    workspaces, reports = _packages()
    sections = [
        workspaces.Section(name=name, is_open=True, panels=[_line_plot(reports, chart) for chart in charts])
        for name, charts in SECTIONS.items()
    ]
    sections.append(workspaces.Section(name="Samples", is_open=True, panels=[_sample_table(reports)]))
    sections.append(workspaces.Section(name="Runs", is_open=True, panels=[reports.RunComparer(diff_only="split")]))
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=TITLE,
        sections=sections,
        settings=workspaces.WorkspaceSettings(x_axis="tokens"),
    )


def make_report(entity: str, project: str) -> Any:
    """A page of the same charts with a sentence on each topic, to be read and shared."""
    _, reports = _packages()

    def grid(*panels: Any) -> Any:
        for number, panel in enumerate(panels):
            wide = len(panels) == 1  # W&B's grid is 24 units wide
            panel.layout = reports.Layout(x=12 * (number % 2), y=8 * (number // 2), w=24 if wide else 12, h=8)
        return reports.PanelGrid(runsets=[reports.Runset(entity=entity, project=project)], panels=list(panels))

    blocks: list[Any] = [
        reports.P(
            "All curves are drawn over the tokens that a run has seen, so runs of any batch size can be compared."
        ),
        reports.P("Bits per byte can be compared between tokenizers too; the loss per token cannot."),
    ]
    for name, charts in SECTIONS.items():
        blocks += [reports.H2(name), grid(*(_line_plot(reports, chart) for chart in charts))]
    blocks += [reports.H2("Samples"), grid(_sample_table(reports))]
    blocks += [reports.H2("Runs side by side"), grid(reports.RunComparer(diff_only="split"))]
    return reports.Report(entity=entity, project=project, title=TITLE, blocks=blocks, width="fluid")


def push(project: str, entity: str | None) -> tuple[str, str]:
    """Create or update both in W&B; returns their addresses.

    Raises:
        UserError: W&B refused, or was not reached.
    """
    import wandb
    from wandb_workspaces.workspaces.internal import View

    owner = entity or ""
    try:
        api = wandb.Api()
        owner = owner or str(api.default_entity)
        if project not in {known.name for known in api.projects(owner)}:
            api.create_project(project, owner)
        report, workspace = make_report(owner, project), make_workspace(owner, project)
        report.id = next((other.id for other in api.reports(f"{owner}/{project}") if other.display_name == TITLE), "")
        report.save()
        workspace._internal_name = VIEW_NAME
        with suppress(ValueError):  # there is none yet
            workspace._internal_id = View.from_name(owner, project, VIEW_NAME).id
        workspace.save()
    except Exception as error:
        raise UserError(
            f"W&B did not take the dashboard of {owner or 'your default entity'}/{project} ({error}); check --entity "
            "and --project, and that your API key may write there (wandb login --relogin)"
        ) from error
    return str(workspace.url), str(report.url)


def _packages() -> tuple[Any, Any]:
    try:
        import wandb_workspaces.reports.v2 as reports
        import wandb_workspaces.workspaces as workspaces
    except ImportError as error:
        raise UserError(
            f"the dashboard needs the package wandb-workspaces ({error}); install it with: {INSTALL}"
        ) from error
    return workspaces, reports


def _line_plot(reports: Any, chart: Chart) -> Any:
    return reports.LinePlot(
        title=chart.title, x="tokens", y=list(chart.metrics), title_x="tokens", title_y=chart.unit, log_y=chart.log_y
    )


def _sample_table(reports: Any) -> Any:
    return reports.WeavePanelSummaryTable(table_name="samples")


def _with_numbered_ids(value: Any, counter: list[int]) -> Any:
    if isinstance(value, list):
        return [_with_numbered_ids(item, counter) for item in value]
    if not isinstance(value, dict):
        return value
    numbered = {}
    for key, item in value.items():
        if key in ("id", "__id__") and item:
            counter[0] += 1
            numbered[key] = f"id-{counter[0]}"
        else:
            numbered[key] = _with_numbered_ids(item, counter)
    return numbered


if __name__ == "__main__":
    run_command(main)
