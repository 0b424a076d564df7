"""The best epoch of a joint training, by held-out labels."""

from sslpl.learn.inference import predict
from sslpl.learn.metrics import accuracy
from sslpl.learn.unlabeled_batches import TaskTraining
from sslpl.setup import Setup
from sslpl.state import BestEpoch, State, weights_of


def validate_epoch(setup: Setup, state: State, task: TaskTraining | None = None) -> dict[str, float]:
    """Accuracy on the held-out labels, of averaged weights if there are any.

    Copies the best networks so far, of equal ones the later, if asked to.
    """
    if len(state.held_out) == 0:
        return {}
    said = predict(setup, state.backbone if task is None else task.average, None, setup.dataset.train, state.held_out)
    now = accuracy(said.logits.cpu(), state.labels()[state.held_out])
    if setup.training.checkpoint == "best" and (state.best is None or now >= state.best.accuracy):
        module = None if state.module is None else weights_of(state.module)
        average = None if task is None else weights_of(task.average)
        state.best = BestEpoch(now, weights_of(state.backbone), module, average)
    state.row["validation_accuracy"] = now if state.best is None else state.best.accuracy
    return {"train/validation_accuracy": now}


def restore_best_epoch(state: State) -> None:
    """Gives the networks the weights of their best epoch, if that was kept."""
    if state.best is not None:
        state.backbone.load_state_dict(state.best.backbone)
        if state.module is not None and state.best.module is not None:
            state.module.load_state_dict(state.best.module)
        state.average = state.best.average
        state.best = None
