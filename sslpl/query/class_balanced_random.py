"""Class-balanced random sampling, a baseline that knows the hidden labels."""

import torch
from torch import Generator

from sslpl.query.selection import earlier_rows, select_rows
from sslpl.types import QueryContext, Selection


def class_balanced_random(context: QueryContext, n: int, rng: Generator, *, oracle_baseline: bool = False) -> Selection:  # noqa: ARG001
    """Selects equally many random images per class; it reads hidden labels, so that it is a baseline only."""
    order = torch.randperm(len(context.unlabeled), generator=rng)
    classes = context.hidden_labels().cpu()[order]
    return select_rows(context, order[torch.argsort(earlier_rows(classes), stable=True)[:n]])
