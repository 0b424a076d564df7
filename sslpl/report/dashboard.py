"""Saves the comparison to Weights & Biases: a workspace view of a project's runs and a report with the tables.

Import this module only on demand: it needs the package wandb-workspaces.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import wandb
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
from wandb_workspaces import expr

from sslpl.report.caveats import caveats
from sslpl.report.comparison import Comparisons, DatasetComparison
from sslpl.report.over_datasets_tables import overall_sections
from sslpl.report.render import render_markdown
from sslpl.report.sections import PHASES, dataset_sections
from sslpl.report.table import Section

# Titles of panels and the keys that runs log (sslpl.tracking, sslpl.learn).
CYCLES = {
    "Test set": {
        "Test accuracy": "test/accuracy",
        "Macro F1 on the test set": "test/macro_f1",
        "Calibration error on the test set": "test/ece",
        "Negative log-likelihood on the test set": "test/nll",
    },
    "Loss prediction": {
        "Rank correlation of predicted and true loss": "loss_rank_correlation",
        "Share of unlabeled images with a pseudo-label": "pseudo_label_rate",
        "Accuracy of the pseudo-labels": "pseudo_label_accuracy",
    },
    "Labels": {
        "Share of wasted labels in each batch: images of no class": "wasted_label_rate",
        "Agreement of the annotators (kappa)": "annotator_kappa",
        "Share of right labels": "label_accuracy",
    },
    "Time by phase": {f"Seconds of a cycle: {phase}": f"{phase}_seconds" for phase in PHASES},
}
EPOCHS = {
    "Training loss": "train/loss",
    "Training accuracy": "train/accuracy",
    "Ranking loss": "train/ranking_loss",
    "Ranking loss of the fine-tune": "finetune/ranking_loss",
}
SUMMARY = {"Area under the budget curve": "aubc", "Accuracy after the last cycle": "final_accuracy"}
# Keys that the tracker puts into a run's W&B config. They, not W&B's groups, which users can rename, tell the runs of
# a project apart; it may hold runs with settings that the report does not.
GROUPED = ("dataset_name", "method_name", "setting")
SPREAD: dict[str, Any] = {"groupby_aggfunc": "mean", "groupby_rangefunc": "stddev"}  # over the runs of a group
MAX_GROUPS = 100  # in a panel; W&B's default of 10 would hide methods
SECTIONS = (
    *("Aggregate over datasets", "Ranks over datasets"),
    *("Results", "Label savings", "Paired tests", "Wins", "Crossed options"),
)


def panels() -> dict[str, list[Any]]:
    """Returns the panels of each section: mean and standard deviation over the runs of a group."""
    style: dict[str, Any] = {"max_bars_to_show": MAX_GROUPS, **SPREAD}
    bars = [wr.BarPlot(title=title, metrics=[key], **style) for title, key in SUMMARY.items()]
    curves = {section: [line_panel(*key, "labeled") for key in keys.items()] for section, keys in CYCLES.items()}
    return {"Summary": bars, **curves, "Training": [line_panel(*key, "global_step") for key in EPOCHS.items()]}


def line_panel(title: str, key: str, axis: str) -> Any:
    """Plots a key against the number of labels or the steps."""
    return wr.LinePlot(title=title, x=axis, y=[key], title_x=axis, max_runs_to_show=MAX_GROUPS, **SPREAD)


def build_workspace(comparisons: Comparisons, entity: str, project: str) -> Any:
    """Builds a view of the project's runs on these datasets, grouped by all but the seed."""
    datasets = [comparison.dataset for comparison in comparisons]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=f"sslpl: {', '.join(datasets)}",
        sections=[ws.Section(name=name, panels=plots, is_open=True) for name, plots in panels().items()],
        settings=ws.WorkspaceSettings(x_axis="labeled", max_runs=MAX_GROUPS),
        runset_settings=ws.RunsetSettings(
            filters=[expr.Config("dataset_name").isin(datasets)],
            groupby=[expr.Config(key) for key in GROUPED],
        ),
    )


def build_report(comparisons: Comparisons, warnings: Sequence[str], entity: str, project: str) -> Any:
    """Builds a report with a part for each dataset: its caveats, panels and tables."""
    runs = [run for comparison in comparisons for run in comparison.runs]
    return wr.Report(
        entity=entity,
        project=project,
        title=f"Comparison of {len(runs)} runs",
        description=f"sslpl: {sum(run.finished for run in runs)} of them finished when the tables were made",
        blocks=[
            wr.TableOfContents(),
            *warning_blocks(warnings),
            *section_blocks(overall_sections(comparisons)),
            *(block for comparison in comparisons for block in dataset_blocks(comparison, entity, project)),
        ],
        width="fluid",
    )


def dataset_blocks(comparison: DatasetComparison, entity: str, project: str) -> list[Any]:
    """Returns the part of the report about a dataset."""
    plots = [panel for section in panels().values() for panel in section]
    return [
        wr.H1(text=comparison.dataset),
        *warning_blocks(caveats(comparison)),
        wr.H2(text="Curves"),
        wr.P(text="Mean and standard deviation over the runs of a setting, as they are in W&B now."),
        wr.PanelGrid(runsets=[dataset_runset(comparison, entity, project)], panels=plots),
        *section_blocks(dataset_sections(comparison)),
    ]


def dataset_runset(comparison: DatasetComparison, entity: str, project: str) -> Any:
    """Selects the project's runs on a dataset, grouped by all but the seed."""
    return wr.Runset(
        entity=entity,
        project=project,
        name=comparison.dataset,
        filters=[expr.Config("dataset_name") == comparison.dataset],
        groupby=[f"config.{key}" for key in GROUPED[1:]],
    )


def warning_blocks(warnings: Sequence[str]) -> list[Any]:
    """Returns warnings as a list below a heading; empty if there are none."""
    return [wr.H2(text="Before you compare"), wr.UnorderedList(items=list(warnings))] if warnings else []


def section_blocks(sections: Sequence[Section]) -> list[Any]:
    """Returns headings and tables of the sections that the report shows."""
    blocks: list[Any] = []
    for section in sections:
        if section.heading in SECTIONS:
            text = "\n\n".join(map(render_markdown, section.tables))
            blocks += [wr.H2(text=section.heading), wr.MarkdownBlock(text=text)]
    return blocks


def save_to_wandb(comparisons: Comparisons, warnings: Sequence[str], entity: str, project: str) -> Iterator[str]:
    """Saves the report, then the view, and yields the link of each; raises whatever W&B raises."""
    limits: dict[str, Any] = {
        "x_graphql_retry_max": 2,
        "x_graphql_timeout_seconds": 10.0,
        "x_graphql_retry_wait_max_seconds": 2.0,
    }
    wandb.setup(wandb.Settings(silent=True, **limits))
    if not wandb.login(prompt=False, verify=False):
        raise ConnectionError("nobody is logged in: `wandb login`, or WANDB_API_KEY")
    yield str(build_report(comparisons, warnings, entity, project).save().url)
    yield str(build_workspace(comparisons, entity, project).save().url)
