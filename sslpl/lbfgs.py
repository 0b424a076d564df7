"""Minimization by L-BFGS with a strong Wolfe line search."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def minimize(
    weights: Sequence[Tensor], objective: Callable[[], Tensor], steps: int, tolerance: float, history: int = 100
) -> None:
    """Minimizes an objective [] in place over leaf tensors, until its largest gradient is at most the tolerance.

    It takes at most `steps` iterations and keeps the last `history` of them to approximate the curvature.
    """
    optimizer = torch.optim.LBFGS(
        weights, max_iter=steps, tolerance_grad=tolerance, history_size=history, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = objective()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
