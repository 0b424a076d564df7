"""TA-VAAL: VAAL conditioned on the predicted loss (Kim et al. 2021)."""

import torch
from torch import Generator

from sslpl.query.context import needs_images, needs_module
from sslpl.query.selection import ranked, select_rows, subsample
from sslpl.query.vaal_training import Condition, Divergence, VAALRecipe, unlabeled_probability
from sslpl.types import Count, Positive, PositiveOrZero, QueryContext, Selection


@needs_images
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
    """Selects as VAAL, with networks conditioned on the predicted loss, the ranker's output (Kim et al., CVPR 2021).

    The decoder receives its sigmoid, in 0..1; the discriminator the raw value (published code) or, with `normalized`,
    the sigmoid.
    """
    recipe = VAALRecipe(steps, vae_steps, batch_size, width, latent, rate, beta, adversary, divergence)
    context = subsample(context, n, subset, rng)
    labeled, unlabeled = context.labeled_predictions.predicted_loss, context.predictions.predicted_loss
    assert labeled is not None
    assert unlabeled is not None
    predicted_loss = torch.cat([labeled, unlabeled])[:, None]
    condition = Condition(predicted_loss.sigmoid(), predicted_loss.sigmoid() if normalized else predicted_loss)
    score = unlabeled_probability(context, condition, recipe, rng)
    return select_rows(context, ranked(score, rng)[:n], score)
