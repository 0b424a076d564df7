"""Inputs of the fine-tune from the frozen backbone: losses to rank, and feature summaries to predict them from."""

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
from sslpl.ssl.backbone_loss import instantiate_rule
from sslpl.ssl.rules import confident_rows, pseudo_label_counts
from sslpl.state import State, Weights, weights_of
from sslpl.types import PseudoLabel

LossFunction = Callable[[Tensor, Tensor], Tensor]  # logits, target -> [B]
per_image_cross_entropy: LossFunction = partial(cross_entropy, reduction="none")


class FrozenLosses(NamedTuple):
    """The feature summaries and losses of a batch, on which the module is trained."""

    summaries: tuple[Tensor, ...]
    loss: Tensor  # [B], to rank
    weight: Tensor | None = None  # [B], in the ranking loss; None: all equal


class UnlabeledLosses(NamedTuple):
    """The losses and pseudo-label counts of the unlabeled batch of a step."""

    losses: FrozenLosses | None  # None without a confident image
    counts: Tensor  # [3], sums of `pseudo_label_counts`
    ssl: Weights | None  # state of the SSL method after this batch


class PseudoLabeler(NamedTuple):
    """An SSL method, and the network whose weak-view predictions it pseudo-labels."""

    method: Any
    frozen: FrozenBackbone

    def __call__(self, weak_logits: Tensor, index: Tensor) -> PseudoLabel:
        """Returns the pseudo-labels of a batch; `index` [B] holds its images' positions among the unlabeled ones."""
        stateful = isinstance(self.method, nn.Module)
        labels: PseudoLabel = self.method(weak_logits, index) if stateful else self.method(weak_logits)
        return labels

    def state(self) -> Weights | None:
        """Returns a copy of the method's current state; None if it has none."""
        return weights_of(self.method) if isinstance(self.method, nn.Module) else None


def pseudo_labeler(setup: Setup, state: State, frozen: FrozenBackbone) -> PseudoLabeler:
    """Returns the SSL method of a cycle's fine-tune; the state of a stateful one is new or from the checkpoint."""
    method = instantiate_rule(setup.ssl, len(setup.dataset.class_names), len(state.pool.unlabeled))
    if isinstance(method, nn.Module):
        method.to(setup.device).load_state_dict(state.ssl or method.state_dict())
    if state.teacher is not None:
        network = copy.deepcopy(state.backbone)
        network.load_state_dict(state.teacher)
        frozen = FrozenBackbone(network, setup.bfloat16)
    return PseudoLabeler(method, frozen)


def labeled_losses(
    setup: Setup,
    frozen: FrozenBackbone,
    module: LossPredictionModule,
    inputs: FinetuneEpoch,
    labels: Tensor,
    first: int,
) -> Iterator[FrozenLosses]:
    """Yields the cross-entropy and summaries of the weak views of each labeled batch from `first` on.

    Each process computes a shard of a group of batches and gathers the rest, so that all take the same steps.
    """
    images, augmentation, world = setup.dataset.train, setup.augmentation, setup.world
    groups = group_batches(inputs.labeled[first:], setup.device, images.shape)
    start = sum(len(batch) for batch in inputs.labeled[:first])
    for group, fetch in zip(groups, fetch_groups(images, local_shards(world, groups)), strict=True):
        index = torch.cat(group)
        shard = world.shard(len(index))
        draws = take_draws(inputs.labeled_draws, slice(start + shard.start, start + shard.stop))
        views = augment_in_parts(augmentation.weak, fetch, draws)
        targets = labels[to_device(index[shard], setup.device)]
        losses = frozen_losses(frozen, module, views, targets, per_image_cross_entropy)
        losses = gather_losses(world, losses, world.shard_sizes(len(index)))
        yield from split_losses(losses, [len(batch) for batch in group])
        start += len(index)


