"""Batch norm statistics that are estimated anew for fixed weights, instead of averaged while these change."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sslpl.distributed.collectives import broadcast_weights
from sslpl.models.frozen import inference_batch_size
from sslpl.seeds import rng, shuffled
from sslpl.setup import Setup
from sslpl.state import State, Weights, weights_of

IMAGES = 5_000  # images that are forwarded at most


def estimate_statistics(setup: Setup, state: State, network: nn.Module) -> None:
    """With `training.precise_batch_norm`, replaces a network's batch norm statistics by those of labeled images.

    Each layer gets the average of its batch statistics over one pass without augmentation (precise batch norm, Wu and
    Johnson 2021). Running averages lag behind the weights after a short training. The batch norms of a frozen backbone
    keep their statistics.
    """
    if not setup.training.precise_batch_norm:
        return
    modes = {part: part.training for part in network.modules()}
    norms = trained_norms(network)
    batches = statistics_batches(setup, state)
    if norms and batches:
        average_statistics(setup, network, norms, batches)
        broadcast_weights(setup.world, network, None)
    for part, mode in modes.items():
        part.training = mode


def trained_norms(network: nn.Module) -> list[_BatchNorm]:
    """Puts a network in eval mode, and returns its batch norms that training updates."""
    network.train()
    norms = [part for part in network.modules() if isinstance(part, _BatchNorm) and part.training]
    network.eval()
    return [norm for norm in norms if norm.track_running_stats]


def statistics_batches(setup: Setup, state: State) -> list[Tensor]:
    """Returns batches of nearly equal size of random images that are trained on; none if there is a single image.

    These are the labeled images and, with a task method, the unlabeled ones too.
    """
    trained_on = state.train_index
    if setup.task_ssl is not None:
        trained_on = torch.cat([trained_on, state.pool.unlabeled])
    index = shuffled(trained_on, state.pool.size, rng(setup.seed, "batch norm", state.cycle))[:IMAGES]
    height, width = setup.dataset.train.shape[1:]
    size = max(setup.training.batch_size, inference_batch_size(setup.device, height, width))
    return list(torch.tensor_split(index, -(-len(index) // size))) if len(index) > 1 else []


@torch.no_grad()
def average_statistics(setup: Setup, network: nn.Module, norms: list[_BatchNorm], batches: list[Tensor]) -> None:
    """Sets the running statistics of batch norms to the averages over batches; a momentum of None averages equally."""
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    with setup.autocast():
        for images in setup.dataset.train.batches(batches):
            network.forward(setup.augmentation.normalize(images))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum


def with_estimated_statistics(setup: Setup, state: State, weights: Weights) -> Weights:
    """Returns weights of the backbone with its estimated statistics; the backbone itself keeps its weights."""
    if not setup.training.precise_batch_norm:
        return weights
    own = weights_of(state.backbone)
    state.backbone.load_state_dict(weights)
    estimate_statistics(setup, state, state.backbone)
    estimated = weights_of(state.backbone)
    state.backbone.load_state_dict(own)
    return estimated
