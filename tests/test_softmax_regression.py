"""Softmax regression: its gradient, its minimum, and what does not change it."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn.functional import cross_entropy

from sslpl import softmax_regression
from sslpl.softmax_regression import fit_softmax_regression, loss_and_gradient


def drawn(seed: int, rows: int = 120, width: int = 30, classes: int = 4) -> tuple[Tensor, Tensor]:
    """Returns inputs [rows, width] in float64, the last coordinate 1, and labels of overlapping classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (rows,), generator=generator)
    centers = torch.randn(classes, width, generator=generator, dtype=torch.float64)
    inputs = centers[labels] + 2 * torch.randn(rows, width, generator=generator, dtype=torch.float64)
    inputs[:, -1] = 1
    return inputs, labels


def test_the_gradient_is_that_of_autograd() -> None:
    inputs, labels = drawn(0)
    weight = torch.randn(4, 30, dtype=torch.float64, requires_grad=True)
    expected = cross_entropy(inputs @ weight.T, labels)
    (gradient,) = torch.autograd.grad(expected, weight)
    loss, computed = loss_and_gradient(inputs.numpy(), labels.numpy(), weight.detach().numpy())
    assert loss == pytest.approx(expected.item(), rel=1e-12)
    np.testing.assert_allclose(computed, gradient.numpy(), atol=1e-12)


def test_large_logits_do_not_overflow() -> None:
    inputs, labels = drawn(1)
    loss, gradient = loss_and_gradient(1e4 * inputs.float().numpy(), labels.numpy(), np.ones((4, 30), np.float32))
    assert np.isfinite(loss)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize(("dtype", "tolerance", "error"), [(torch.float32, 1e-6, 5e-3), (torch.float64, 1e-9, 1e-5)])
@pytest.mark.parametrize("seed", range(3))
def test_the_minimum_is_that_of_scikit_learn(seed: int, dtype: torch.dtype, tolerance: float, error: float) -> None:
    inputs, labels = drawn(seed)
    penalty = torch.full((30,), 1 / len(labels))
    penalty[-1] = 0  # scikit-learn does not penalize the bias either
    start = torch.randn(4, 30, generator=torch.Generator().manual_seed(seed))
    weight = fit_softmax_regression(inputs.to(dtype), labels, penalty, start, 1000, tolerance)
    theirs = LogisticRegression(C=1, tol=1e-9, max_iter=10_000).fit(inputs[:, :-1].numpy(), labels.numpy())
    centered = weight - weight.mean(dim=0)  # what all classes have in common changes no probability
    np.testing.assert_allclose(centered[:, :-1], theirs.coef_ - theirs.coef_.mean(axis=0), atol=error)
    np.testing.assert_allclose(centered[:, -1], theirs.intercept_ - theirs.intercept_.mean(), atol=error)


def test_one_thread_is_used_and_the_number_of_before_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, labels = drawn(3)
    seen = list[set[int]]()

    def threads() -> set[int]:
        return {library["num_threads"] for library in softmax_regression.blas_threads().info()}

    def observed(*arguments: Any) -> Any:
        seen.append(threads())
        return loss_and_gradient(*arguments)

    monkeypatch.setattr(softmax_regression, "loss_and_gradient", observed)
    with softmax_regression.blas_threads().limit(limits=2):
        before = threads()
        fit_softmax_regression(inputs.float(), labels, torch.ones(30), torch.zeros(4, 30), 5, 1e-4)
        assert threads() == before == {2}
    assert seen
    assert all(number == {1} for number in seen)
