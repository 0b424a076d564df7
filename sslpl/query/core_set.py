"""Core-set: greedy k-center over the embeddings (Sener and Savarese 2018)."""

from torch import Generator

from sslpl.clustering.k_center import k_center_greedy
from sslpl.types import QueryContext, Selection


def core_set(context: QueryContext, n: int, rng: Generator) -> Selection:
    """Selects n times the image farthest from all labeled and selected ones (k-center greedy: Sener and Savarese 2018).

    The score is its Euclidean distance to the nearest of them, in embedding space.
    """
    centers, points = context.labeled_predictions.embedding, context.predictions.embedding
    rows, radius = k_center_greedy(centers, points, n, rng)
    return Selection(context.unlabeled[rows], radius)
