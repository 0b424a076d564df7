"""Class-balanced random sampling: an oracle baseline."""

import torch
from torch import Generator

from sslpl.query.selection import select_rows
from sslpl.types import QueryContext, Selection


def class_balanced_random(context: QueryContext, n: int, rng: Generator, *, oracle_baseline: bool = False) -> Selection:  # noqa: ARG001
    """As many of each hidden class as possible, at random within it: an oracle's baseline, which no one could run."""
    order = torch.randperm(len(context.unlabeled), generator=rng)
    classes = context.hidden_labels().cpu()[order]
    grouped = torch.argsort(classes, stable=True)
    count = torch.bincount(classes)
    turn = torch.empty_like(order)  # how many of its class come before it
    turn[grouped] = torch.arange(len(order)) - (count.cumsum(0) - count)[classes[grouped]]
    return select_rows(context, order[torch.argsort(turn, stable=True)[:n]])
