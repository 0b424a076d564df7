"""Averages of a network's weights over the steps of a training."""

from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from sslpl.state import State, Weights, weights_of


def update_average(average: nn.Module, network: nn.Module, decay: float, steps: int) -> None:
    """Moves averaged weights towards a network's after so many steps, at least 1.

    The decay grows as (1 + steps) / (10 + steps), so that the first, random weights are soon forgotten (TensorFlow's
    rule for averages that are told their updates); statistics of batch norms are averaged alike (ours).
    """
    kept, now = (
        [value for value in source.state_dict().values() if value.is_floating_point()] for source in (average, network)
    )
    keep = min(decay, (1 + steps) / (10 + steps))
    get_ema_multi_avg_fn(keep)(kept, now, None)  # type: ignore[no-untyped-call]


def use_average(state: State) -> None:
    """Averaged weights are tested, fine-tuned and scored with; the raw ones wait for the next joint training."""
    if state.average is not None:
        state.unaveraged_weights = weights_of(state.backbone)
        state.backbone.load_state_dict(state.average)
        state.average = state.task = None


def update_teacher(teacher: Weights | None, network: nn.Module, decay: float, steps: int) -> Weights:
    """The averaged weights after `steps` steps: the true mean, then the exponential one (Tarvainen and Valpola 2017).

    Statistics of batch norms are averaged alike (ours: the published teacher gathers its own).
    """
    if teacher is None or steps == 1:
        return weights_of(network)
    now = {name: value for name, value in network.state_dict().items() if value.is_floating_point()}
    teacher |= {name: teacher[name].to(value.device) for name, value in now.items()}
    keep = min(decay, 1 - 1 / steps)
    average = get_ema_multi_avg_fn(keep)  # type: ignore[no-untyped-call]
    average([teacher[name] for name in now], list(now.values()), None)
    return teacher
