"""The best epoch of a joint training, by accuracy on held-out labels."""

from sslpl.learn.batch_statistics import estimate_statistics
from sslpl.learn.inference import predict
from sslpl.learn.metrics import accuracy
from sslpl.learn.unlabeled_batches import TaskTraining
from sslpl.setup import Setup
from sslpl.state import BestEpoch, State, weights_of


def validate_epoch(setup: Setup, state: State, task: TaskTraining | None = None) -> dict[str, float]:
    """Returns the accuracy on the held-out labels, of the averaged weights if there are any.

    With `training.checkpoint=best`, copies the weights of the best epoch so far; of equal ones, the later.
    """
    if len(state.held_out) == 0:
        return {}
    network = state.backbone if task is None else task.average
    estimate_statistics(setup, state, network)
    views = setup.training.test_time_augmentation
    predictions = predict(setup, network, None, setup.dataset.train, state.held_out, views)
    validation_accuracy = accuracy(predictions.logits.cpu(), state.labels()[state.held_out])
    if setup.training.checkpoint == "best" and (state.best is None or validation_accuracy >= state.best.accuracy):
        module = None if state.module is None else weights_of(state.module)
        average = None if task is None else weights_of(task.average)
        state.best = BestEpoch(validation_accuracy, weights_of(state.backbone), module, average)
    state.row["validation_accuracy"] = validation_accuracy if state.best is None else state.best.accuracy
    return {"train/validation_accuracy": validation_accuracy}


def restore_best_epoch(state: State) -> None:
    """Loads the weights of the best epoch, if they were saved."""
    if state.best is not None:
        state.backbone.load_state_dict(state.best.backbone)
        if state.module is not None and state.best.module is not None:
            state.module.load_state_dict(state.best.module)
        state.average = state.best.average
        state.best = None
