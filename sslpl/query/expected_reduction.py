"""Expected reduction: selects images by how much of their cluster's total score they are expected to remove."""

import torch
from torch import Generator, Tensor

from sslpl.query.context import needs_faiss
from sslpl.query.kmeans import cluster_rows
from sslpl.query.selection import check_not_negative, earlier_rows, ranked
from sslpl.types import Count


@needs_faiss
def expected_reduction(
    score: Tensor,
    embedding: Tensor,
    n: int,
    candidates: int,  # noqa: ARG001
    rng: Generator,
    *,
    steps: Count = 100,
) -> Tensor:
    """Selects one by one the image that reduces the total score the most, by a model of k-means clusters (ours).

    All images are clustered by k-means with n clusters of the embeddings. Labeling k images of a cluster is expected to
    reduce the total M of its scores to M / (1 + k), whichever they are, so that the next one removes M / (1 + k) - M /
    (2 + k). The images of a cluster are taken from the highest score to the lowest. Where expected error reduction
    (Roy and McCallum 2001) retrains the model for each image and label, here the score tells where the loss is and
    the clusters tell how far a label reaches. UserError for a negative score.
    """
    check_not_negative(score, "query/selector=expected_reduction sums the scores of each cluster")
    order = ranked(score, rng)
    cluster = cluster_rows(embedding, order, n, rng, steps=steps).assignment.cpu()
    return order[ranked(reductions(score.cpu()[order].double(), cluster), rng)[:n]]


def reductions(score: Tensor, cluster: Tensor) -> Tensor:
    """Returns by how much each row [N] reduces the total score of its cluster, after the cluster's earlier rows."""
    total = torch.zeros(int(cluster.max()) + 1, dtype=score.dtype).index_add_(0, cluster, score)
    earlier = earlier_rows(cluster)
    return total[cluster] / ((earlier + 1) * (earlier + 2))
