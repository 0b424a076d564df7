"""Optimizers whose rates and momentum outlive a captured step and a checkpoint."""

from typing import Any

import torch
from torch import Tensor

from sslpl.setup import Setup
from sslpl.state import State


def joint_optimizer(setup: Setup, state: State) -> torch.optim.SGD:
    """SGD over backbone and module, each with its own rate; continues what a checkpoint interrupted."""
    training = setup.training
    networks = [network for network in (state.backbone, state.module) if network is not None]
    # The rates are tensors on the device, so that a captured step reads them anew at each replay.
    groups = [{"params": list(network.parameters()), "lr": rate_tensor(setup.device)} for network in networks]
    optimizer = torch.optim.SGD(groups, momentum=training.momentum, weight_decay=training.weight_decay, fused=True)
    return resume_optimizer(optimizer, state)


def rate_tensor(device: torch.device) -> Tensor | float:
    """Where a learning rate is kept."""
    return torch.zeros((), device=device) if device.type == "cuda" else 0.0


def set_rates(optimizer: torch.optim.Optimizer, rates: tuple[float, ...]) -> None:
    """Sets the learning rate of each group of parameters."""
    for group, rate in zip(optimizer.param_groups, rates, strict=False):
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def load_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Loads a saved state and keeps the tensors of the rates: a captured step goes on reading them.

    `load_state_dict` alone would put the saved tensors, which lie on the CPU, in their place.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    optimizer.load_state_dict(saved)
    values = tuple(float(group["lr"]) for group in optimizer.param_groups)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    set_rates(optimizer, values)


def resume_optimizer(optimizer: torch.optim.SGD, state: State) -> torch.optim.SGD:
    """The optimizer of the phase under way, with the momentum that a checkpoint holds."""
    if state.optimizer_state is not None:
        load_optimizer(optimizer, state.optimizer_state)
    state.optimizer, state.optimizer_state = optimizer, None
    return optimizer
