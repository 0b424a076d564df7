"""VAAL and TA-VAAL: the images that a discriminator, trained against an autoencoder, can tell from labeled ones.

Autoencoder and discriminator are new in each cycle and share nothing with the task's networks: neither weights nor
losses. Whether their updates alternate with those of the task, as published for VAAL, or come after them, as here, is
therefore the same but for their number, which is `steps` instead of one for each step of the task.
"""

from collections.abc import Iterator

import torch
from torch import Generator, Tensor

from sslpl.models.backbones import forward_batch
from sslpl.models.vae import VAE, discriminator
from sslpl.query.adversarial import Condition, Divergence, Networks, Recipe, train
from sslpl.query.context import needs_module
from sslpl.query.selectors import ranked
from sslpl.query.strategies import picked, subsampled
from sslpl.seeds import seeded
from sslpl.types import Count, Picked, Positive, PositiveOrZero, QueryContext


def vaal(
    context: QueryContext,
    n: int,
    rng: Generator,
    *,
    steps: Count = 200,
    vae_steps: Count = 2,
    batch_size: Count = 128,
    width: Count = 16,
    latent: Count = 32,
    rate: Positive = 5e-4,
    beta: PositiveOrZero = 1.0,
    adversary: PositiveOrZero = 1.0,
    divergence: Divergence = "mean",
    subset: Count | None = None,
) -> Picked:
    """The images most surely unlabeled to the discriminator (Sinha, Ebrahimi and Darrell, ICCV 2019).

    The score is its probability of being unlabeled. Rates, weights and layers are the published code's but for two:
    `width` is 128 there, and `divergence` a sum, 4096 times the mean; the mean is nearer to the paper's equation 1.
    """
    recipe = Recipe(steps, vae_steps, batch_size, width, latent, rate, beta, adversary, divergence)
    context = subsampled(context, n, subset, rng)
    nothing = torch.empty(len(context.labeled) + len(context.unlabeled), 0, device=context.device)
    score = unlabeled_probability(context, Condition(nothing, nothing), recipe, rng)
    return picked(context, ranked(score, rng)[:n], score)


@needs_module
def ta_vaal(
    context: QueryContext,
    n: int,
    rng: Generator,
    *,
    steps: Count = 200,
    vae_steps: Count = 1,
    batch_size: Count = 128,
    width: Count = 16,
    latent: Count = 32,
    rate: Positive = 5e-4,
    beta: PositiveOrZero = 1.0,
    adversary: PositiveOrZero = 1.0,
    divergence: Divergence = "mean",
    normalized: bool = False,
    subset: Count | None = 10000,
) -> Picked:
    """VAAL whose networks also see the predicted loss, the ranker's output (Kim et al., CVPR 2021).

    The decoder sees it normalized to 0..1 by a sigmoid; the discriminator as it is (published code) or `normalized`.
    """
    recipe = Recipe(steps, vae_steps, batch_size, width, latent, rate, beta, adversary, divergence)
    context = subsampled(context, n, subset, rng)
    known, asked = context.labeled_predictions.predicted_loss, context.predictions.predicted_loss
    assert known is not None
    assert asked is not None
    rank = torch.cat([known, asked])[:, None]
    condition = Condition(rank.sigmoid(), rank.sigmoid() if normalized else rank)
    score = unlabeled_probability(context, condition, recipe, rng)
    return picked(context, ranked(score, rng)[:n], score)


def unlabeled_probability(context: QueryContext, condition: Condition, recipe: Recipe, rng: Generator) -> Tensor:
    """What a discriminator, trained for it, takes for the probability [U] that an image is unlabeled.

    Conditions are those of the labeled and then of the unlabeled images.
    """
    index = torch.cat([context.labeled, context.unlabeled])
    shape = next(context.views([index[:1]])).shape[1:]
    columns = condition.decoder.shape[1]
    seed = int(torch.randint(2**62, (), generator=rng))
    networks = seeded(
        lambda: Networks(
            VAE(shape, recipe.latent, recipe.width, columns).to(memory_format=torch.channels_last).to(context.device),
            discriminator(recipe.latent + columns).to(context.device),
        ),
        seed,
        "vaal",
    )
    train(context, networks, index, condition, recipe, rng)
    rows = torch.arange(len(context.labeled), len(index))
    logit = torch.cat([part.double() for part in labeled_logits(context, networks, index, condition, rows)])
    return torch.sigmoid(-logit)


@torch.no_grad()
def labeled_logits(
    context: QueryContext, networks: Networks, index: Tensor, condition: Condition, rows: Tensor
) -> Iterator[Tensor]:
    """The discriminator's logits of being labeled for some rows, part by part, with batch norm in eval mode."""
    networks.vae.eval()
    parts = torch.split(rows, forward_batch(context.device, 64, 64))
    for some, images in zip(parts, context.views([index[part] for part in parts]), strict=True):
        mean, _ = networks.vae.encode(images)
        yield networks.discriminator(torch.cat([mean, condition.discriminator[some.to(context.device)]], 1))[:, 0]