def unlabeled_losses(
    setup: Setup,
    state: State,
    frozen: FrozenBackbone,
    module: LossPredictionModule,
    inputs: FinetuneEpoch,
    labeler: PseudoLabeler,
    padded: bool,
) -> Iterator[UnlabeledLosses | None]:
    """Yields the losses of the unlabeled batch of each remaining step of the epoch; None for a step without one.

    With `padded` all batches have the same size (see `padded_pairs`).
    """
    images, augmentation, first, world = setup.dataset.train, setup.augmentation, state.step, setup.world
    unlabeled = state.pool.unlabeled
    groups = group_batches(inputs.unlabeled[first:], setup.device, images.shape)
    start = sum(len(batch) for batch in inputs.unlabeled[:first])
    loss: LossFunction = getattr(labeler.method, "loss", per_image_cross_entropy)
    for group, fetch in zip(groups, fetch_groups(images, local_shards(world, groups)), strict=True):
        assert inputs.strong_draws is not None
        sizes, index = [len(batch) for batch in group], torch.cat(group)
        shard, lengths = world.shard(len(index)), world.shard_sizes(len(index))
        span = slice(start + shard.start, start + shard.stop)
        weak = (augment_in_parts(augmentation.weak, fetch, take_draws(draws, span)) for draws in inputs.weak_draws)
        positions = to_device(torch.searchsorted(unlabeled, index), setup.device)
        (target, weight), states = pseudo_labels(world, labeler, weak, positions, sizes)
        counts = pseudo_label_counts(target, weight, to_device(setup.true_labels[index], setup.device))
        # The only GPU synchronization of a group: only strong views whose loss is ranked are augmented and forwarded.
        rows_by_batch = ranked_rows(setup.turns.wait_for(weight).cpu(), sizes)
        rows = torch.cat(rows_by_batch)
        rows_by_rank = split_rows(rows, lengths)
        all_rows, local_rows = to_device(rows, setup.device), rows_by_rank[world.rank]
        shard_rows = local_rows - shard.start
        draws = take_draws(take_draws(inputs.strong_draws, span), shard_rows)
        strong = augment_in_parts(augmentation.strong, fetch[to_device(shard_rows, setup.device)], draws)
        losses = frozen_losses(frozen, module, strong, target[to_device(local_rows, setup.device)], loss)
        losses = gather_losses(world, losses, [len(part) for part in rows_by_rank])._replace(weight=weight[all_rows])
        ranked = [len(rows) for rows in rows_by_batch]
        size = (max(map(len, inputs.unlabeled)) + 1) // 2 * 2
        batches = padded_pairs(losses, ranked, size) if padded else split_losses(losses, ranked)
        for pairs, part, count, ssl_state in zip(ranked, batches, torch.split(counts, sizes), states, strict=True):
            yield UnlabeledLosses(part if pairs else None, count.sum(dim=0), ssl_state)
        start += len(index)
    yield from [None] * (len(inputs.labeled) - max(first, len(inputs.unlabeled)))


@torch.no_grad()
def pseudo_labels(
    world: World, labeler: PseudoLabeler, views: Iterable[Iterable[Tensor]], positions: Tensor, sizes: list[int]
) -> tuple[PseudoLabel, list[Weights | None]]:
    """Returns the pseudo-labels of a group of batches, and the state of the method after each batch.

    `views` holds each weak view in parts. Each process forwards a shard of the views; the method processes the gathered
    logits on every rank.
    """
    shards = (torch.cat([outputs.logits for part in view for outputs in labeler.frozen.parts(part)]) for view in views)
    logits = [torch.split(all_gather(world, part, world.shard_sizes(len(positions))), sizes) for part in shards]
    labels, states = [], []
    for batch, index in zip(zip(*logits, strict=True), torch.split(positions, sizes), strict=True):
        labels.append(labeler(torch.cat(batch), index))
        states.append(labeler.state())
    return PseudoLabel(*(torch.cat(column) for column in zip(*labels, strict=True))), states


