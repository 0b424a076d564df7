"""Optimizers whose learning rates and momentum work with CUDA graphs and checkpoints."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sslpl.setup import Setup
from sslpl.state import State


def joint_optimizer(setup: Setup, state: State, head: nn.Module | None = None) -> torch.optim.SGD:
    """Returns SGD over backbone and module with separate rates, with its state from the checkpoint if there is one.

    A head of a task method has the rate of the backbone.
    """
    training = setup.training
    weights = [*state.backbone.parameters(), *(() if head is None else head.parameters())]
    networks = [weights, *([] if state.module is None else [list(state.module.parameters())])]
    # The rates are tensors on the GPU, so that a captured step reads their current values at each replay.
    groups = [{"params": network, "lr": rate_tensor(setup.device)} for network in networks]
    optimizer = torch.optim.SGD(groups, momentum=training.momentum, weight_decay=training.weight_decay, fused=True)
    return resume_optimizer(optimizer, state)


def rate_tensor(device: torch.device) -> Tensor | float:
    """Returns the initial value of a learning rate: a tensor on a GPU, a number on a CPU."""
    return torch.zeros((), device=device) if device.type == "cuda" else 0.0


def set_rates(optimizer: torch.optim.Optimizer, rates: Sequence[float]) -> None:
    """Sets the learning rate of each parameter group."""
    for group, rate in zip(optimizer.param_groups, rates, strict=False):
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def load_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Loads a saved state into an optimizer but keeps its rate tensors, which a captured step reads.

    `load_state_dict` alone would replace them by the saved tensors, which are on the CPU.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    optimizer.load_state_dict(saved)
    values = tuple(float(group["lr"]) for group in optimizer.param_groups)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    set_rates(optimizer, values)


def resume_optimizer(optimizer: torch.optim.SGD, state: State) -> torch.optim.SGD:
    """Registers the optimizer of the current phase, with its state from the checkpoint if there is one; returns it."""
    if state.optimizer_state is not None:
        load_optimizer(optimizer, state.optimizer_state)
    state.optimizer, state.optimizer_state = optimizer, None
    return optimizer
