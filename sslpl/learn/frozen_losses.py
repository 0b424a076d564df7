"""What the frozen backbone says of the fine-tune's batches: losses to rank, and summaries to predict them from."""

import copy
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sslpl.data.augmentation import take_draws
from sslpl.data.batches import augment_in_parts, fetch_groups, group_batches
from sslpl.data.images import to_device
from sslpl.distributed.collectives import all_gather, offsets
from sslpl.distributed.world import World
from sslpl.learn.finetune_epoch import FinetuneEpoch
from sslpl.models.frozen import FrozenBackbone
from sslpl.models.loss_prediction import LossPredictionModule
from sslpl.setup import Setup
from sslpl.ssl.rules import confident_rows, pseudo_label_counts
from sslpl.ssl.task import instantiate_rule
from sslpl.state import State, Weights, weights_of
from sslpl.types import PseudoLabel

LossFunction = Callable[[Tensor, Tensor], Tensor]  # logits, target -> [B]
per_image_cross_entropy: LossFunction = partial(cross_entropy, reduction="none")


class FrozenLosses(NamedTuple):
    """What the frozen backbone says of a batch: all that the module needs to learn from it."""

    summaries: tuple[Tensor, ...]
    loss: Tensor  # [B], to rank
    weight: Tensor | None = None  # [B], in the ranking; None: all alike


class UnlabeledLosses(NamedTuple):
    """What a step learns from its unlabeled batch."""

    losses: FrozenLosses | None  # None without a confident image
    counts: Tensor  # [3], see `label_counts`
    ssl: Weights | None  # state of the SSL method after this batch


class PseudoLabeler(NamedTuple):
    """Who pseudo-labels: an SSL method, and the network whose predictions it is told."""

    method: Any
    frozen: FrozenBackbone

    def __call__(self, weak_logits: Tensor, index: Tensor) -> PseudoLabel:
        """The pseudo-labels of a batch; `index` [B] holds its images' places among the unlabeled ones."""
        with_state = isinstance(self.method, nn.Module)
        labels: PseudoLabel = self.method(weak_logits, index) if with_state else self.method(weak_logits)
        return labels

    def state(self) -> Weights | None:
        """A copy of the method's state as it is now; None if it has none."""
        return weights_of(self.method) if isinstance(self.method, nn.Module) else None


def pseudo_labeler(setup: Setup, state: State, frozen: FrozenBackbone) -> PseudoLabeler:
    """The SSL method of a cycle's fine-tune: one with a state starts anew, or goes on where a checkpoint stands."""
    method: Any = setup.ssl
    method = instantiate_rule(method, len(setup.dataset.class_names), len(state.pool.unlabeled))
    if isinstance(method, nn.Module):
        method.to(setup.device).load_state_dict(state.ssl or method.state_dict())
    if state.teacher is not None:
        network = copy.deepcopy(state.backbone)
        network.load_state_dict(state.teacher)
        frozen = FrozenBackbone(network, setup.bfloat16)
    return PseudoLabeler(method, frozen)


def labeled_losses(
    setup: Setup, frozen: FrozenBackbone, module: LossPredictionModule, plan: FinetuneEpoch, labels: Tensor, first: int
) -> Iterator[FrozenLosses]:
    """True cross-entropy and summaries of the weak views of each labeled batch from `first` on.

    Several processes measure a part of each group, and all have the whole: then all take the same small steps.
    """
    images, augmentation, world = setup.dataset.train, setup.augmentation, setup.world
    groups = group_batches(plan.labeled[first:], setup.device, images.shape)
    start = sum(len(batch) for batch in plan.labeled[:first])
    for group, fetch in zip(groups, fetch_groups(images, local_shards(world, groups)), strict=True):
        index = torch.cat(group)
        own = world.shard(len(index))
        draws = take_draws(plan.labeled_draws, slice(start + own.start, start + own.stop))
        views = augment_in_parts(augmentation.weak, fetch, draws)
        truth = labels[to_device(index[own], setup.device)]
        whole = frozen_losses(frozen, module, views, truth, per_image_cross_entropy)
        whole = gather_losses(world, whole, world.shard_sizes(len(index)))
        yield from split_losses(whole, [len(batch) for batch in group])
        start += len(index)


