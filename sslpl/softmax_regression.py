"""Softmax regression (multinomial logistic regression) on a CPU."""

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController
from torch import Tensor

Array = NDArray[np.float32] | NDArray[np.float64]


def fit_softmax_regression(
    inputs: Tensor, labels: Tensor, penalty: Tensor, start: Tensor, steps: int, tolerance: float
) -> Tensor:
    """Returns the weights [C, D] that minimize the mean cross-entropy + half the sum of `penalty` [D] x their squares.

    SciPy's L-BFGS takes at most `steps` iterations from `start` [C, D], until the largest gradient is at most the
    tolerance. The cross-entropy and its gradient are computed in the precision of the inputs [N, D]. The objective is
    convex, so that `start` only decides how many iterations it takes.
    """
    from scipy.optimize import minimize  # takes 0.2 s, and most runs do not need it

    x, target, decay = inputs.cpu().numpy(), labels.cpu().numpy(), penalty.cpu().double().numpy()
    first = start.cpu().double().numpy()

    def objective(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weight = flat.reshape(first.shape)
        loss, gradient = loss_and_gradient(x, target, weight.astype(x.dtype))
        shrunk = decay * weight
        return loss + 0.5 * float(np.vdot(shrunk, weight)), (gradient + shrunk).ravel()

    options = {"maxiter": steps, "maxfun": 20 * steps, "gtol": tolerance, "ftol": 0.0, "maxls": 50}
    with blas_threads().limit(limits=1):  # two threads take ten times as long as one for products as small as these
        found = minimize(objective, first.ravel(), jac=True, method="L-BFGS-B", options=options)
    return torch.from_numpy(found.x.reshape(first.shape)).to(inputs.device)


@cache
def blas_threads() -> ThreadpoolController:
    """Returns the controller of the threads of NumPy's and SciPy's BLAS, which must have been imported."""
    return ThreadpoolController().select(user_api="blas")


def loss_and_gradient(inputs: Array, labels: NDArray[np.int64], weight: Array) -> tuple[float, Array]:
    """Computes the mean cross-entropy of inputs [N, D], and its gradient [C, D] by the weights [C, D]."""
    rows = np.arange(len(inputs))
    logits = inputs @ weight.T
    logits -= logits.max(axis=1, keepdims=True)
    p = np.exp(logits)
    total = p.sum(axis=1)
    loss = float((np.log(total) - logits[rows, labels]).mean(dtype=np.float64))
    p /= total[:, None]
    p[rows, labels] -= 1
    p /= len(inputs)
    return loss, p.T @ inputs
