"""The tables that a run leaves, computed whole from its state."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sslpl.csv_text import csv_text

if TYPE_CHECKING:  # the report reads tables without the seconds that torch takes to be imported
    from sslpl.state import Ledger, Row, State


COLUMNS = (
    "cycle",
    "labeled",
    "test_accuracy",
    "test_macro_f1",
    "test_nll",
    "test_ece",
    "loss_rank_correlation",
    "pseudo_label_rate",
    "pseudo_label_accuracy",
    "train_seconds",
    "finetune_seconds",
    "evaluate_seconds",
    "query_seconds",
    "train_images_per_second",
    "peak_memory_mib",
)
PHASE_SECONDS = ("train_seconds", "finetune_seconds", "evaluate_seconds", "query_seconds")


def metrics_csv(history: "Sequence[Row]") -> str:
    """A row per finished cycle; what a method does not have is left empty."""
    return csv_text(COLUMNS, ([row.get(column) for column in COLUMNS] for row in history))


def queries_csv(ledger: "Ledger") -> str:
    """A row per labeled image: the first cycle that trains on it, its position, its class, its score."""
    columns = (column.tolist() for column in ledger)
    return csv_text(ledger._fields, zip(*columns, strict=True))


def labels_csv(state: "State", paths: Sequence[str]) -> str:
    """A row per labeled image of a run that asks people: which image, what was told, when (UTC), in which file."""
    batches = {batch.cycle: (batch.time, batch.source) for batch in state.label_batches}
    cycles, labels = state.ledger.cycle.tolist(), state.ledger.label.tolist()
    rows = (
        (cycle, path, state.class_names[label], label, *batches.get(cycle, ("", "dataset")))
        for cycle, path, label in zip(cycles, paths, labels, strict=True)
    )
    return csv_text(("cycle", "path", "class", "label", "time", "source"), rows)


def classes_csv(class_names: Sequence[str]) -> str:
    """A row per class in the order of the head's outputs: new ones are the last."""
    return csv_text(("label", "class"), enumerate(class_names))


def summary(history: "Sequence[Row]") -> dict[str, Any]:
    """Accuracy by cycle, area under the budget curve, seconds by phase."""
    validation = [row["validation_accuracy"] for row in history if "validation_accuracy" in row]
    return {
        "labeled": [row["labeled"] for row in history],
        "test_accuracy": [row["test_accuracy"] for row in history],
        **({"validation_accuracy": validation} if validation else {}),
        "final_accuracy": history[-1]["test_accuracy"],
        "aubc": aubc(history),
        "seconds": {key.removesuffix("_seconds"): sum(row.get(key) or 0.0 for row in history) for key in PHASE_SECONDS},
    }


def aubc(history: Sequence[Mapping[str, float | None]]) -> float:
    """Area under the budget curve: accuracy over labels by trapezoids, divided by the label range (0 to 1)."""
    labeled = np.array([row["labeled"] for row in history], dtype=float)
    accuracy = np.array([row["test_accuracy"] for row in history], dtype=float)
    if len(history) == 1:
        return float(accuracy[0])
    return float(np.trapezoid(accuracy, labeled) / (labeled[-1] - labeled[0]))