def unlabeled_losses(
    setup: Setup,
    state: State,
    frozen: FrozenBackbone,
    module: LossPredictionModule,
    plan: FinetuneEpoch,
    by: PseudoLabeler,
) -> Iterator[UnlabeledLosses | None]:
    """What each step from the state's on learns from its unlabeled batch; None for a step without one."""
    images, augmentation, first, world = setup.dataset.train, setup.augmentation, state.step, setup.world
    unlabeled = state.pool.unlabeled
    groups = group_batches(plan.unlabeled[first:], setup.device, images.shape)
    start = sum(len(batch) for batch in plan.unlabeled[:first])
    loss: LossFunction = getattr(by.method, "loss", per_image_cross_entropy)
    for group, fetch in zip(groups, fetch_groups(images, local_shards(world, groups)), strict=True):
        assert plan.strong_draws is not None
        sizes, index = [len(batch) for batch in group], torch.cat(group)
        own, lengths = world.shard(len(index)), world.shard_sizes(len(index))
        span = slice(start + own.start, start + own.stop)
        weak = (augment_in_parts(augmentation.weak, fetch, take_draws(draws, span)) for draws in plan.weak_draws)
        places = to_device(torch.searchsorted(unlabeled, index), setup.device)
        (target, weight), states = pseudo_labels(world, by, weak, places, sizes)
        counts = pseudo_label_counts(target, weight, to_device(setup.true_labels[index], setup.device))
        # The one wait of a group: which images are confident decides what is augmented and forwarded next.
        used = ranked_rows(weight.cpu(), sizes)
        chosen = torch.cat(used)
        held = [chosen[(chosen >= at) & (chosen < at + n)] for at, n in zip(offsets(lengths), lengths, strict=True)]
        there, mine = to_device(chosen, setup.device), held[world.rank]
        within = mine - own.start
        draws = take_draws(take_draws(plan.strong_draws, span), within)
        strong = augment_in_parts(augmentation.strong, fetch[to_device(within, setup.device)], draws)
        whole = frozen_losses(frozen, module, strong, target[to_device(mine, setup.device)], loss)
        whole = gather_losses(world, whole, [len(part) for part in held])._replace(weight=weight[there])
        batches = zip(
            split_losses(whole, [len(part) for part in used]), torch.split(counts, sizes), states, strict=True
        )
        for part, count, after in batches:
            yield UnlabeledLosses(part if len(part.loss) else None, count.sum(dim=0), after)
        start += len(index)
    yield from [None] * (len(plan.labeled) - max(first, len(plan.unlabeled)))


@torch.no_grad()
def pseudo_labels(
    world: World, by: PseudoLabeler, views: Iterable[Iterable[Tensor]], places: Tensor, sizes: list[int]
) -> tuple[PseudoLabel, list[Weights | None]]:
    """What is said of weak views of a group of batches, each in parts, and the state of the method after each batch.

    Several processes pass a part of the views each; the method is told of the whole in all of them.
    """
    own = (torch.cat([seen.logits for part in view for seen in by.frozen.parts(part)]) for view in views)
    logits = [torch.split(all_gather(world, part, world.shard_sizes(len(places))), sizes) for part in own]
    labels, states = [], []
    for batch, index in zip(zip(*logits, strict=True), torch.split(places, sizes), strict=True):
        labels.append(by(torch.cat(batch), index))
        states.append(by.state())
    return PseudoLabel(*(torch.cat(column) for column in zip(*labels, strict=True))), states


@torch.no_grad()
def frozen_losses(
    frozen: FrozenBackbone, module: LossPredictionModule, views: Iterable[Tensor], target: Tensor, loss: LossFunction
) -> FrozenLosses:
    """Summaries of views that come in parts and their loss against classes [B] or class probabilities [B, classes]."""
    features = (features for part in views for features in frozen.parts(part))
    seen = [(each.logits, *module.summaries(each.maps)) for each in features]
    logits, *summaries = map(torch.cat, zip(*seen, strict=True))
    return FrozenLosses(tuple(summaries), loss(logits, target))


def local_shards(world: World, groups: list[list[Tensor]]) -> list[list[Tensor]]:
    """The images of each group that this process fetches, in one piece."""
    if world.size == 1:
        return groups
    whole = [torch.cat(group) for group in groups]
    return [[index[world.shard(len(index))]] for index in whole]


def gather_losses(world: World, part: FrozenLosses, lengths: list[int]) -> FrozenLosses:
    """What all processes measured of a group, of so many images each."""
    if world.size == 1 or sum(lengths) == 0:
        return part
    summaries = tuple(all_gather(world, summary, lengths) for summary in part.summaries)
    return FrozenLosses(summaries, all_gather(world, part.loss, lengths))


def split_losses(whole: FrozenLosses, sizes: list[int]) -> list[FrozenLosses]:
    """What was measured of a group, batch by batch."""
    losses = torch.split(whole.loss, sizes)
    summaries = zip(*(torch.split(summary, sizes) for summary in whole.summaries), strict=True)
    weights = [None] * len(sizes) if whole.weight is None else torch.split(whole.weight, sizes)
    return [FrozenLosses(*part) for part in zip(summaries, losses, weights, strict=True)]


def ranked_rows(weight: Tensor, sizes: list[int]) -> list[Tensor]:
    """For each batch of a group, the rows of the group whose pseudo-loss is ranked.

    The backbone is frozen, so a strong view whose loss is not ranked need not be seen at all (ours).
    """
    begins = zip(torch.split(weight, sizes), offsets(sizes), strict=True)
    return [confident_rows(part) + start for part, start in begins]
