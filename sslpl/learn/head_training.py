"""Training of a small head on embeddings: full-batch optimization, in one resumable step per cycle."""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy, pad

from sslpl.data.images import to_device
from sslpl.lbfgs import minimize
from sslpl.learn.joint_step import JointInputs, joint_loss
from sslpl.learn.optimizers import set_rates
from sslpl.models.heads import Head
from sslpl.seeds import rng, seeded_draws
from sslpl.setup import Setup
from sslpl.softmax_regression import fit_softmax_regression
from sslpl.state import State, weights_of
from sslpl.training import HeadTraining

LOAD_ROWS = 4096  # examples that are fetched in one batch
TOLERANCE = 1e-4  # of the largest gradient; scikit-learn's default


def train_head(setup: Setup, state: State, training: HeadTraining) -> Tensor:
    """Trains backbone and module on all labeled examples; returns the sums over them, ordered as `JointSums`.

    Each process trains the whole head, because that takes less time than to exchange gradients.
    """
    index = state.joint_train_index
    inputs = JointInputs(labeled_vectors(setup, index), to_device(state.labels()[index], setup.device), len(index))
    with seeded_draws(setup.device, setup.seed, "masks", state.cycle):
        if training.optimizer == "lbfgs":
            minimize_by_lbfgs(state.backbone.eval(), inputs, training)
            train_module(setup, state, inputs, training)
        else:
            train_jointly(setup, state, inputs, training)
    with torch.inference_mode():
        _, sums = joint_loss(setup, state, inputs, detached=True, task=None)
        return torch.stack([value.float() for value in sums])


def labeled_vectors(setup: Setup, index: Tensor) -> Tensor:
    """Returns the scaled embeddings (or normalized images) at some positions, [L, C, H, W] on the device."""
    batches = setup.dataset.train.batches(torch.split(index, LOAD_ROWS))
    return torch.cat([setup.augmentation.normalize(batch) for batch in batches])


def minimize_by_lbfgs(network: nn.Module, inputs: JointInputs, training: HeadTraining) -> None:
    """Minimizes the sum of the cross-entropies and half the squared weights times `weight_decay`, without dropout.

    Without a hidden layer it is softmax regression: the minimum is unique, and C of scikit-learn is 1 / weight_decay.
    Biases are not penalized.
    """
    decay = training.weight_decay / inputs.size
    if isinstance(network, Head) and network.hidden is None and inputs.views.device.type == "cpu":
        fit_linear_head(network.head, inputs, decay, training.max_iterations)
        return
    weights = [weight for weight in network.parameters() if weight.requires_grad]

    def objective() -> Tensor:
        losses = cross_entropy(network(inputs.views).logits, inputs.labels)
        return losses + decay / 2 * sum(weight.square().sum() for weight in weights if weight.ndim > 1)

    minimize(weights, objective, training.max_iterations, TOLERANCE, history=10)


def fit_linear_head(head: nn.Linear, inputs: JointInputs, decay: float, steps: int) -> None:
    """Fits a linear layer by softmax regression from zero, in place; the bias is not penalized."""
    vectors = pad(inputs.views.flatten(1), (0, 1), value=1.0)
    penalty = vectors.new_full((vectors.shape[1],), decay)
    penalty[-1] = 0
    start = vectors.new_zeros(head.out_features, vectors.shape[1])
    weight = fit_softmax_regression(vectors, inputs.labels, penalty, start, steps, TOLERANCE)
    with torch.no_grad():
        head.weight.copy_(weight[:, :-1])
        head.bias.copy_(weight[:, -1])


def train_jointly(setup: Setup, state: State, inputs: JointInputs, training: HeadTraining) -> None:
    """Trains backbone and module together by AdamW, with dropout."""
    networks = [network for network in (state.backbone, state.module) if network is not None]
    snapshots = training.snapshot_steps(setup.needs.snapshots) if setup.needs.snapshots else set()
    pairing = rng(setup.seed, "order", state.cycle)
    state.backbone.train()

    def loss() -> Tensor:
        logits, maps, _ = state.backbone(inputs.views)
        losses = cross_entropy(logits, inputs.labels, reduction="none")
        return losses.mean() + ranking_loss(setup, state.module, maps, losses, pairing)

    for step in adamw_steps(networks, training, loss):
        if step in snapshots:
            state.snapshots.append(weights_of(state.backbone))


def train_module(setup: Setup, state: State, inputs: JointInputs, training: HeadTraining) -> None:
    """Trains the module, if there is one, by AdamW on the losses of the trained backbone."""
    if state.module is None:
        return
    with torch.no_grad():
        logits, maps, _ = state.backbone(inputs.views)
        losses = cross_entropy(logits, inputs.labels, reduction="none")
    pairing = rng(setup.seed, "order", state.cycle)
    for _ in adamw_steps([state.module], training, lambda: ranking_loss(setup, state.module, maps, losses, pairing)):
        pass


def ranking_loss(
    setup: Setup, module: nn.Module | None, maps: Sequence[Tensor], losses: Tensor, pairing: Generator
) -> Tensor:
    """Computes the weighted ranking loss over random pairs of examples; 0 without a module."""
    if module is None:
        return losses.new_zeros(())
    order = to_device(torch.randperm(len(losses), generator=pairing), losses.device)
    return setup.training.ranking_weight * setup.ranking(module(maps)[order], losses[order])


def adamw_steps(networks: Sequence[nn.Module], training: HeadTraining, loss: Callable[[], Tensor]) -> Iterator[int]:
    """Takes the steps of AdamW, with a rate that falls to 0 by half a cosine; yields the number of each from 0."""
    weights = [weight for network in networks for weight in network.parameters()]
    optimizer = torch.optim.AdamW(weights, weight_decay=training.weight_decay, fused=True)
    for step in range(training.steps):
        set_rates(optimizer, [training.rate * (1 + math.cos(math.pi * step / training.steps)) / 2])
        optimizer.zero_grad()
        loss().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        yield step
