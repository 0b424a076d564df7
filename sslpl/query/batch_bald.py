"""BatchBALD (Kirsch et al. 2019): images whose labels together tell most about which sampled network is right.

Greedily, each image is the one whose label is worth most given those of the images before it. What is known of the
networks then depends on these labels: it is kept for each joint labeling ("configuration") while these are few, and
for a sample of them afterwards. The gain of an image only shrinks as others are known, so that an old gain bounds the
new one and many images need not be looked at again (Minoux 1978).
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from sslpl.query.disagreement import entropy_of, mutual_information
from sslpl.query.mc_dropout import CHUNK, dropout_masks, linear_head, over_masks, sampled_logits
from sslpl.query.selection import ranked
from sslpl.types import Count, QueryContext, Selection, ShareBelowOne

NEGLIGIBLE = 1e-6  # nats: a smaller gain is rounding


class Configurations(NamedTuple):
    """Joint labelings of the images chosen so far."""

    chance: Tensor  # [M]; they sum to 1 with those that leave no doubt about the network, which are left out
    posterior: Tensor  # [M, samples]: how likely each labeling makes each sampled network


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
    """n images of high joint mutual information with the network, greedily; scores are the gains in nats.

    Only the `candidates` of highest BALD are looked at (None: all). Up to `exact` joint labelings are held, instead of
    more a sample of `configurations`. Once they tell the sampled networks apart, the rest is taken by BALD (ours).
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
    """n rows and their gains, in the order of choice; `bound` [N] are the gains with nothing known, descending."""
    _, samples, classes = probability(torch.zeros(1, dtype=torch.int64, device=bound.device)).shape
    known = Configurations(bound.new_ones(1), bound.new_full((1, samples), 1 / samples).float())
    gain, stale = bound.clone(), torch.zeros_like(bound, dtype=torch.bool)
    chosen: list[Tensor] = []
    gains: list[Tensor] = []
    while len(chosen) < n:
        best = highest(gain, stale, known, probability, images_at_once(len(known.chance) * classes))
        if gain[best] < NEGLIGIBLE:
            break
        chosen.append(best)
        gains.append(gain[best].clone())
        gain[best] = -torch.inf
        stale = gain > -torch.inf
        sampled = len(known.chance) * classes > limits[0]
        known = extended(known, probability(best[None])[0], limits, rng)
        limits = (0, len(known.chance)) if sampled else limits
    left = (gain > -torch.inf).nonzero()[: n - len(chosen), 0]
    return torch.cat([*(best[None] for best in chosen), left]), torch.cat([*(g[None] for g in gains), gain[left]])


def highest(
    gain: Tensor, stale: Tensor, known: Configurations, probability: Callable[[Tensor], Tensor], at_once: int
) -> Tensor:
    """The row of highest gain, once the stale gains that are as high have been computed anew, in place."""
    while stale[best := gain.argmax()]:
        rows = gain.topk(min(at_once, len(gain))).indices
        rows = rows[stale[rows]]
        gain[rows] = information(known, probability(rows))
        stale[rows] = False
    return best


def images_at_once(numbers: int) -> int:
    """How many images to look at together if each takes so many numbers."""
    return max(1, min(64, CHUNK // max(1, numbers)))


def information(known: Configurations, probability: Tensor) -> Tensor:
    """Mutual information [P], in nats, of each image's label and the network, given the labels of those chosen.

    `probability` [P, samples, classes] is what each sampled network says of the images.
    """
    images, samples, classes = probability.shape
    predictive = known.posterior @ probability.transpose(0, 1).reshape(samples, images * classes)
    total = known.chance @ entropy_of(predictive.view(len(known.chance), images, classes)).double()
    return total - entropy_of(probability).double() @ (known.chance @ known.posterior.double())


def extended(known: Configurations, probability: Tensor, limits: tuple[int, int], rng: Generator) -> Configurations:
    """The labelings with one more image [samples, classes]: all up to the first limit, else the second's number."""
    classes = probability.shape[1]
    chance = (known.chance[:, None] * (known.posterior @ probability)).flatten()
    exact = len(chance) <= limits[0]
    kept = torch.arange(len(chance), device=chance.device) if exact else stratified(chance, limits[1], rng)
    posterior = known.posterior[kept // classes] * probability.T[kept % classes]
    posterior /= posterior.sum(dim=1, keepdim=True).clamp(min=torch.finfo(posterior.dtype).tiny)
    chance = chance if exact else (chance.sum() / len(kept)).expand(len(kept))
    doubt = entropy_of(posterior) > NEGLIGIBLE  # without doubt about the network, no label is worth anything
    return Configurations(chance[doubt], posterior[doubt])


def stratified(chance: Tensor, count: int, rng: Generator) -> Tensor:
    """A sample of positions by their chances, one draw from each of `count` equal parts of the whole."""
    total = chance.cumsum(dim=0)
    point = (torch.arange(count) + torch.rand(count, generator=rng, dtype=torch.float64)) / count
    return torch.searchsorted(total, point.to(total) * total[-1], right=True).clamp(max=len(chance) - 1)
