"""The log of the labeling page: every answer of every person, on the disk before it counts."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from sslpl.files import sync_folder
from sslpl.types import UserError

LOG = "answers.jsonl"  # in the folder `labeling` of the run


class Answer(NamedTuple):
    """One line of the log."""

    id: str  # drawn by the page: an answer that is sent again is the same answer
    time: str  # UTC
    person: str
    action: str  # label, reject, skip, undo; class: a new class; finish: the batch ends without its skipped images
    cycle: int  # the first cycle that trains on the batch in which it was given
    path: str = ""  # of the image
    label: str = ""  # class name
    unsure: bool = False
    note: str = ""
    seconds: float | None = None  # from the sight of the image to the answer
    guess: str = ""  # class that the model found most likely
    confidence: float | None = None  # its probability
    guess_shown: bool = False
    replaces: str = ""  # id of the previous answer about the image


class AnswerLog:
    """The append-only log of answers, and what holds for each image after all of them.

    With `by_person` every person has an answer of their own about an image, and otherwise the last one holds.
    """

    def __init__(self, path: Path, by_person: bool = False) -> None:
        self.path, self.by_person = path, by_person
        self.ids: set[str] = set()
        self.new_classes: list[str] = []  # in the order of their addition
        self.finished: set[int] = set()  # cycles whose batches end without their skipped images
        self._last_id: dict[str, dict[str, str]] = {}  # by path and person
        self._history: dict[str, dict[str, list[Answer]]] = {}  # by path and person, without undone answers
        path.parent.mkdir(parents=True, exist_ok=True)
        answers, size = read_answers(path)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
        os.ftruncate(self._file, size)
        self._size = size
        sync_folder(path.parent)
        for answer in answers:
            self._apply(answer)

    def append(self, answers: Sequence[Answer]) -> None:
        """Writes answers to the disk, then counts them; after an OSError the log is as before."""
        data = "".join(json.dumps(answer._asdict()) + "\n" for answer in answers).encode()
        try:
            written = os.pwrite(self._file, data, self._size)
            while written < len(data):
                written += os.pwrite(self._file, data[written:], self._size + written)
            os.fsync(self._file)
        except OSError:
            os.ftruncate(self._file, self._size)
            raise
        self._size += len(data)
        for answer in answers:
            self._apply(answer)

    def is_known(self, path: str) -> bool:
        """True if a line is about an image."""
        return path in self._last_id

    def answers(self, path: str) -> list[Answer]:
        """Returns the answers that hold for an image: at most one, or one of each person."""
        return [history[-1] for history in self._history.get(path, {}).values() if history]

    def current(self, path: str, person: str = "") -> Answer | None:
        """Returns the answer about an image that the next one, of a person, replaces; None if there is none."""
        history = self._history.get(path, {}).get(self._owner(person))
        return history[-1] if history else None

    def last_id(self, path: str, person: str = "") -> str:
        """Returns the id of the line about an image that the next one of a person replaces; empty if there is none."""
        return self._last_id.get(path, {}).get(self._owner(person), "")

    def all_current(self) -> Iterator[Answer]:
        """Yields the answers that hold, in the order of the images' first answers."""
        return (answer for path in self._history for answer in self.answers(path))

    def close(self) -> None:
        """Closes the file."""
        os.close(self._file)

    def _apply(self, answer: Answer) -> None:
        self.ids.add(answer.id)
        if answer.action == "class":
            self.new_classes.append(answer.label)
        elif answer.action == "finish":
            self.finished.add(answer.cycle)
        else:
            owner = self._owner(answer.person)
            history = self._history.setdefault(answer.path, {}).setdefault(owner, [])
            if answer.action != "undo":
                history.append(answer)
            elif history:
                history.pop()
            self._last_id.setdefault(answer.path, {})[owner] = answer.id

    def _owner(self, person: str) -> str:
        return person.strip().casefold() if self.by_person else ""


def read_answers(path: Path) -> tuple[list[Answer], int]:
    """Reads a log; returns its answers and its size in bytes without a line that was not written completely.

    Such a line was never acknowledged to the person, whose page sends it again. UserError for any other damage.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return [], 0
    size = data.rfind(b"\n") + 1
    answers = []
    for number, line in enumerate(data[:size].split(b"\n")[:-1], start=1):
        try:
            answers.append(Answer(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{path}, line {number}: is no answer of the labeling page; correct or remove the line"
            ) from error
    return answers, size
