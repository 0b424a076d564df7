"""Several answers about an image: whether another one is needed, and which label they give."""

from collections import Counter
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from sslpl.types import REJECTED, Annotations, UserError

Aggregate = Literal["majority", "dawid_skene"]
MOST_ITERATIONS = 100
TOLERANCE = 1e-5  # largest change of a posterior after which EM has converged


class Consensus(NamedTuple):
    """The label of each annotated image."""

    index: Tensor  # type: ignore[assignment]  # [m] int64, positions in the pool, ascending
    label: Tensor  # [m] int64; -2: of no class


def checked_max_answers(annotators: int, max_answers: int | None) -> int:
    """Returns the most answers that an image gets, by default one more than `annotators`; UserError if it is fewer."""
    if max_answers is None:
        return annotators + (annotators > 1)
    if max_answers < annotators:
        raise UserError(f"oracle.max_answers={max_answers}: must be at least oracle.annotators={annotators}, or null")
    return max_answers


def needs_answer(answers: Sequence[object], annotators: int, max_answers: int) -> bool:
    """True if an image needs another answer: it has too few, or no answer has more than half of the votes (ours).

    A disagreement is asked about until one answer has, or until there are `max_answers`.
    """
    if len(answers) < annotators:
        return True
    votes = max(Counter(answers).values())
    return 2 * votes <= len(answers) < max_answers


def annotations_of(answers: Sequence[tuple[int, int, int]], people: Sequence[str]) -> Annotations:
    """Returns annotations from answers: position of the image, position of the person in `people`, class."""
    index, person, label = torch.tensor(answers, dtype=torch.int64).reshape(-1, 3).unbind(dim=1)
    return Annotations(index, person, label, tuple(people))


def joined(earlier: Annotations | None, new: Annotations) -> Annotations:
    """Returns earlier annotations by the same people and new ones."""
    if earlier is None:
        return new
    index, person, label = (torch.cat(pair) for pair in zip(earlier[:3], new[:3], strict=True))
    return Annotations(index, person, label, new.people)


def consensus(annotations: Annotations, classes: int, how: Aggregate) -> Consensus:
    """Returns the label of every image with answers, by majority or by the model of Dawid and Skene."""
    index, rows = torch.unique(annotations.index, return_inverse=True)
    columns = torch.where(annotations.label < 0, classes, annotations.label)  # no class: one class more
    if how == "majority":
        chosen = majority(rows, columns, len(index), classes + 1)
    else:
        chosen = dawid_skene(rows, annotations.person, columns, len(index), classes + 1).argmax(dim=1)
    return Consensus(index, torch.where(chosen == classes, REJECTED, chosen))


def majority(rows: Tensor, labels: Tensor, images: int, classes: int) -> Tensor:
    """Returns the most frequent of the labels [A] of each image [images]; of equally frequent ones the first given."""
    votes = torch.zeros(images, classes, dtype=torch.float64)
    votes.index_put_((rows, labels), torch.ones(len(rows), dtype=torch.float64), accumulate=True)
    place = torch.arange(len(rows), dtype=torch.float64) / max(len(rows), 1)  # below 1: breaks ties alone
    first = torch.ones(images * classes, dtype=torch.float64)
    first.scatter_reduce_(0, rows * classes + labels, place, "amin")
    return (votes - first.view(images, classes)).argmax(dim=1)


def dawid_skene(rows: Tensor, people: Tensor, labels: Tensor, images: int, classes: int) -> Tensor:
    """Returns the probability of each class [images, classes], from answers [A] about images `rows` by `people`.

    Expectation-maximization over the classes of the images, their frequencies and a confusion matrix for each person
    (Dawid and Skene 1979), from the shares of the votes, without smoothing.
    """
    tiny = torch.finfo(torch.float64).eps
    posterior = torch.zeros(images, classes, dtype=torch.float64)
    posterior.index_put_((rows, labels), torch.ones(len(rows), dtype=torch.float64), accumulate=True)
    posterior /= posterior.sum(dim=1, keepdim=True)
    cells = people * classes + labels  # of each person, the column of the answer
    for _ in range(MOST_ITERATIONS):
        confusion = torch.zeros((int(people.max()) + 1) * classes, classes, dtype=torch.float64)
        confusion.index_add_(0, cells, posterior[rows])
        confusion = confusion.view(-1, classes, classes)  # person, answer, class
        confusion = (confusion / confusion.sum(dim=1, keepdim=True).clamp(min=tiny)).clamp(min=tiny)
        likelihood = posterior.mean(dim=0).clamp(min=tiny).log().repeat(images, 1)
        likelihood.index_add_(0, rows, confusion.log()[people, labels])
        previous, posterior = posterior, likelihood.softmax(dim=1)
        if float((posterior - previous).abs().max()) < TOLERANCE:
            break
    return posterior
