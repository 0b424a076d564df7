"""TA-VAAL: VAAL conditioned on the predicted loss (Kim et al. 2021)."""

import torch
from torch import Generator

from sslpl.query.context import needs_module
from sslpl.query.selection import ranked, select_rows, subsample
from sslpl.query.vaal_training import Condition, Divergence, VAALRecipe, unlabeled_probability
from sslpl.types import Count, Positive, PositiveOrZero, QueryContext, Selection


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
) -> Selection:
    """VAAL whose networks also see the predicted loss, the ranker's output (Kim et al., CVPR 2021).

    The decoder sees it normalized to 0..1 by a sigmoid; the discriminator as it is (published code) or `normalized`.
    """
    recipe = VAALRecipe(steps, vae_steps, batch_size, width, latent, rate, beta, adversary, divergence)
    context = subsample(context, n, subset, rng)
    known, asked = context.labeled_predictions.predicted_loss, context.predictions.predicted_loss
    assert known is not None
    assert asked is not None
    rank = torch.cat([known, asked])[:, None]
    condition = Condition(rank.sigmoid(), rank.sigmoid() if normalized else rank)
    score = unlabeled_probability(context, condition, recipe, rng)
    return select_rows(context, ranked(score, rng)[:n], score)
