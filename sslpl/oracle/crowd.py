"""An oracle that simulates several annotators who make errors."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from sslpl.oracle.aggregation import Aggregate, annotations_of, checked_max_answers, consensus, joined, needs_answer
from sslpl.seeds import rng
from sslpl.types import (
    REJECTED,
    UNLABELED,
    Annotations,
    Count,
    Dataset,
    EarlierLabels,
    LabelAnswer,
    LabelRequest,
    Share,
    UserError,
)

Accuracy = Annotated[
    Share | list[Share], Field(description="a number from 0 to 1, or a list of them, one for each person")
]
Matrix = list[list[Share]]
Confusion = Annotated[
    Matrix | list[Matrix] | None,
    Field(description="null, a square matrix of numbers from 0 to 1, or a list of them, one for each person"),
]


@dataclass
class CrowdOracle:
    """Simulates people with given accuracies or confusion matrices; each of their answers is paid for."""

    annotators: Count = 3  # answers that every image gets
    max_answers: Count | None = None  # answers that a disputed image gets at most; None: one more
    people: Count = 5
    accuracy: Accuracy = 0.8
    confusion: Confusion = None  # rows: true class; instead of the accuracy
    aggregate: Aggregate = "majority"
    truth: Tensor = field(init=False, repr=False)  # [pool]
    chances: Tensor = field(init=False, repr=False)  # [people, classes + 1, classes + 1], of each answer

    def __post_init__(self) -> None:
        self.max_answers = checked_max_answers(self.annotators, self.max_answers)
        if self.people < self.max_answers:
            raise UserError(
                f"oracle.people={self.people}: must be at least {self.max_answers}, because nobody answers about an "
                "image twice (oracle.max_answers, by default one more than oracle.annotators)"
            )

    def prepare(self, dataset: Dataset) -> Dataset:
        """Returns the dataset without its labels, which are kept for analysis; UserError if one is unknown."""
        if missing := int((dataset.train_labels == UNLABELED).sum()):
            raise UserError(f"oracle=crowd: {missing:,} of {len(dataset.train):,} images of the pool have no label")
        self.truth, classes = dataset.train_labels, len(dataset.class_names)
        if self.confusion is None:
            self.chances = accurate_people(self.accuracy, self.people, classes)
        else:
            self.chances = confused_people(self.confusion, self.people, classes)
        return dataset._replace(train_labels=torch.full_like(self.truth, UNLABELED), true_labels=self.truth)

    def __call__(self, request: LabelRequest) -> LabelAnswer:
        """Asks people about the selected images, and aggregates their answers with the earlier ones."""
        classes = len(request.class_names)
        asked = self.ask(request.selection.index.tolist(), classes, request.seed)
        annotations = joined(request.annotations, asked)
        index, label = consensus(annotations, classes, self.aggregate)
        labels = torch.full((len(self.truth),), UNLABELED)
        labels[index] = label
        known = index[~torch.isin(index, request.selection.index)]
        corrected = EarlierLabels(known, labels[known])
        return LabelAnswer(
            labels[request.selection.index], request.class_names, earlier=corrected, annotations=annotations
        )

    def ask(self, index: Sequence[int], classes: int, seed: int) -> Annotations:
        """Returns the answers about images, first everyone's first one: `annotators` each, more if they disagree.

        Who is asked, and what a person answers, depends on the image and the seed alone.
        """
        size = (len(self.truth), self.people)
        order = torch.rand(size, generator=rng(seed, "crowd order"))[list(index)].argsort(dim=1)
        draws = torch.rand(size, generator=rng(seed, "crowd answers"), dtype=torch.float64)[list(index)]
        truth = self.truth[list(index)]
        rows = self.chances[:, torch.where(truth < 0, classes, truth)].transpose(0, 1)  # [n, people, classes + 1]
        answers = torch.searchsorted(rows.cumsum(dim=2).contiguous(), draws[:, :, None], right=True)[:, :, 0]
        answers = answers.clamp(max=classes)
        answers[answers == classes] = REJECTED
        found: list[tuple[int, int, int]] = []
        assert self.max_answers is not None
        for image, people, given in zip(index, order.tolist(), answers.tolist(), strict=True):
            heard: list[int] = []
            for person in people:
                if not needs_answer(heard, self.annotators, self.max_answers):
                    break
                heard.append(given[person])
                found.append((image, person, given[person]))
        names = tuple(f"person {number}" for number in range(1, self.people + 1))
        return annotations_of(found, names)


def accurate_people(accuracy: float | Sequence[float], people: int, classes: int) -> Tensor:
    """Returns the chances [people, classes + 1, classes + 1] of answers that are right with given probabilities.

    A wrong answer is any other class with equal probability; an image of no class is the last row, and is taken for
    one of the classes as often; an image of a class is never rejected (ours).
    """
    each = [accuracy] * people if isinstance(accuracy, float) else list(accuracy)
    if len(each) != people:
        raise UserError(f"oracle.accuracy: must be a number or a list of oracle.people={people}, lists {len(each)}")
    right = torch.tensor(each, dtype=torch.float64)
    chances = torch.zeros(people, classes + 1, classes + 1, dtype=torch.float64)
    chances[:, :classes, :classes] = ((1 - right) / max(classes - 1, 1))[:, None, None]
    chances[:, classes, :classes] = ((1 - right) / classes)[:, None]
    chances.diagonal(dim1=1, dim2=2)[:] = right[:, None]
    return chances


def confused_people(confusion: Matrix | list[Matrix], people: int, classes: int) -> Tensor:
    """Returns the chances [people, classes + 1, classes + 1] of given confusion matrices; no class is always seen."""
    try:
        given = torch.tensor(confusion, dtype=torch.float64)
    except ValueError:  # rows of different lengths
        given = torch.zeros(0)
    if given.dim() == 2:
        given = given.expand(people, *given.shape)
    if given.shape != (people, classes, classes):
        raise UserError(
            f"oracle.confusion: must be a matrix of {classes} x {classes} classes, or oracle.people={people} of them"
        )
    if bool(((given.sum(dim=2) - 1).abs() > 1e-6).any()):
        raise UserError("oracle.confusion: each row (a true class) must sum to 1")
    chances = torch.zeros(people, classes + 1, classes + 1, dtype=torch.float64)
    chances[:, :classes, :classes] = given
    chances[:, classes, classes] = 1.0
    return chances
