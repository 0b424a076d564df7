"""Uncertainty scores against explicit loops, automatic differentiation and enumeration; committees in complete runs."""

import itertools
import math
import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TINY, Killed, Result, run_folder
from querying import CLASSES, context, predicting
from torch import Generator, Tensor
from torch.nn.functional import cross_entropy

from sslpl.query import (
    consistency,
    disagreement,
    expected_gradient_length,
    query_by_committee,
    scorers,
    temporal_output_discrepancy,
)
from sslpl.query.bald import bald, dropout_entropy, mean_std, variation_ratio
from sslpl.query.batch_bald import NEGLIGIBLE, Configurations, batch_bald, extended, greedy, information, stratified
from sslpl.query.class_balanced_random import class_balanced_random
from sslpl.query.context import Context
from sslpl.query.mc_dropout import dropout_masks, sampled_logits
from sslpl.query.selectors import power
from sslpl.recording import checkpoint
from sslpl.types import UserError

Command = Callable[..., Result]
LOGITS = torch.tensor([[0.5, 0.3, 0.2], [0.9, 0.06, 0.04], [1 / 3, 1 / 3, 1 / 3]]).log()


def seeded(seed: int = 0) -> Generator:
    return torch.Generator().manual_seed(seed)


def entropy(probability: list[float]) -> float:
    return -sum(p * math.log(p) for p in probability if p > 0)


@pytest.mark.parametrize("scorer", [scorers.least_confidence, scorers.margin, scorers.ratio])
def test_with_a_single_class_all_images_score_alike(scorer: Callable[..., Tensor]) -> None:
    assert scorer(predicting(torch.randn(5, 1)), seeded()).unique().numel() == 1


@pytest.mark.parametrize(
    ("scorer", "expected"),
    [
        (scorers.least_confidence, [0.5, 0.1, 2 / 3]),
        (scorers.margin, [-0.2, -0.84, 0.0]),
        (scorers.ratio, [0.6, 0.06 / 0.9, 1.0]),
    ],
)
def test_confidence_by_hand(scorer: Callable[..., Tensor], expected: list[float]) -> None:
    torch.testing.assert_close(scorer(predicting(LOGITS), seeded()).tolist(), expected, atol=1e-6, rtol=0)


def test_expected_gradient_length_by_automatic_differentiation() -> None:
    seen = context()
    known, head = seen.predictions, seen.backbone.head
    score = expected_gradient_length(seen, seeded())
    for row in range(5):
        expected = 0.0
        for label in range(CLASSES):
            logits = head(known.embedding[row])
            gradients = torch.autograd.grad(cross_entropy(logits, torch.tensor(label)), tuple(head.parameters()))
            norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
            expected += logits.softmax(0)[label].item() * norm.item()
        assert score[row].item() == pytest.approx(expected, rel=1e-4)


def test_temporal_discrepancy_is_the_distance_of_probabilities_and_its_opposite_in_the_first_cycle() -> None:
    seen = context()
    now, before = seen.predictions.logits.softmax(1), seen.previous.logits.softmax(1)
    expected = [math.dist(a.tolist(), b.tolist()) for a, b in zip(now, before, strict=True)]
    later = temporal_output_discrepancy(replace(seen, cycle=1), seeded())
    torch.testing.assert_close(later.tolist(), expected, atol=1e-6, rtol=0)
    assert torch.equal(temporal_output_discrepancy(seen, seeded()), -later)


def test_a_committee_by_explicit_loops() -> None:
    seen = context()
    members = [member.logits.double().softmax(1) for member in seen.committee]
    assert len(members) == 3
    divergences, entropies = [], []
    for rows in zip(*(member.tolist() for member in members), strict=True):
        consensus = [sum(column) / 3 for column in zip(*rows, strict=True)]
        pairs = [pair for row in rows for pair in zip(row, consensus, strict=True)]
        divergences.append(sum(p * math.log(p / q) for p, q in pairs) / 3)
        entropies.append(entropy([count / 3 for count in Counter(row.index(max(row)) for row in rows).values()]))
    by_divergence = query_by_committee(seen, seeded(), disagreement="consensus_kl")
    by_votes = query_by_committee(seen, seeded(), disagreement="vote_entropy")
    torch.testing.assert_close(by_divergence.tolist(), divergences)
    torch.testing.assert_close(by_votes.tolist(), entropies)


