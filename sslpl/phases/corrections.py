"""Applies what people have changed about the labels of earlier batches."""

import torch
from torch import Tensor

from sslpl.pool import without
from sslpl.state import Ledger, State
from sslpl.types import REJECTED, EarlierLabels


def correct_labels(state: State, earlier: EarlierLabels, cycle: int) -> None:
    """Replaces changed labels, removes images that are rejected now, and adds images that have a label now.

    An added image was rejected or returned to the pool before; its label is recorded for `cycle`, without a score.
    """
    index, label = earlier
    known = state.labels()[index]
    rejected = index[(label == REJECTED) & ~torch.isin(index, state.pool.rejected)]
    added = (label >= 0) & (known < 0)
    changed = (label >= 0) & (known >= 0) & (label != known)
    state.ledger = with_labels(state.ledger, index[changed], label[changed])
    if len(rejected):
        state.ledger = Ledger(*(column[~torch.isin(state.ledger.index, rejected)] for column in state.ledger))
        state.held_out = without(state.held_out, rejected)
        state.pool = state.pool.reject(rejected)
    if bool(added.any()):
        state.pool = state.pool.restore(index[added]).label(index[added])
        columns = torch.full_like(index[added], cycle), index[added], label[added]
        new = (*columns, torch.full((len(columns[0]),), torch.nan, dtype=torch.float64))
        state.ledger = Ledger(*(torch.cat(pair) for pair in zip(state.ledger, new, strict=True)))


def with_labels(ledger: Ledger, index: Tensor, label: Tensor) -> Ledger:
    """Returns the ledger with other labels of the images at `index`, each of which it contains."""
    labels = ledger.label.clone()
    for position, value in zip(index.tolist(), label.tolist(), strict=True):
        labels[ledger.index == position] = value
    return ledger._replace(label=labels)
