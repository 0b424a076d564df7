"""Muon: momentum whose updates of convolutions are orthogonal matrices (Jordan et al. 2024)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# Quintic whose iteration drives singular values from (0, 1] to between 0.7 and 1.2, in few steps (Jordan et al. 2024).
QUINTIC, ITERATIONS = (3.4445, -4.7750, 2.0315), 3


class MuonSGD(torch.optim.SGD):
    """SGD whose parameter groups with `muon=True` hold convolutions that take Muon's steps, without weight decay."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes a step of Muon in the marked groups, then one of SGD in the others."""
        for group in self.param_groups:
            for weight in group["params"] if group.get("muon") else ():
                if weight.grad is not None:
                    self._muon_step(group, weight, weight.grad)
                    weight.grad = None  # SGD skips weights without a gradient
        return super().step(closure)

    def _muon_step(self, group: dict[str, Any], weight: Tensor, gradient: Tensor) -> None:
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        average = state["momentum_buffer"].mul_(group["momentum"]).add_(gradient)
        direction = gradient.add(average, alpha=group["momentum"]) if group["nesterov"] else average
        turn(weight, orthogonalized(direction.flatten(1)).view_as(weight), group["lr"])


def turn(weight: Tensor, update: Tensor, rate: Tensor | float) -> None:
    """Moves a weight against an update, by `rate` times its own norm, which it keeps.

    Batch norm after a convolution makes its norm irrelevant. Airbench resets the norm of each layer to a constant
    instead; relative steps (ours) also suit layers whose norm matters.
    """
    norm = weight.norm()
    weight.sub_(update * (rate * norm / (update.norm() + 1e-12)))
    weight.mul_(norm / (weight.norm() + 1e-12))


def orthogonalized(matrix: Tensor) -> Tensor:
    """Returns a matrix with the singular vectors of a matrix and singular values near 1, in float32.

    By Newton-Schulz iterations, in bfloat16 on a GPU.
    """
    rows, columns = matrix.shape
    x: Tensor = (matrix.T if rows > columns else matrix).to(torch.bfloat16 if matrix.is_cuda else torch.float32)
    x = x / (x.norm() + 1e-7)
    a, b, c = QUINTIC
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.T if rows > columns else x).float()
