"""DropQuery: images whose prediction changes under dropout, spread by k-means (Gupte et al. 2024)."""

import torch
from torch import Generator, Tensor, nn

from sslpl.clustering.neighbors import blocks
from sslpl.query.candidates import diverse_candidates
from sslpl.query.context import needs_faiss
from sslpl.query.head import linear_head
from sslpl.types import Count, QueryContext, Selection, ShareBelowOne


@needs_faiss
def dropquery(
    context: QueryContext,
    n: int,
    rng: Generator,
    *,
    samples: Count = 3,
    dropout: ShareBelowOne = 0.75,
    candidate_factor: Count = 25,
) -> Selection:
    """Selects from the images whose predicted class changes under dropout (DropQuery: Gupte et al., TMLR 2024).

    Candidates are the images that more than half of `samples` dropout masks of their own embedding, of rate `dropout`,
    assign to another class. As in the published code, whose values these are, that number is lowered, at least to one
    mask, while there are fewer than `candidate_factor` x n candidates. The candidates nearest to the centroids of
    k-means over their normalized embeddings are selected. There a batch norm without parameters lies between dropout
    and head; here the head takes the embedding as it is, as in the code of Huseljic et al. 2025.
    """
    candidate = dropquery_candidates(context, n, rng, samples, dropout, candidate_factor)
    return diverse_candidates(context, candidate, n, rng)


def dropquery_candidates(
    context: QueryContext, n: int, rng: Generator, samples: int = 3, dropout: float = 0.75, candidate_factor: int = 25
) -> Tensor:
    """Returns a mask [U] of the images whose predicted class changes often enough under dropout."""
    head = linear_head(context.backbone)
    changes = dropout_changes(head, context.predictions.embedding, context.predictions.logits, samples, dropout, rng)
    return changes > change_threshold(changes, samples, candidate_factor * n)


def dropout_changes(
    head: nn.Linear, embedding: Tensor, logits: Tensor, samples: int, dropout: float, rng: Generator
) -> Tensor:
    """Counts [U] how many of the dropout masks drawn for each embedding change its predicted class."""
    changes = torch.zeros(len(embedding), dtype=torch.int64, device=embedding.device)
    for rows in blocks(len(embedding), samples * embedding.shape[1], embedding.device):
        block = embedding[rows]
        keep = torch.rand(samples, *block.shape, generator=rng) >= dropout
        changes[rows] = changed_predictions(head, block, logits[rows], keep.to(block.device), dropout)
    return changes


@torch.no_grad()
def changed_predictions(head: nn.Linear, embedding: Tensor, logits: Tensor, keep: Tensor, dropout: float) -> Tensor:
    """Counts [N] the masks `keep` [samples, N, D] under which the predicted class of an embedding [N, D] changes."""
    predicted = head(keep * (embedding / (1 - dropout))).argmax(dim=2)
    changed: Tensor = predicted != logits.argmax(dim=1)
    return changed.sum(dim=0)


def change_threshold(changes: Tensor, samples: int, candidates: int) -> int:
    """Returns the number of changes above which an image is a candidate: half, or less if they are too few."""
    threshold = samples // 2
    while threshold > 0 and int((changes > threshold).sum()) < candidates:
        threshold -= 1
    return threshold
