"""The tables in a run's folder, computed from its state."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sslpl.csv_text import csv_text

if TYPE_CHECKING:  # the report uses this module, and importing torch would take seconds
    from sslpl.state import Ledger, Row, State
    from sslpl.types import Annotations


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
    "prediction_kappa",
    "rejected",
    "wasted_label_rate",
    "answers",
    "annotator_kappa",
    "label_accuracy",
    "labeling_seconds",
    "train_seconds",
    "finetune_seconds",
    "evaluate_seconds",
    "query_seconds",
    "train_images_per_second",
    "peak_memory_mib",
)
PHASE_SECONDS = ("train_seconds", "finetune_seconds", "evaluate_seconds", "query_seconds")


def metrics_csv(history: "Sequence[Row]") -> str:
    """Returns metrics.csv: a row per finished cycle, with empty cells for metrics that the method does not have."""
    return csv_text(COLUMNS, ([row.get(column) for column in COLUMNS] for row in history))


def queries_csv(ledger: "Ledger") -> str:
    """Returns queries.csv: a row per labeled image with its first training cycle, index, label and score."""
    columns = (column.tolist() for column in ledger)
    return csv_text(ledger._fields, zip(*columns, strict=True))


def labels_csv(state: "State", paths: Sequence[str]) -> str:
    """Returns ledger.csv: a row per image labeled by people with its path, class, time (UTC) and source file."""
    batches = {batch.cycle: (batch.time, batch.source) for batch in state.label_batches}
    cycles, labels = state.ledger.cycle.tolist(), state.ledger.label.tolist()
    rows = (
        (cycle, path, state.class_names[label], label, *batches.get(cycle, ("", "dataset")))
        for cycle, path, label in zip(cycles, paths, labels, strict=True)
    )
    return csv_text(("cycle", "path", "class", "label", "time", "source"), rows)


def annotations_csv(annotations: "Annotations", paths: Sequence[str], class_names: Sequence[str]) -> str:
    """Returns annotations.csv: a row per answer with the image's path, the person and the class; empty: no class."""
    people, labels = annotations.person.tolist(), annotations.label.tolist()
    rows = (
        (path, annotations.people[person], class_names[label] if label >= 0 else "")
        for path, person, label in zip(paths, people, labels, strict=True)
    )
    return csv_text(("path", "person", "class"), rows)


def rejected_csv(paths: Sequence[str]) -> str:
    """Returns rejected.csv: a row per image that people found to be of no class."""
    return csv_text(("path",), ([path] for path in paths))


def classes_csv(class_names: Sequence[str]) -> str:
    """Returns classes.csv: a row per class in the order of the logits, in which new classes come last."""
    return csv_text(("label", "class"), enumerate(class_names))


def summary(history: "Sequence[Row]") -> dict[str, Any]:
    """Returns accuracy by cycle, the area under the budget curve and the seconds of each phase."""
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
    """Returns the area under the budget curve in 0..1: accuracy over labels by trapezoids, divided by their range."""
    labeled = np.array([row["labeled"] for row in history], dtype=float)
    accuracy = np.array([row["test_accuracy"] for row in history], dtype=float)
    if len(history) == 1:
        return float(accuracy[0])
    return float(np.trapezoid(accuracy, labeled) / (labeled[-1] - labeled[0]))
