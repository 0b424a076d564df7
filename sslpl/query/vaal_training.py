"""An autoencoder and a discriminator that train against each other over which images are labeled (VAAL)."""

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
    """How autoencoder and discriminator learn."""

    steps: int  # updates of the discriminator
    vae_steps: int  # updates of the autoencoder for each of them, on a new batch each
    batch_size: int  # labeled images, and as many unlabeled ones
    width: int
    latent: int
    rate: float
    beta: float
    adversary: float
    divergence: Divergence


class Condition(NamedTuple):
    """What the networks see beside each of N images: no columns (VAAL) or one (TA-VAAL)."""

    decoder: Tensor  # [N, c]
    discriminator: Tensor  # [N, c]


class VAALNetworks(NamedTuple):
    """Trained together, against each other."""

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
    """Trains the autoencoder to hide from the discriminator which images are labeled, and the latter to find out.

    Labeled and unlabeled images pass together, so that batch norm treats them alike, and as it does when they are
    scored (ours: the published code normalizes them apart, also when scoring).
    """
    vae_optimizer, optimizer = (torch.optim.Adam(network.parameters(), lr=recipe.rate) for network in networks)
    batches = training_rows(len(context.labeled), len(context.unlabeled), recipe, rng)
    views = context.normalized_images([index[rows] for rows in batches])
    for update, (rows, images) in enumerate(zip(batches, views, strict=True), start=1):
        there = rows.to(context.device)
        part = Condition(condition.decoder[there], condition.discriminator[there])
        noise = torch.randn(len(rows), recipe.latent, generator=rng).to(context.device)
        optimizer_step(vae_optimizer, autoencoder_loss(networks, images, part, noise, recipe))
        if update % recipe.vae_steps == 0:
            with torch.no_grad():
                mean, _ = networks.vae.encode(images)
            logit = networks.discriminator(torch.cat([mean, part.discriminator], dim=1))
            optimizer_step(optimizer, discriminator_loss(*logit.chunk(2)))


def training_rows(labeled: int, unlabeled: int, recipe: VAALRecipe, rng: Generator) -> list[Tensor]:
    """For each update of the autoencoder its rows: half of them labeled images, the others unlabeled ones behind."""
    updates, size = recipe.steps * recipe.vae_steps, recipe.batch_size
    known, asked = (passes(count, updates * size, rng).view(updates, size) for count in (labeled, unlabeled))
    return list(torch.cat([known, labeled + asked], dim=1))


def passes(count: int, total: int, rng: Generator) -> Tensor:
    """`total` of 0..count-1: all of them in random order, and again, so that few images still make whole batches."""
    return torch.rand(-(-total // count), count, generator=rng).argsort(dim=1).flatten()[:total]


def autoencoder_loss(
    networks: VAALNetworks, images: Tensor, condition: Condition, noise: Tensor, recipe: VAALRecipe
) -> Tensor:
    """What the autoencoder minimizes on a batch whose first half is labeled (VAAL, equations 1 to 3)."""
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
    """Mean squared error per pixel plus beta times the divergence from a standard normal distribution.

    The divergence is summed over images and dimensions (VAAL's code) or their mean (TA-VAAL's).
    """
    apart = -0.5 * (1 + log_variance - mean.square() - log_variance.exp())
    return mse_loss(reconstruction, images) + beta * (apart.sum() if divergence == "sum" else apart.mean())


def adversarial_loss(labeled: Tensor, unlabeled: Tensor) -> Tensor:
    """Cross-entropy of the discriminator's logits if all images were labeled (VAAL, equation 3)."""
    return constant_cross_entropy(labeled, 1.0) + constant_cross_entropy(unlabeled, 1.0)


def discriminator_loss(labeled: Tensor, unlabeled: Tensor) -> Tensor:
    """Cross-entropy of the discriminator's logits (VAAL, equation 4)."""
    return constant_cross_entropy(labeled, 1.0) + constant_cross_entropy(unlabeled, 0.0)


def constant_cross_entropy(logit: Tensor, target: float) -> Tensor:
    """Mean binary cross-entropy against one target for all."""
    return binary_cross_entropy_with_logits(logit, torch.full_like(logit, target))


def optimizer_step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    """One update; gradients that the other network's loss left are dropped."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def unlabeled_probability(context: QueryContext, condition: Condition, recipe: VAALRecipe, rng: Generator) -> Tensor:
    """What a discriminator, trained for it, takes for the probability [U] that an image is unlabeled.

    Conditions are those of the labeled and then of the unlabeled images.
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
    """The discriminator's logits of being labeled for some rows, part by part, with batch norm in eval mode."""
    networks.vae.eval()
    parts = torch.split(rows, inference_batch_size(context.device, 64, 64))
    for some, images in zip(parts, context.normalized_images([index[part] for part in parts]), strict=True):
        mean, _ = networks.vae.encode(images)
        yield networks.discriminator(torch.cat([mean, condition.discriminator[some.to(context.device)]], 1))[:, 0]