def opinionated(pool: int = 60, labeled: int = 20) -> Context:
    """Returns a context whose network is as confident as a trained one."""
    seen = context(pool, labeled)
    with torch.no_grad():
        seen.backbone.head.weight.mul_(60)
    return seen


def sampled(seen: Context, samples: int, seed: int = 0) -> Tensor:
    """Draws class probabilities [U, samples, classes] as the scorers do."""
    known = seen.predictions
    masks = dropout_masks(samples, known.embedding, 0.5, seeded(seed))
    return torch.stack([seen.backbone.head(known.embedding * mask).double().softmax(1) for mask in masks], 1).detach()


@pytest.mark.parametrize(
    ("scorer", "of_one"),
    [
        (bald, lambda p: entropy(p.mean(0).tolist()) - sum(entropy(row.tolist()) for row in p) / len(p)),
        (dropout_entropy, lambda p: entropy(p.mean(0).tolist())),
        (mean_std, lambda p: sum(statistics.pstdev(column.tolist()) for column in p.T) / CLASSES),
        (variation_ratio, lambda p: 1 - max(Counter(row.argmax().item() for row in p).values()) / len(p)),
    ],
)
def test_monte_carlo_dropout_by_explicit_loops(
    scorer: Callable[..., Tensor], of_one: Callable[[Tensor], float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sslpl.query.mc_dropout.CHUNK", 7 * 9 * CLASSES)  # seven images at a time
    seen = opinionated()
    expected = [of_one(one) for one in sampled(seen, 9)]
    assert max(expected) > 0.05
    torch.testing.assert_close(scorer(seen, seeded(), samples=9).tolist(), expected, atol=1e-6, rtol=0)


def test_without_dropout_the_sampled_networks_agree() -> None:
    assert bald(opinionated(), seeded(), samples=5, dropout=0.0).max() < 1e-12


def test_dropout_keeps_the_mean_and_the_asked_share() -> None:
    embedding = torch.rand(20, 64, generator=seeded())
    masks = dropout_masks(4000, embedding, 0.25, seeded(1))
    assert masks.unique().tolist() == pytest.approx([0, 4 / 3])
    assert (masks == 0).double().mean().item() == pytest.approx(0.25, abs=0.005)
    head = torch.nn.Linear(64, 3)
    torch.testing.assert_close(
        sampled_logits(head, embedding, masks).mean(1), head(embedding).detach(), atol=0.02, rtol=0
    )


def test_dropout_needs_a_linear_head() -> None:
    with pytest.raises(UserError, match="head"):
        bald(predicting(LOGITS), seeded())


def joint_information(probability: Tensor, rows: tuple[int, ...]) -> float:
    """Computes the mutual information of the images' labels [N, samples, classes] and the network by enumeration."""
    samples, classes = probability.shape[1:]
    total = 0.0
    for labels in itertools.product(range(classes), repeat=len(rows)):
        each = torch.stack([probability[row, :, label] for row, label in zip(rows, labels, strict=True)]).prod(0)
        total += entropy([each.mean().item()])
    return total - sum(entropy(probability[row, s].tolist()) for row in rows for s in range(samples)) / samples


def greedily(probability: Tensor, n: int) -> tuple[list[int], list[float]]:
    chosen: list[int] = []
    values = [0.0]
    for _ in range(n):
        left = [row for row in range(len(probability)) if row not in chosen]
        value, best = max((joint_information(probability, (*chosen, row)), row) for row in left)
        chosen.append(best)
        values.append(value)
    return chosen, [after - before for before, after in itertools.pairwise(values)]


def test_batch_bald_by_enumeration() -> None:
    probability = (3 * torch.randn(12, 6, 3, generator=seeded(), dtype=torch.float64)).softmax(2)
    bald_of_each = disagreement.mutual_information(probability.log())
    chosen, gains = greedily(probability, 3)
    order = torch.argsort(bald_of_each, descending=True)
    rows, gain = greedy(lambda at: probability[order[at]].float(), bald_of_each[order], 3, (27, 5), seeded())
    assert order[rows].tolist() == chosen
    torch.testing.assert_close(gain.tolist(), gains, atol=1e-5, rtol=0)
    assert chosen != order[:3].tolist()  # the three of highest BALD would not have been it


def test_batch_bald_chooses_the_same_from_a_network() -> None:
    seen = opinionated(pool=30, labeled=10)
    chosen, gains = greedily(sampled(seen, 5), 3)
    picked = batch_bald(seen, 3, seeded(), samples=5)
    assert picked.index.tolist() == seen.unlabeled[chosen].tolist()
    torch.testing.assert_close(picked.score.tolist(), gains, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("start", "limits", "tolerance"), [(1, (64, 1), 1e-5), (1, (4, 20000), 0.01), (20000, (0, 20000), 0.01)]
)
def test_exact_and_sampled_configurations_give_the_joint_information(
    start: int, limits: tuple[int, int], tolerance: float
) -> None:
    probability = (2 * torch.randn(5, 8, 4, generator=seeded())).softmax(2)
    known = Configurations(torch.full((start,), 1 / start, dtype=torch.float64), torch.full((start, 8), 1 / 8))
    for row in (0, 1, 2):
        known = extended(known, probability[row], limits, seeded(row))
    assert len(known.weight) <= max(limits)
    before = joint_information(probability.double(), (0, 1, 2))
    expected = [joint_information(probability.double(), (0, 1, 2, row)) - before for row in (3, 4)]
    assert min(expected) > 0.05
    torch.testing.assert_close(information(known, probability[3:]).tolist(), expected, atol=tolerance, rtol=0)


def test_stratified_draws_follow_the_chances() -> None:
    chance = torch.tensor([0.1, 0.0, 0.6, 0.3], dtype=torch.float64)
    drawn = torch.bincount(stratified(chance, 1000, seeded()), minlength=4)
    assert drawn.tolist() == pytest.approx([100, 0, 600, 300], abs=2)
    each = stratified(torch.full((50,), 0.02, dtype=torch.float64), 50, seeded())
    assert each.tolist() == list(range(50))


def test_batch_bald_avoids_what_it_knows_already() -> None:
    probability = (4 * torch.randn(4, 6, 3, generator=seeded(2))).softmax(2)
    twice = probability.repeat_interleave(50, dim=0)
    score = disagreement.mutual_information(twice.double().log())
    order = torch.argsort(score, descending=True, stable=True)
    rows, gain = greedy(lambda at: twice[order[at]], score[order], 60, (200, 200), seeded())
    assert len(set(rows.tolist())) == 60
    assert len({row // 50 for row in order[rows][:3].tolist()}) == 3
    assert gain.sum() <= math.log(6) + 0.01
    assert gain.min() >= -NEGLIGIBLE


def test_power_draws_in_proportion() -> None:
    score = torch.tensor([1.0, 2.0, 0.0, 5.0])
    draw = [power(score, score, 4, 4, seeded(seed)).tolist() for seed in range(4000)]
    shares = [sum(order[0] == i for order in draw) / 4000 for i in range(4)]
    assert shares == pytest.approx([1 / 8, 2 / 8, 0, 5 / 8], abs=0.025)
    assert all(order[3] == 2 for order in draw)
    after_the_last = [order[1] for order in draw if order[0] == 3]
    assert after_the_last.count(1) / len(after_the_last) == pytest.approx(2 / 3, abs=0.03)
    sharp = {tuple(power(score, score, 2, 4, seeded(seed), beta=200.0).tolist()) for seed in range(20)}
    assert sharp == {(3, 1)}


def test_power_refuses_negative_scores() -> None:
    with pytest.raises(UserError, match="negative"):
        power(torch.tensor([1.0, -0.1]), torch.zeros(2, 1), 1, 2, seeded())


def test_classes_are_balanced_as_far_as_they_go() -> None:
    seen = context(pool=300, labeled=20)
    truth = seen.hidden_labels()
    truth_of = dict(zip(seen.unlabeled.tolist(), truth.tolist(), strict=True))
    even = Counter(truth_of[i] for i in class_balanced_random(seen, 52, seeded()).index.tolist())
    assert sorted(even.values()) == [10, 10, 10, 11, 11]
    have = Counter(truth.tolist())
    most = Counter(truth_of[i] for i in class_balanced_random(seen, 270, seeded()).index.tolist())
    level = max(most.values())
    assert all(most[c] >= min(have[c], level - 1) for c in have)
    first, second = (class_balanced_random(seen, 5, seeded(seed)).index.tolist() for seed in (0, 1))
    assert first != second


LONGER = (*TINY, "training.epochs=4", "budget.cycles=3", "runtime.checkpoint_minutes=0")


def dies_after(monkeypatch: pytest.MonkeyPatch, moment: Callable[[dict[str, Any]], bool]) -> None:
    save = checkpoint.save

    def dying_save(folder: Path, state: dict[str, Any]) -> None:
        save(folder, state)
        if moment(state):
            monkeypatch.setattr(checkpoint, "save", save)
            raise Killed

    monkeypatch.setattr(checkpoint, "save", dying_save)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["temporal_output_discrepancy", "query_by_committee"])
def test_earlier_networks_survive_a_kill(sslpl: Command, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    committee = ("query.scorer.snapshots=2",) if method == "query_by_committee" else ()
    command = (*LONGER, f"method={method}", *committee)
    assert sslpl(*command, "runtime.output_dir=whole").code == 0
    # In the joint training of the second cycle, when one of two snapshots has been taken.
    dies_after(monkeypatch, lambda state: state["position"] == (1, "train", 3, 1))
    with pytest.raises(Killed):
        sslpl(*command, "runtime.output_dir=killed")
    done = sslpl(*command, "runtime.output_dir=killed", "runtime.progress=plain")
    assert done.code == 0, done.err
    assert "resumed at cycle" in done.out
    whole, killed = run_folder(Path("whole")), run_folder(Path("killed"))
    assert (whole / "queries.csv").read_bytes() == (killed / "queries.csv").read_bytes()
    scores = [float(line.split(",")[3]) for line in (whole / "queries.csv").read_text().splitlines()[25:]]
    assert len(set(scores)) > 40  # the networks differ, and so do their scores
    first, later = scores[:24], scores[24:]
    assert all(score > 0 for score in later)
    assert all(score < 0 for score in first) == (method == "temporal_output_discrepancy")


def test_consistency_is_the_variance_over_an_image_and_its_views() -> None:
    seen = context(pool=40, labeled=10)
    draws, score = seeded(), consistency(seen, seeded(), views=3)
    with torch.no_grad():
        views = next(iter(seen.augmented_images([seen.unlabeled], 3, draws)))
        shares = torch.stack([seen.backbone(images).logits.softmax(dim=1) for images in views])
    assert len(shares) == 4
    torch.testing.assert_close(shares[0], seen.predictions.logits.softmax(dim=1))
    assert not torch.equal(shares[1], shares[2])
    expected = [
        sum(statistics.pvariance(of_class) for of_class in image.T.tolist()) for image in shares.transpose(0, 1)
    ]
    torch.testing.assert_close(score.tolist(), expected, atol=1e-6, rtol=0)


def test_without_a_view_all_images_are_consistent() -> None:
    seen = context(pool=40, labeled=10)
    plain = replace(seen, augment=lambda images, _: seen.normalize(images))
    assert consistency(plain, seeded(), views=3).max() < 1e-12
