"""The evaluate phase: test metrics of the backbone and rank correlation of the predicted losses."""

from collections.abc import Iterator

import torch

from sslpl.learn.inference import predict
from sslpl.learn.metrics import loss_rank_correlation, test_metrics
from sslpl.setup import Setup
from sslpl.state import State
from sslpl.types import Step


def evaluate(setup: Setup, state: State) -> Iterator[Step]:
    """Computes the test metrics, and the rank correlation of predicted and true losses of the unlabeled images."""
    data, networks = setup.dataset, (state.backbone, state.module)
    state.row.update(cycle=state.cycle, labeled=len(state.pool.labeled))
    views = setup.training.test_time_augmentation
    test = predict(setup, *networks, data.test, torch.arange(len(data.test)), views)
    state.row.update(test_metrics(test, data.test_labels))
    yield Step(len(data.test))
    if state.module is not None:
        unlabeled = state.predictions = predict(setup, *networks, data.train, state.pool.unlabeled)
        state.row["loss_rank_correlation"] = loss_rank_correlation(unlabeled, setup.true_labels[unlabeled.index])
        yield Step(len(unlabeled.index))
