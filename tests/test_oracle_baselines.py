"""BoSS and the greedy oracle: what their heads learn, what they compare, and that they are baselines."""

from dataclasses import replace

import pytest
import torch
from published_cases import case, seen
from sklearn.linear_model import LogisticRegression
from torch import Generator, Tensor
from torch.nn.functional import cross_entropy, one_hot

from sslpl.query import boss as boss_strategy
from sslpl.query import random
from sslpl.query.greedy_oracle import greedy_oracle
from sslpl.query.linear_probe import fit_linear_probe, predicted_classes, probe_accuracy, with_bias
from sslpl.query.selection import hold_out, subsample
from sslpl.types import QueryStrategy


def seeded(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("seed", range(5))
def test_the_head_is_the_logistic_regression_of_scikit_learn(seed: int) -> None:
    drawn = case(seed)
    inputs, decay = with_bias(drawn.embedding), 0.01
    weight = fit_linear_probe(drawn.embedding, drawn.classes, drawn.head.out_features, decay, 1000)
    model = LogisticRegression(C=1 / (decay * len(inputs)), fit_intercept=False, tol=1e-8, max_iter=10_000)
    model.fit(inputs.numpy(), drawn.classes.numpy())

    def objective(weight: Tensor) -> float:
        return float(cross_entropy(inputs @ weight.T, drawn.classes) + decay / 2 * weight.square().sum())

    if drawn.head.out_features > 2:  # two classes have a single vector there
        expected = torch.from_numpy(model.coef_)
        torch.testing.assert_close(objective(weight), objective(expected), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(weight, expected, rtol=1e-3, atol=1e-3)
    warm = fit_linear_probe(drawn.embedding, drawn.classes, drawn.head.out_features, decay, 1000, start=weight + 0.1)
    torch.testing.assert_close(warm, weight, rtol=1e-3, atol=1e-3)


def test_a_class_without_images_can_be_fitted() -> None:
    weight = fit_linear_probe(torch.eye(4), torch.tensor([0, 0, 2, 2]), 5, 1e-3, 100)
    assert predicted_classes(weight, torch.eye(4)).tolist() == [0, 0, 2, 2]


def test_no_batch_contains_an_image_that_it_is_evaluated_on() -> None:
    context = seen(case(0))
    for n, evaluated, count in ((10, 50, 50), (10, 10**6, len(context.unlabeled) // 2), (len(context.unlabeled), 9, 0)):
        held_out, pool = hold_out(context, n, evaluated, seeded())
        assert len(held_out) == count
        every = torch.cat([context.unlabeled[held_out], pool.unlabeled]).sort().values
        assert torch.equal(every, context.unlabeled)


@pytest.mark.parametrize("seed", range(3))
def test_boss_is_better_than_random_batches(seed: int) -> None:
    """The accuracy it reports is that of its batch, and higher than that of ten random batches on average."""
    context = seen(case(seed))
    batch = boss_strategy(context, 10, seeded(), batches=40)
    held_out, pool = hold_out(context, 10, 10_000, seeded())
    embedding, truth = context.predictions.embedding, context.hidden_labels()

    def share(index: Tensor) -> float:
        rows = torch.searchsorted(context.unlabeled, index)
        inputs = torch.cat([context.labeled_predictions.embedding, embedding[rows]])
        weight = fit_linear_probe(inputs, torch.cat([context.labels, truth[rows]]), context.num_classes, 5e-4, 1000)
        return probe_accuracy(weight, embedding[held_out], truth[held_out])

    assert batch.score.unique().tolist() == pytest.approx([share(batch.index)], abs=0.01)
    assert sum(share(random(pool, 10, seeded(k)).index) for k in range(10)) / 10 < batch.score[0]


@pytest.mark.parametrize("seed", range(3))
def test_each_image_of_the_greedy_oracle_is_the_best_as_computed_directly(seed: int) -> None:
    context, regularization = seen(case(seed)), 0.5
    chosen = greedy_oracle(context, 4, seeded(), regularization=regularization, evaluated=60, subset=40)
    rng = seeded()
    held_out, pool = hold_out(context, 4, 60, rng)
    candidates = subsample(pool, 4, 40, rng).unlabeled.tolist()
    embedding, truth, classes = context.predictions.embedding, context.hidden_labels(), context.num_classes

    def errors(index: list[int]) -> tuple[int, float]:
        rows = torch.searchsorted(context.unlabeled, torch.tensor(index, dtype=torch.int64))
        inputs = with_bias(torch.cat([context.labeled_predictions.embedding, embedding[rows]]))
        targets = one_hot(torch.cat([context.labels, truth[rows]]), classes).double()
        gram = inputs.T @ inputs + regularization * torch.eye(inputs.shape[1])
        outputs = with_bias(embedding[held_out]) @ torch.linalg.solve(gram, inputs.T @ targets)
        squared = (outputs - one_hot(truth[held_out], classes)).square().sum()
        return int((outputs.argmax(dim=1) != truth[held_out]).sum()), float(squared)

    expected: list[int] = []
    for _ in range(4):
        expected = min(([*expected, i] for i in candidates if i not in expected), key=errors)
    assert chosen.index.tolist() == expected
    shares = [1 - errors(expected[: count + 1])[0] / 60 for count in range(4)]
    torch.testing.assert_close(chosen.score.tolist(), shares)


@pytest.mark.parametrize("strategy", [boss_strategy, greedy_oracle])
def test_a_baseline_needs_the_hidden_labels(strategy: QueryStrategy) -> None:
    with pytest.raises(PermissionError, match=r"query\.oracle_baseline=true"):
        strategy(replace(seen(case(0)), truth=None), 5, seeded())
