"""Random sampling."""

import torch
from torch import Generator

from sslpl.query.context import works_unlabeled
from sslpl.query.selection import select_rows
from sslpl.types import QueryContext, Selection


@works_unlabeled
def random(context: QueryContext, n: int, rng: Generator) -> Selection:
    """Selects n unlabeled images uniformly without replacement."""
    return select_rows(context, torch.randperm(len(context.unlabeled), generator=rng)[:n])
