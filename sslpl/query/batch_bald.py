"""BatchBALD (Kirsch et al. 2019): selects images whose labels jointly are most informative about the network.

The selection is greedy: each image maximizes the information gain of its label given the labels of the images before
it. The posterior over the sampled networks depends on these labels: it is stored for each joint labeling
("configuration") while there are few, and for a sample of them afterwards. The gain of an image only shrinks as others
are selected, so that an old gain is an upper bound and most gains need no update (lazy greedy: Minoux 1978).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from sslpl.query.disagreement import entropy_of, mutual_information
from sslpl.query.head import linear_head
from sslpl.query.mc_dropout import CHUNK, dropout_masks, over_masks, sampled_logits
from sslpl.query.selection import ranked
from sslpl.types import Count, QueryContext, Selection, ShareBelowOne

NEGLIGIBLE = 1e-6  # nats: a smaller gain is a rounding error


class Configurations(NamedTuple):
    """Joint labelings of the images selected so far."""

    weight: Tensor  # [M]; the sum is below 1 once labelings that identify the network are dropped
    posterior: Tensor  # [M, samples]: probability of each sampled network given the labeling


def batch_bald(
    context: QueryContext,
    n: int,
    rng: Generator,
    *,
    samples: Count = 100,
    dropout: ShareBelowOne = 0.5,
    exact: Count = 32768,
    configurations: Count = 1000,
    candidates: Count | None = 10000,
) -> Selection:
    """Selects n images greedily for high joint mutual information with the network; scores are the gains in nats.

    Only the `candidates` of highest BALD are considered (None: all). Up to `exact` joint labelings are enumerated, and
    `configurations` are sampled beyond. Once they identify the network, the remaining images are chosen by BALD (ours).
    """
    head, embedding = linear_head(context.backbone), context.predictions.embedding
    masks = dropout_masks(samples, embedding, dropout, rng)
    score = over_masks(head, embedding, masks, mutual_information)
    best = ranked(score, rng)[: max(candidates or len(score), n)].to(score.device)

    def probability(rows: Tensor) -> Tensor:
        return sampled_logits(head, embedding[best[rows]], masks).softmax(dim=2)

    rows, gain = greedy(probability, score[best], n, (exact, configurations), rng)
    return Selection(context.unlabeled[best[rows].cpu()], gain.cpu().double())


def greedy(
    probability: Callable[[Tensor], Tensor], bound: Tensor, n: int, limits: tuple[int, int], rng: Generator
) -> tuple[Tensor, Tensor]:
    """Returns n rows and their gains in order of selection; `bound` [N] holds the unconditional gains, descending."""
    _, samples, classes = probability(torch.zeros(1, dtype=torch.int64, device=bound.device)).shape
    labelings = Configurations(bound.new_ones(1), bound.new_full((1, samples), 1 / samples).float())
    gain, stale = bound.clone(), torch.zeros_like(bound, dtype=torch.bool)
    chosen: list[Tensor] = []
    gains: list[Tensor] = []
    while len(chosen) < n:
        best = highest(gain, stale, labelings, probability, images_per_block(len(labelings.weight) * classes))
        if gain[best] < NEGLIGIBLE:
            break
        chosen.append(best)
        gains.append(gain[best].clone())
        gain[best] = -torch.inf
        stale = gain > -torch.inf
        sampled = len(labelings.weight) * classes > limits[0]
        labelings = extended(labelings, probability(best[None])[0], limits, rng)
        limits = (0, len(labelings.weight)) if sampled else limits
    rest = (gain > -torch.inf).nonzero()[: n - len(chosen), 0]
    return torch.cat([*(best[None] for best in chosen), rest]), torch.cat([*(g[None] for g in gains), gain[rest]])


def highest(
    gain: Tensor, stale: Tensor, labelings: Configurations, probability: Callable[[Tensor], Tensor], block_size: int
) -> Tensor:
    """Returns the row of highest gain, after recomputing in place the stale gains that exceed it."""
    while stale[best := gain.argmax()]:
        rows = gain.topk(min(block_size, len(gain))).indices
        rows = rows[stale[rows]]
        gain[rows] = information(labelings, probability(rows))
        stale[rows] = False
    return best


def images_per_block(numbers: int) -> int:
    """Returns how many images are evaluated per block if each takes this many numbers."""
    return max(1, min(64, CHUNK // max(1, numbers)))


def information(labelings: Configurations, probability: Tensor) -> Tensor:
    """Returns the mutual information [P], in nats, of each image's label and the network, given the selected images.

    `probability` [P, samples, classes] holds the class probabilities of each sampled network.
    """
    images, samples, classes = probability.shape
    predictive = labelings.posterior @ probability.transpose(0, 1).reshape(samples, images * classes)
    total = labelings.weight @ entropy_of(predictive.view(len(labelings.weight), images, classes)).double()
    return total - entropy_of(probability).double() @ (labelings.weight @ labelings.posterior.double())


def extended(labelings: Configurations, probability: Tensor, limits: tuple[int, int], rng: Generator) -> Configurations:
    """Extends the labelings by an image [samples, classes]; above limits[0] of them, limits[1] are sampled."""
    classes = probability.shape[1]
    weight = (labelings.weight[:, None] * (labelings.posterior @ probability)).flatten()
    exact = len(weight) <= limits[0]
    index = torch.arange(len(weight), device=weight.device) if exact else stratified(weight, limits[1], rng)
    posterior = labelings.posterior[index // classes] * probability.T[index % classes]
    posterior /= posterior.sum(dim=1, keepdim=True).clamp(min=torch.finfo(posterior.dtype).tiny)
    weight = weight if exact else (weight.sum() / len(index)).expand(len(index))
    doubt = entropy_of(posterior) > NEGLIGIBLE  # once the network is certain, no label is informative
    return Configurations(weight[doubt], posterior[doubt])


def stratified(weight: Tensor, count: int, rng: Generator) -> Tensor:
    """Samples `count` indices in proportion to `weight`, one from each of `count` equal strata."""
    total = weight.cumsum(dim=0)
    point = (torch.arange(count) + torch.rand(count, generator=rng, dtype=torch.float64)) / count
    return torch.searchsorted(total, point.to(total) * total[-1], right=True).clamp(max=len(weight) - 1)
