"""Agreement between annotators beyond chance: Cohen's kappa of two people, Fleiss' kappa of more."""

import torch
from torch import Tensor

from sslpl.types import Annotations


def annotator_kappa(annotations: Annotations) -> float | None:
    """Returns the agreement of the people who answered, at most 1; 0 is that of chance. None if it is undefined.

    Of each image only the first answers count, as many as every image with several answers has: the answers that
    were asked for because people disagreed would lower the agreement. Two people have Cohen's kappa, more of them
    Fleiss'.
    """
    _, rows, counts = torch.unique(annotations.index, return_inverse=True, return_counts=True)
    several = counts >= 2
    if not bool(several.any()):
        return None
    answers = int(counts[several].min())
    kept = several[rows] & (earlier_answers(rows) < answers)
    _, rows = torch.unique(rows[kept], return_inverse=True)
    people, labels = annotations.person[kept], annotations.label[kept]
    if len(torch.unique(labels)) < 2:
        return None
    if answers == 2 and len(torch.unique(people)) == 2:
        from sklearn.metrics import cohen_kappa_score  # imported late: it takes a second

        first, second = torch.unique(people).tolist()
        by_image = rows.argsort(stable=True)
        labels, people = labels[by_image], people[by_image]
        return float(cohen_kappa_score(labels[people == first].numpy(), labels[people == second].numpy()))
    _, columns = torch.unique(labels, return_inverse=True)
    votes = torch.zeros(int(rows.max()) + 1, int(columns.max()) + 1, dtype=torch.float64)
    votes.index_put_((rows, columns), torch.ones(len(rows), dtype=torch.float64), accumulate=True)
    return fleiss_kappa(votes)


def earlier_answers(rows: Tensor) -> Tensor:
    """Returns for each answer [A] how many earlier ones are about the same image."""
    order = rows.argsort(stable=True)
    counts = torch.bincount(rows)
    starts = counts.cumsum(0) - counts
    earlier = torch.empty_like(rows)
    earlier[order] = torch.arange(len(rows)) - starts[rows[order]]
    return earlier


def fleiss_kappa(votes: Tensor) -> float:
    """Returns the kappa of votes [images, classes], of which every image has the same number (Fleiss 1971)."""
    answers = votes[0].sum()
    shares = votes.sum(dim=0) / votes.sum()
    agreement = ((votes.square().sum(dim=1) - answers) / (answers * (answers - 1))).mean()
    chance = shares.square().sum()
    return float((agreement - chance) / (1 - chance))