@torch.no_grad()
def frozen_losses(
    frozen: FrozenBackbone, module: LossPredictionModule, views: Iterable[Tensor], target: Tensor, loss: LossFunction
) -> FrozenLosses:
    """Computes summaries of views, given in parts, and their loss against labels [B] or probabilities [B, classes]."""
    features = (features for part in views for features in frozen.parts(part))
    outputs = [(part.logits, *module.summaries(part.maps)) for part in features]
    logits, *summaries = map(torch.cat, zip(*outputs, strict=True))
    return FrozenLosses(tuple(summaries), loss(logits, target))


def local_shards(world: World, groups: list[list[Tensor]]) -> list[list[Tensor]]:
    """Returns this process's shard of the positions in each group, concatenated if there are several processes."""
    if world.size == 1:
        return groups
    return [[index[world.shard(len(index))]] for index in map(torch.cat, groups)]


def gather_losses(world: World, part: FrozenLosses, lengths: list[int]) -> FrozenLosses:
    """Gathers the losses and summaries of a group from all processes, which hold `lengths` images each."""
    if world.size == 1 or sum(lengths) == 0:
        return part
    summaries = tuple(all_gather(world, summary, lengths) for summary in part.summaries)
    return FrozenLosses(summaries, all_gather(world, part.loss, lengths))


def split_rows(rows: Tensor, lengths: list[int]) -> list[Tensor]:
    """Splits rows of a group by the process that holds them, of which each holds `lengths` consecutive images."""
    starts = zip(offsets(lengths), lengths, strict=True)
    return [rows[(rows >= start) & (rows < start + length)] for start, length in starts]


def padded_pairs(group: FrozenLosses, counts: list[int], size: int) -> list[FrozenLosses]:
    """Splits a group into batches of `counts` images that are padded to an even `size`, with the same ranking losses.

    The images of a pair stay a pair: the first half of a batch stands at its start, the second half at its end, and
    between them are images of weight 0. Weights are scaled so that the mean over all pairs is that over the genuine
    ones.
    """
    if len(group.loss) == 0:
        return [group] * len(counts)
    assert group.weight is not None
    index, factor = torch.zeros(len(counts), size, dtype=torch.int64), torch.zeros(len(counts), size)
    for row, (start, count) in enumerate(zip(offsets(counts), counts, strict=True)):
        pairs = count // 2
        for place, first, scale in (
            (slice(0, pairs), start, size / 2 / max(pairs, 1)),
            (slice(size - pairs, size), start + pairs, 1.0),
        ):
            index[row, place] = torch.arange(first, first + pairs)
            factor[row, place] = scale
    rows, factors = to_device(index.flatten(), group.loss.device), to_device(factor.flatten(), group.loss.device)
    padded = FrozenLosses(
        tuple(summary[rows] for summary in group.summaries), group.loss[rows], group.weight[rows] * factors
    )
    return split_losses(padded, [size] * len(counts))


def split_losses(group: FrozenLosses, sizes: list[int]) -> list[FrozenLosses]:
    """Splits the losses and summaries of a group into batches of the given sizes."""
    losses = torch.split(group.loss, sizes)
    summaries = zip(*(torch.split(summary, sizes) for summary in group.summaries), strict=True)
    weights = [None] * len(sizes) if group.weight is None else torch.split(group.weight, sizes)
    return [FrozenLosses(*part) for part in zip(summaries, losses, weights, strict=True)]


def ranked_rows(weight: Tensor, sizes: list[int]) -> list[Tensor]:
    """Returns, for each batch of a group, the rows of the group whose pseudo-loss is ranked.

    The backbone is frozen, so a strong view whose loss is not ranked is never forwarded (ours).
    """
    batches = zip(torch.split(weight, sizes), offsets(sizes), strict=True)
    return [confident_rows(part) + start for part, start in batches]
