"""The comparison in Weights & Biases: a workspace view over a project's runs, and a report with our own tables.

Import it only where it is asked for: it needs the package wandb-workspaces.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import wandb
import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
from wandb_workspaces import expr

from sslpl.report import markdown
from sslpl.report.caveats import caveats
from sslpl.report.comparison import DatasetComparison

# Titles, and the keys that the tracker streams (recording.wandb_names, learn.joint, learn.finetune).
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
    "Time by phase": {
        "Seconds of a cycle: train": "train_seconds",
        "Seconds of a cycle: finetune": "finetune_seconds",
        "Seconds of a cycle: evaluate": "evaluate_seconds",
        "Seconds of a cycle: query": "query_seconds",
    },
}
EPOCHS = {
    "Training loss": "train/loss",
    "Training accuracy": "train/accuracy",
    "Ranking loss": "train/ranking_loss",
    "Ranking loss of the fine-tune": "finetune/ranking_loss",
}
SUMMARY = {"Area under the budget curve": "aubc", "Accuracy after the last cycle": "final_accuracy"}
# What the tracker puts into a run's W&B config, and its group is made of: other runs of the project may have other
# settings than those that the report was made from, and a group can be named by the user.
GROUPED = ("dataset_name", "method_name", "setting")
SPREAD: dict[str, Any] = {"groupby_aggfunc": "mean", "groupby_rangefunc": "stddev"}  # over the runs of a group
SHOWN = 100  # groups in a panel; W&B's own limit of 10 would hide methods


def panels() -> dict[str, list[Any]]:
    """The panels of each section: mean and standard deviation over the runs of a group."""
    bars = [wr.BarPlot(title=title, metrics=[key], max_bars_to_show=SHOWN, **SPREAD) for title, key in SUMMARY.items()]
    curves = {section: [curve(*one, "labeled") for one in keys.items()] for section, keys in CYCLES.items()}
    return {"Summary": bars, **curves, "Training": [curve(*one, "global_step") for one in EPOCHS.items()]}


def curve(title: str, key: str, axis: str) -> Any:
    """A key against the number of labels, or against the steps."""
    return wr.LinePlot(title=title, x=axis, y=[key], title_x=axis, max_runs_to_show=SHOWN, **SPREAD)


def workspace(boards: Sequence[DatasetComparison], entity: str, project: str) -> Any:
    """A view of the project's runs on the boards' datasets, grouped by all but the seed."""
    return ws.Workspace(
        entity=entity,
        project=project,
        name=f"sslpl: {', '.join(board.dataset for board in boards)}",
        sections=[ws.Section(name=name, panels=found, is_open=True) for name, found in panels().items()],
        settings=ws.WorkspaceSettings(x_axis="labeled", max_runs=SHOWN),
        runset_settings=ws.RunsetSettings(
            filters=[expr.Config("dataset_name").isin([board.dataset for board in boards])],
            groupby=[expr.Config(key) for key in GROUPED],
        ),
    )


def report(boards: Sequence[DatasetComparison], damaged: Sequence[str], entity: str, project: str) -> Any:
    """A report with a section for each dataset: its panels, our tables and what makes its runs hard to compare."""
    runs = [run for board in boards for run in board.runs]
    return wr.Report(
        entity=entity,
        project=project,
        title=f"Comparison of {len(runs)} runs",
        description=f"sslpl: {sum(run.finished for run in runs)} of them finished; tables as of the report's making",
        blocks=[
            wr.TableOfContents(),
            *warned(damaged),
            *tabled("Ranks over datasets", markdown.ranks_table(boards)),
            *(block for board in boards for block in board_blocks(board, entity, project)),
        ],
        width="fluid",
    )


def board_blocks(board: DatasetComparison, entity: str, project: str) -> list[Any]:
    """The section of a dataset."""
    grid = wr.PanelGrid(
        runsets=[runset(board, entity, project)], panels=[panel for found in panels().values() for panel in found]
    )
    return [
        wr.H1(text=board.dataset),
        *warned(caveats(board)),
        *tabled("Results", markdown.main_table(board)),
        wr.H2(text="Curves"),
        wr.P(text="Mean over the runs of a setting and their standard deviation, as W&B has them now."),
        grid,
        *tabled("Label savings", markdown.savings_table(board)),
        *tabled("Paired tests", markdown.tests_table(board)),
        *tabled("Crossed options", markdown.crossed_tables(board)),
    ]


def runset(board: DatasetComparison, entity: str, project: str) -> Any:
    """The project's runs on a dataset, grouped by all but the seed."""
    return wr.Runset(
        entity=entity,
        project=project,
        name=board.dataset,
        filters=[expr.Config("dataset_name") == board.dataset],
        groupby=[f"config.{key}" for key in GROUPED[1:]],
    )


def warned(lines: Sequence[str]) -> list[Any]:
    """Warnings as a list; nothing if there are none."""
    return [wr.H2(text="Before you compare"), wr.UnorderedList(items=list(lines))] if lines else []


def tabled(title: str, table: str) -> list[Any]:
    """A table under a heading; nothing without one."""
    return [wr.H2(text=title), wr.MarkdownBlock(text=table)] if table else []


def saved(boards: Sequence[DatasetComparison], damaged: Sequence[str], entity: str, project: str) -> Iterator[str]:
    """Saves the report and the view, each under a link of its own; any exception if W&B does not take one."""
    patience: dict[str, Any] = {
        "x_graphql_retry_max": 2,
        "x_graphql_timeout_seconds": 10.0,
        "x_graphql_retry_wait_max_seconds": 2.0,
    }
    wandb.setup(wandb.Settings(silent=True, **patience))
    if not wandb.login(prompt=False, verify=False):
        raise ConnectionError("nobody is logged in: `wandb login`, or WANDB_API_KEY")
    yield str(report(boards, damaged, entity, project).save().url)
    yield str(workspace(boards, entity, project).save().url)
