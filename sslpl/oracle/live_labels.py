"""What the oracles share whose people label while the run waits: batches to open, and answers that become labels."""

from collections.abc import Sequence
from datetime import UTC, datetime

import torch

from sslpl.oracle.aggregation import Aggregate, annotations_of, consensus
from sslpl.oracle.answer_log import LOG, Answer
from sslpl.oracle.label_request import PICTURES, batch_folder, image_names, top_predictions, write_pictures
from sslpl.oracle.labeling import Batch
from sslpl.types import REJECTED, UNLABELED, EarlierLabels, LabelAnswer, LabelRequest

LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")
WAIT_SECONDS = 0.25  # after which a waiting run looks for signals


def prepare_batch(request: LabelRequest) -> Batch:
    """Returns the batch of a request, with the model's guesses; writes its pictures if the images have no files."""
    if not request.dataset.files:
        names = image_names(request.dataset, request.selection.index)
        write_pictures(request, batch_folder(request) / PICTURES, names)
    index = tuple(request.selection.index.tolist())
    return Batch(request.cycle, index, tuple(top_predictions(request)), request.class_names)


def label_answer(
    request: LabelRequest, names: Sequence[str], answers: Sequence[Answer], how: Aggregate | None = None
) -> LabelAnswer:
    """Returns the labels of a request and those of earlier ones, and the classes with the new ones that have images.

    `how` aggregates the answers about each image; None if there is one about each.
    """
    classes = list(request.class_names)
    classes += dict.fromkeys(answer.label for answer in answers if answer.label and answer.label not in classes)
    label_of = {name: label for label, name in enumerate(classes)} | {"": REJECTED}
    index_of = {name: index for index, name in enumerate(names)}
    known = [answer for answer in answers if answer.path in index_of]
    labels, annotations = {index_of[answer.path]: label_of[answer.label] for answer in known}, None
    if how is not None and known:
        people = list(dict.fromkeys(answer.person.casefold() for answer in known))
        given = [(index_of[a.path], people.index(a.person.casefold()), label_of[a.label]) for a in known]
        annotations = annotations_of(given, people)
        index, label = consensus(annotations, len(classes), how)
        labels = dict(zip(index.tolist(), label.tolist(), strict=True))
    batch = torch.tensor([labels.pop(index, UNLABELED) for index in request.selection.index.tolist()])
    earlier = EarlierLabels(
        torch.tensor([*labels], dtype=torch.int64), torch.tensor([*labels.values()], dtype=torch.int64)
    )
    now = datetime.now(UTC).isoformat(timespec="seconds")
    seconds = sum(answer.seconds for answer in answers if answer.seconds is not None)
    return LabelAnswer(batch, tuple(classes), f"labeling/{LOG}", now, earlier, annotations, seconds)
