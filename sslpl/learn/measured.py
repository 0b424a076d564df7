"""What the frozen backbone says of the fine-tune's batches: losses to rank, and summaries to predict them from."""

import copy
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sslpl.data.augment import rows
from sslpl.data.batches import fetched, grouped, in_parts
from sslpl.data.images import to_device
from sslpl.distributed import gathered, starts
from sslpl.learn.plan import Plan
from sslpl.learn.ssl import confident, label_counts
from sslpl.learn.task import begun
from sslpl.models.backbones import Frozen
from sslpl.models.loss_prediction import LossPredictionModule
from sslpl.processes import World
from sslpl.setup import Setup
from sslpl.state import State, Weights, weights_of
from sslpl.types import PseudoLabel

Loss = Callable[[Tensor, Tensor], Tensor]  # logits, target -> [B]
classification: Loss = partial(cross_entropy, reduction="none")


class Measured(NamedTuple):
    """What the frozen backbone says of a batch: all that the module needs to learn from it."""

    summaries: tuple[Tensor, ...]
    loss: Tensor  # [B], to rank
    weight: Tensor | None = None  # [B], in the ranking; None: all alike


class Unlabeled(NamedTuple):
    """What a step learns from its unlabeled batch."""

    measured: Measured | None  # None without a confident image
    counts: Tensor  # [3], see `label_counts`
    ssl: Weights | None  # state of the SSL method after this batch


class Labeler(NamedTuple):
    """Who pseudo-labels: an SSL method, and the network whose predictions it is told."""

    method: Any
    frozen: Frozen

    def __call__(self, weak_logits: Tensor, index: Tensor) -> PseudoLabel:
        """The pseudo-labels of a batch; `index` [B] holds its images' places among the unlabeled ones."""
        with_state = isinstance(self.method, nn.Module)
        labels: PseudoLabel = self.method(weak_logits, index) if with_state else self.method(weak_logits)
        return labels

    def state(self) -> Weights | None:
        """A copy of the method's state as it is now; None if it has none."""
        return weights_of(self.method) if isinstance(self.method, nn.Module) else None


def labeler(setup: Setup, state: State, frozen: Frozen) -> Labeler:
    """The SSL method of a cycle's fine-tune: one with a state starts anew, or goes on where a checkpoint stands."""
    method: Any = setup.ssl
    method = begun(method, len(setup.dataset.class_names), len(state.pool.unlabeled))
    if isinstance(method, nn.Module):
        method.to(setup.device).load_state_dict(state.ssl or method.state_dict())
    if state.teacher is not None:
        network = copy.deepcopy(state.backbone)
        network.load_state_dict(state.teacher)
        frozen = Frozen(network, setup.bfloat16)
    return Labeler(method, frozen)


def measured_labeled(
    setup: Setup, frozen: Frozen, module: LossPredictionModule, plan: Plan, labels: Tensor, first: int
) -> Iterator[Measured]:
    """True cross-entropy and summaries of the weak views of each labeled batch from `first` on.

    Several processes measure a part of each group, and all have the whole: then all take the same small steps.
    """
    images, augmentation, world = setup.dataset.train, setup.augmentation, setup.world
    groups = grouped(plan.labeled[first:], setup.device, images.shape)
    start = sum(len(batch) for batch in plan.labeled[:first])
    for group, fetch in zip(groups, fetched(images, own_part(world, groups)), strict=True):
        index = torch.cat(group)
        own = world.share(len(index))
        draws = rows(plan.labeled_draws, slice(start + own.start, start + own.stop))
        views = in_parts(augmentation.weak, fetch, draws)
        truth = labels[to_device(index[own], setup.device)]
        whole = measure(frozen, module, views, truth, classification)
        whole = gathered_measured(world, whole, world.lengths(len(index)))
        yield from parts(whole, [len(batch) for batch in group])
        start += len(index)


