"""Class-balanced selection near the class means, two of BoSS's strategies, which know the hidden labels."""

import torch
from torch import Generator, Tensor
from torch.nn.functional import normalize

from sslpl.query.candidates import diverse_candidates
from sslpl.query.dropquery import dropquery_candidates
from sslpl.query.selection import select_rows
from sslpl.types import QueryContext, Selection


def class_typical(context: QueryContext, n: int, rng: Generator) -> Selection:  # noqa: ARG001
    """Selects, for the class with the fewest labels each time, its most central image (TypiClass of BoSS)."""
    every = torch.arange(len(context.unlabeled))
    return select_rows(context, central_rows(context, every, context.predictions.embedding, n))


def class_dropquery(context: QueryContext, n: int, rng: Generator) -> Selection:
    """Selects like `class_typical`, from DropQuery's candidates and their normalized embeddings (DropQueryClass)."""
    candidate = dropquery_candidates(context, n, rng)
    if int(candidate.sum()) <= n:
        return diverse_candidates(context, candidate, n, rng)
    rows = candidate.nonzero()[:, 0].cpu()
    return select_rows(context, central_rows(context, rows, normalize(context.predictions.embedding), n))


def central_rows(context: QueryContext, rows: Tensor, embedding: Tensor, n: int) -> Tensor:
    """Returns n of the rows, each the nearest to the mean of the rows of its class that are left.

    The class with the fewest labels and selections that still has rows is next; ties: the lowest class, the first row.
    """
    truth = context.hidden_labels().cpu()[rows]
    left = [rows[truth == label] for label in range(context.num_classes)]
    count = torch.bincount(context.labels, minlength=context.num_classes).double()
    chosen: list[Tensor] = []
    for _ in range(n):
        count[[len(members) == 0 for members in left]] = torch.inf
        label = int(count.argmin())
        points = embedding[left[label].to(embedding.device)].double()
        nearest = int((points - points.mean(dim=0)).square().sum(dim=1).argmin())
        chosen.append(left[label][nearest])
        left[label] = torch.cat([left[label][:nearest], left[label][nearest + 1 :]])
        count[label] += 1
    return torch.stack(chosen)
