"""VAAL: selects images that a discriminator classifies as unlabeled (Sinha et al. 2019)."""

import torch
from torch import Generator

from sslpl.query.context import needs_images
from sslpl.query.selection import ranked, select_rows, subsample
from sslpl.query.vaal_training import Condition, Divergence, VAALRecipe, unlabeled_probability
from sslpl.types import Count, Positive, PositiveOrZero, QueryContext, Selection


@needs_images
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
) -> Selection:
    """Selects images of the highest probability of being unlabeled (VAAL: Sinha, Ebrahimi and Darrell, ICCV 2019).

    That probability is the score. Rates, weights and layers are those of the published code, with two exceptions: there
    `width` is 128, and `divergence` a sum, 4096 times the mean; the mean is closer to the paper's equation 1.
    """
    recipe = VAALRecipe(steps, vae_steps, batch_size, width, latent, rate, beta, adversary, divergence)
    context = subsample(context, n, subset, rng)
    empty = torch.empty(len(context.labeled) + len(context.unlabeled), 0, device=context.device)
    score = unlabeled_probability(context, Condition(empty, empty), recipe, rng)
    return select_rows(context, ranked(score, rng)[:n], score)