def measured_unlabeled(
    setup: Setup, state: State, frozen: Frozen, module: LossPredictionModule, plan: Plan, by: Labeler
) -> Iterator[Unlabeled | None]:
    """What each step from the state's on learns from its unlabeled batch; None for a step without one."""
    images, augmentation, first, world = setup.dataset.train, setup.augmentation, state.step, setup.world
    unlabeled = state.pool.unlabeled
    groups = grouped(plan.unlabeled[first:], setup.device, images.shape)
    start = sum(len(batch) for batch in plan.unlabeled[:first])
    loss: Loss = getattr(by.method, "loss", classification)
    for group, fetch in zip(groups, fetched(images, own_part(world, groups)), strict=True):
        assert plan.strong_draws is not None
        sizes, index = [len(batch) for batch in group], torch.cat(group)
        own, lengths = world.share(len(index)), world.lengths(len(index))
        span = slice(start + own.start, start + own.stop)
        weak = (in_parts(augmentation.weak, fetch, rows(draws, span)) for draws in plan.weak_draws)
        places = to_device(torch.searchsorted(unlabeled, index), setup.device)
        (target, weight), states = pseudo_labels(world, by, weak, places, sizes)
        counts = label_counts(target, weight, to_device(setup.true_labels[index], setup.device))
        # The one wait of a group: which images are confident decides what is augmented and forwarded next.
        used = used_rows(weight.cpu(), sizes)
        chosen = torch.cat(used)
        held = [chosen[(chosen >= at) & (chosen < at + n)] for at, n in zip(starts(lengths), lengths, strict=True)]
        there, mine = to_device(chosen, setup.device), held[world.rank]
        within = mine - own.start
        draws = rows(rows(plan.strong_draws, span), within)
        strong = in_parts(augmentation.strong, fetch[to_device(within, setup.device)], draws)
        whole = measure(frozen, module, strong, target[to_device(mine, setup.device)], loss)
        whole = gathered_measured(world, whole, [len(part) for part in held])._replace(weight=weight[there])
        batches = zip(parts(whole, [len(part) for part in used]), torch.split(counts, sizes), states, strict=True)
        for part, count, after in batches:
            yield Unlabeled(part if len(part.loss) else None, count.sum(dim=0), after)
        start += len(index)
    yield from [None] * (len(plan.labeled) - max(first, len(plan.unlabeled)))


@torch.no_grad()
def pseudo_labels(
    world: World, by: Labeler, views: Iterable[Iterable[Tensor]], places: Tensor, sizes: list[int]
) -> tuple[PseudoLabel, list[Weights | None]]:
    """What is said of weak views of a group of batches, each in parts, and the state of the method after each batch.

    Several processes pass a part of the views each; the method is told of the whole in all of them.
    """
    own = (torch.cat([seen.logits for part in view for seen in by.frozen.parts(part)]) for view in views)
    logits = [torch.split(gathered(world, part, world.lengths(len(places))), sizes) for part in own]
    labels, states = [], []
    for batch, index in zip(zip(*logits, strict=True), torch.split(places, sizes), strict=True):
        labels.append(by(torch.cat(batch), index))
        states.append(by.state())
    return PseudoLabel(*(torch.cat(column) for column in zip(*labels, strict=True))), states


@torch.no_grad()
def measure(
    frozen: Frozen, module: LossPredictionModule, views: Iterable[Tensor], target: Tensor, loss: Loss
) -> Measured:
    """Summaries of views that come in parts and their loss against classes [B] or class probabilities [B, classes]."""
    features = (features for part in views for features in frozen.parts(part))
    seen = [(each.logits, *module.summaries(each.maps)) for each in features]
    logits, *summaries = map(torch.cat, zip(*seen, strict=True))
    return Measured(tuple(summaries), loss(logits, target))


def own_part(world: World, groups: list[list[Tensor]]) -> list[list[Tensor]]:
    """The images of each group that this process fetches, in one piece."""
    if world.size == 1:
        return groups
    whole = [torch.cat(group) for group in groups]
    return [[index[world.share(len(index))]] for index in whole]


def gathered_measured(world: World, part: Measured, lengths: list[int]) -> Measured:
    """What all processes measured of a group, of so many images each."""
    if world.size == 1 or sum(lengths) == 0:
        return part
    summaries = tuple(gathered(world, summary, lengths) for summary in part.summaries)
    return Measured(summaries, gathered(world, part.loss, lengths))


def parts(whole: Measured, sizes: list[int]) -> list[Measured]:
    """What was measured of a group, batch by batch."""
    losses = torch.split(whole.loss, sizes)
    summaries = zip(*(torch.split(summary, sizes) for summary in whole.summaries), strict=True)
    weights = [None] * len(sizes) if whole.weight is None else torch.split(whole.weight, sizes)
    return [Measured(*part) for part in zip(summaries, losses, weights, strict=True)]


def used_rows(weight: Tensor, sizes: list[int]) -> list[Tensor]:
    """For each batch of a group, the rows of the group whose pseudo-loss is ranked.

    The backbone is frozen, so a strong view whose loss is not ranked need not be seen at all (ours).
    """
    begins = zip(torch.split(weight, sizes), starts(sizes), strict=True)
    return [confident(part) + start for part, start in begins]
