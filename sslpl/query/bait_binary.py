"""BAIT for a binary last layer, which takes little memory (Huseljic et al. 2024)."""

from torch import Generator

from sslpl.query.context import needs_subset
from sslpl.query.fisher_selection import binary_covariance, select_by_fisher
from sslpl.query.selection import subsample
from sslpl.types import Count, Positive, QueryContext, Selection


@needs_subset
def bait_binary(
    context: QueryContext,
    n: int,
    rng: Generator,
    *,
    regularization: Positive = 1.0,
    oversample: Count = 2,
    subset: Count | None = None,
) -> Selection:
    """Selects like `bait`, with the Fisher information of a binary last layer (BAIT (Binary): Huseljic et al. 2024).

    That layer separates the most likely class, of probability p, from the others: the Fisher information of an image
    with embedding h is p (1 - p) h h', with dimensions^2 entries.
    """
    context = subsample(context, n, subset, rng)
    return select_by_fisher(context, n, rng, binary_covariance, regularization, oversample)
