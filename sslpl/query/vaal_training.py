"""Adversarial training of VAAL: a variational autoencoder against a discriminator of labeled images."""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, mse_loss

from sslpl.models.frozen import inference_batch_size
from sslpl.models.vae import VAE, discriminator
from sslpl.seeds import build_seeded
from sslpl.types import QueryContext

Divergence = Literal["sum", "mean"]


class VAALRecipe(NamedTuple):
    """Hyperparameters of the adversarial training."""

    steps: int  # updates of the discriminator
    vae_steps: int  # updates of the autoencoder per update of the discriminator, each on a new batch
    batch_size: int  # of labeled images, and the same number of unlabeled ones
    width: int
    latent: int
    rate: float
    beta: float
    adversary: float
    divergence: Divergence


class Condition(NamedTuple):
    """Conditions of the networks for each of N images: c = 0 conditions (VAAL) or 1 (TA-VAAL)."""

    decoder: Tensor  # [N, c]
    discriminator: Tensor  # [N, c]


class VAALNetworks(NamedTuple):
    """The networks that are trained against each other."""

    vae: VAE
    discriminator: nn.Module


def train_vaal(
    context: QueryContext,
    networks: VAALNetworks,
    index: Tensor,
    condition: Condition,
    recipe: VAALRecipe,
    rng: Generator,
) -> None:
    """Trains the discriminator to recognize labeled images, and the autoencoder to make them indistinguishable.

    A batch holds labeled and unlabeled images, so that batch norm treats both alike, in training and in scoring (ours:
    the published code normalizes them separately in both).
    """
    vae_optimizer, optimizer = (torch.optim.Adam(network.parameters(), lr=recipe.rate) for network in networks)
    batches = training_rows(len(context.labeled), len(context.unlabeled), recipe, rng)
    image_batches = context.normalized_images([index[rows] for rows in batches])
    for update, (rows, images) in enumerate(zip(batches, image_batches, strict=True), start=1):
        device_rows = rows.to(context.device)
        part = Condition(condition.decoder[device_rows], condition.discriminator[device_rows])
        noise = torch.randn(len(rows), recipe.latent, generator=rng).to(context.device)
        optimizer_step(vae_optimizer, autoencoder_loss(networks, images, part, noise, recipe))
        if update % recipe.vae_steps == 0:
            with torch.no_grad():
                mean, _ = networks.vae.encode(images)
            logit = networks.discriminator(torch.cat([mean, part.discriminator], dim=1))
            optimizer_step(optimizer, discriminator_loss(*logit.chunk(2)))


def training_rows(labeled: int, unlabeled: int, recipe: VAALRecipe, rng: Generator) -> list[Tensor]:
    """Returns the rows of each update of the autoencoder: labeled images in the first half, unlabeled in the second."""
    updates, size = recipe.steps * recipe.vae_steps, recipe.batch_size
    first, second = (passes(count, updates * size, rng).view(updates, size) for count in (labeled, unlabeled))
    return list(torch.cat([first, labeled + second], dim=1))


def passes(count: int, total: int, rng: Generator) -> Tensor:
    """Draws `total` of 0..count-1 in repeated random permutations, so that few images still fill whole batches."""
    return torch.rand(-(-total // count), count, generator=rng).argsort(dim=1).flatten()[:total]


def autoencoder_loss(
    networks: VAALNetworks, images: Tensor, condition: Condition, noise: Tensor, recipe: VAALRecipe
) -> Tensor:
    """Computes the autoencoder's loss on a batch whose first half is labeled (VAAL, equations 1 to 3)."""
    mean, log_variance = networks.vae.encode(images)
    latent = mean + noise * torch.exp(log_variance / 2)
    reconstruction = networks.vae.decode(latent, condition.decoder)
    halves = zip(*(tensor.chunk(2) for tensor in (images, reconstruction, mean, log_variance)), strict=True)
    losses = [vae_loss(x, y, m, v, recipe.beta, recipe.divergence) for x, y, m, v in halves]
    logit = networks.discriminator(torch.cat([mean, condition.discriminator], dim=1))
    return torch.stack(losses).sum() + recipe.adversary * adversarial_loss(*logit.chunk(2))


def vae_loss(
    images: Tensor, reconstruction: Tensor, mean: Tensor, log_variance: Tensor, beta: float, divergence: Divergence
) -> Tensor:
    """Computes the mean squared error per pixel plus beta times the KL divergence from a standard normal.

    The divergence is summed over images and dimensions (VAAL's code) or their mean (TA-VAAL's).
    """
    kl = -0.5 * (1 + log_variance - mean.square() - log_variance.exp())
    return mse_loss(reconstruction, images) + beta * (kl.sum() if divergence == "sum" else kl.mean())


def adversarial_loss(labeled: Tensor, unlabeled: Tensor) -> Tensor:
    """Computes the cross-entropy of the discriminator's logits with all images as labeled (VAAL, equation 3)."""
    return constant_cross_entropy(labeled, 1.0) + constant_cross_entropy(unlabeled, 1.0)


def discriminator_loss(labeled: Tensor, unlabeled: Tensor) -> Tensor:
    """Computes the cross-entropy of the discriminator's logits (VAAL, equation 4)."""
    return constant_cross_entropy(labeled, 1.0) + constant_cross_entropy(unlabeled, 0.0)


def constant_cross_entropy(logit: Tensor, target: float) -> Tensor:
    """Computes the mean binary cross-entropy against a constant target."""
    return binary_cross_entropy_with_logits(logit, torch.full_like(logit, target))


def optimizer_step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """Performs one update, after clearing gradients that the other network's loss left."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def unlabeled_probability(context: QueryContext, condition: Condition, recipe: VAALRecipe, rng: Generator) -> Tensor:
    """Trains the networks and returns the discriminator's probability [U] that an image is unlabeled.

    `condition` holds the labeled images first, then the unlabeled ones.
    """
    index = torch.cat([context.labeled, context.unlabeled])
    shape = next(context.normalized_images([index[:1]])).shape[1:]
    columns = condition.decoder.shape[1]
    seed = int(torch.randint(2**62, (), generator=rng))
    networks = build_seeded(
        lambda: VAALNetworks(
            VAE(shape, recipe.latent, recipe.width, columns).to(memory_format=torch.channels_last).to(context.device),
            discriminator(recipe.latent + columns).to(context.device),
        ),
        seed,
        "vaal",
    )
    train_vaal(context, networks, index, condition, recipe, rng)
    rows = torch.arange(len(context.labeled), len(index))
    logit = torch.cat([part.double() for part in labeled_logits(context, networks, index, condition, rows)])
    return torch.sigmoid(-logit)


@torch.no_grad()
def labeled_logits(
    context: QueryContext, networks: VAALNetworks, index: Tensor, condition: Condition, rows: Tensor
) -> Iterator[Tensor]:
    """Yields the discriminator's logits of being labeled for these rows in blocks, with batch norm in eval mode."""
    networks.vae.eval()
    parts = torch.split(rows, inference_batch_size(context.device, 64, 64))
    for block, images in zip(parts, context.normalized_images([index[part] for part in parts]), strict=True):
        mean, _ = networks.vae.encode(images)
        yield networks.discriminator(torch.cat([mean, condition.discriminator[block.to(context.device)]], 1))[:, 0]
