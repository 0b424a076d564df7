"""The evaluate phase: test metrics of the backbone and rank correlation of the predicted losses."""

from collections.abc import Iterator

import torch
from torch import Tensor

from sslpl.learn.inference import predict
from sslpl.learn.metrics import loss_rank_correlation, test_metrics
from sslpl.oracle.agreement import annotator_kappa
from sslpl.seeds import rng, shuffled
from sslpl.setup import Setup
from sslpl.state import Row, State
from sslpl.types import UNLABELED, Annotations, Step

STOP_SET = 2000  # images, as in Bloodgood and Vijay-Shanker (2009)


def evaluate(setup: Setup, state: State) -> Iterator[Step]:
    """Computes the test metrics, and the rank correlation of predicted and true losses of the unlabeled images."""
    data, networks = setup.dataset, (state.backbone, state.module)
    state.row.update(cycle=state.cycle, **label_counts(state))
    if state.annotations is not None:
        state.row.update(annotation_metrics(state, state.annotations, setup.true_labels))
    state.row.update(labeling_time(state, setup.budget.seconds_per_label))
    views = setup.training.test_time_augmentation
    test = predict(setup, *networks, data.test, torch.arange(len(data.test)), views)
    state.row.update(test_metrics(test, data.test_labels))
    yield Step(len(data.test))
    if setup.budget.stop == "stable_predictions":
        yield compare_predictions(setup, state)
    if state.module is not None:
        unlabeled = state.predictions = predict(setup, *networks, data.train, state.pool.unlabeled)
        state.row["loss_rank_correlation"] = loss_rank_correlation(unlabeled, setup.true_labels[unlabeled.index])
        yield Step(len(unlabeled.index))


def compare_predictions(setup: Setup, state: State) -> Step:
    """Measures the kappa of this and the last cycle's backbone on random images of the pool, for a stopping rule."""
    from sklearn.metrics import cohen_kappa_score  # imported late: it takes a second

    size = state.pool.size
    index = shuffled(torch.arange(size), size, rng(setup.seed, "stop set"))[:STOP_SET]
    now = predict(setup, state.backbone, None, setup.dataset.train, index).logits.argmax(dim=1).cpu()
    before, state.stop_predictions = state.stop_predictions, now
    if before is not None:
        same = torch.equal(before, now)  # if every image had one class, the kappa would be undefined
        state.row["prediction_kappa"] = 1.0 if same else float(cohen_kappa_score(before.numpy(), now.numpy()))
    return Step(len(index))


def labeling_time(state: State, seconds_per_label: float | None) -> Row:
    """Returns the seconds of labeling so far: those that were measured, or the answers times those of a label.

    Nothing if neither is known.
    """
    if state.labeling_seconds is not None:
        return {"labeling_seconds": state.labeling_seconds}
    if seconds_per_label is None:
        return {}
    return {"labeling_seconds": seconds_per_label * float(state.row.get("answers") or state.row["labeled"] or 0)}


def label_counts(state: State) -> Row:
    """Returns how many labels were paid for and, if images were rejected, how many, and their share of the last batch.

    Rejected images cost a label, and are counted as labels.
    """
    rejected = len(state.pool.rejected)
    labels = len(state.pool.labeled) + rejected
    if not rejected:
        return {"labeled": labels}
    earlier: Row = state.history[-1] if state.history else {}
    new_labels = labels - int(earlier.get("labeled") or 0)
    new_rejected = max(0, rejected - int(earlier.get("rejected") or 0))  # people may have taken some back
    return {
        "labeled": labels,
        "rejected": rejected,
        "wasted_label_rate": min(1.0, new_rejected / new_labels) if new_labels > 0 else None,
    }


def annotation_metrics(state: State, annotations: Annotations, truth: Tensor) -> Row:
    """Returns how many answers were paid for, the agreement of the people, and the share of labels that are right.

    The latter is None if a true label [pool] of a labeled image is unknown (-1).
    """
    true_labels = truth[state.ledger.index]
    known = len(true_labels) > 0 and not bool((true_labels == UNLABELED).any())
    return {
        "answers": len(annotations.label),
        "annotator_kappa": annotator_kappa(annotations),
        "label_accuracy": (state.ledger.label == true_labels).double().mean().item() if known else None,
    }
