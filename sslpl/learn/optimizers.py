"""Optimizers whose rates and momentum outlive a captured step and a checkpoint."""

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
    return resumed(optimizer, state)


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


def resumed(optimizer: torch.optim.SGD, state: State) -> torch.optim.SGD:
    """The optimizer of the phase under way, with the momentum that a checkpoint holds."""
    if state.optimizer_state is not None:
        optimizer.load_state_dict(state.optimizer_state)
    state.optimizer, state.optimizer_state = optimizer, None
    return optimizer
