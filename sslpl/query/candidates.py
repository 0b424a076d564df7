"""The second half of DropQuery and ALFA-Mix: a diverse batch of the candidates."""

import torch
from torch import Generator, Tensor

from sslpl.query.kmeans import nearest_to_centroids
from sslpl.query.selection import select_rows
from sslpl.types import QueryContext, Selection


def diverse_candidates(context: QueryContext, candidate: Tensor, n: int, rng: Generator) -> Selection:
    """Selects the candidates nearest to the centroids of k-means with n clusters of their normalized embeddings.

    `candidate` [U] is True for a candidate. If there are at most n, all are selected, and random other images.
    """
    order = torch.randperm(len(candidate), generator=rng)
    is_candidate = candidate.cpu()[order]
    candidates = order[is_candidate]
    if len(candidates) <= n:
        return select_rows(context, torch.cat([candidates, order[~is_candidate][: n - len(candidates)]]))
    return select_rows(
        context, candidates[nearest_to_centroids(context.predictions.embedding, candidates, n, rng, unit=True)]
    )
