"""Exponential moving averages of a network's weights over training steps."""

from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from sslpl.state import State, Weights, weights_of


def update_average(average: nn.Module, network: nn.Module, decay: float, steps: int) -> None:
    """Updates averaged weights with those of a network after `steps` steps, at least 1.

    The decay grows as (1 + steps) / (10 + steps), so that the initial weights are soon forgotten (TensorFlow's
    ExponentialMovingAverage with num_updates). Batch norm statistics are averaged, too (ours).
    """
    averages, current = (
        [value for value in source.state_dict().values() if value.is_floating_point()] for source in (average, network)
    )
    step_decay = min(decay, (1 + steps) / (10 + steps))
    get_ema_multi_avg_fn(step_decay)(averages, current, None)  # type: ignore[no-untyped-call]


def use_average(state: State) -> None:
    """Loads the averaged weights, if any, into the backbone; keeps the unaveraged ones for the next joint training."""
    if state.average is not None:
        state.unaveraged_weights = weights_of(state.backbone)
        state.backbone.load_state_dict(state.average)
        state.average = state.task = None


def update_teacher(teacher: Weights | None, network: nn.Module, decay: float, steps: int) -> Weights:
    """Returns the teacher after `steps` steps: first the true mean, then the exponential (Tarvainen and Valpola 2017).

    Batch norm statistics are averaged, too (ours: the published teacher collects its own).
    """
    if teacher is None or steps == 1:
        return weights_of(network)
    current = {name: value for name, value in network.state_dict().items() if value.is_floating_point()}
    teacher |= {name: teacher[name].to(value.device) for name, value in current.items()}
    step_decay = min(decay, 1 - 1 / steps)
    average = get_ema_multi_avg_fn(step_decay)  # type: ignore[no-untyped-call]
    average([teacher[name] for name in current], list(current.values()), None)
    return teacher
