"""The exchange of a run with its project in Label Studio, in steps that may fail at any point and are done again."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sslpl.oracle.label_request import PICTURES, batch_folder
from sslpl.oracle.label_studio_answers import Receiver
from sslpl.oracle.label_studio_client import LabelStudioError
from sslpl.oracle.label_studio_project import NewTask, Picture, Project
from sslpl.oracle.labeling import ANSWERED, Batch, Labeling
from sslpl.oracle.live_labels import prepare_batch
from sslpl.oracle.page_pictures import picture_file
from sslpl.types import LabelRequest

POLL_SECONDS = 2.0  # between two looks for answers; longer if the server takes longer to list them
RETRY_SECONDS = 5.0  # after an error
OVERLAP = timedelta(minutes=1)  # by which a look for changed tasks reaches back behind the last one


class Session:
    """A run and its project: tasks there, answers here."""

    def __init__(
        self,
        project: Project,
        labeling: Labeling,
        receiver: Receiver,
        address: Callable[[str], str | None],
        announce: Callable[[str], None],
    ) -> None:
        self.project, self.labeling = project, labeling
        self._receiver, self._address, self._announce = receiver, address, announce
        self._batch: Batch | None = None
        self._next, self._trouble = 0.0, ""  # when the next step is due; the last error, until the server answers
        self._seen_until = ""  # time of the last change of a task that was read, on the server

    def advance(self, request: LabelRequest) -> bool:
        """Takes the next step if it is due; returns True when the batch of the request is complete.

        Errors of the server are reported and waited out.
        """
        if time.monotonic() < self._next:
            return False
        try:
            start = time.monotonic()
            complete = self._step(request)
        except LabelStudioError as error:
            self._next = time.monotonic() + RETRY_SECONDS
            if str(error) != self._trouble:
                self._trouble = str(error)
                self._announce(f"Label Studio: {error}; trying again every {RETRY_SECONDS:.0f} s")
            return False
        if self._trouble:
            self._trouble = ""
            self._announce("Label Studio answers again")
        now = time.monotonic()
        is_open = self._asks_for(request)
        self._next = now + max(POLL_SECONDS, now - start) if is_open else now
        return complete

    def _asks_for(self, request: LabelRequest) -> bool:
        return self.labeling.asks_for(request.cycle, request.selection.index.tolist())

    def _step(self, request: LabelRequest) -> bool:
        batch = self.project.batch(request.cycle)
        if not self._asks_for(request):
            self._open(request, batch)
            return False
        self._receiver.receive(self.project.tasks(batch), self._annotation_exists)
        self._receiver.finish(f"finish-{batch.replace('/', '-')}")
        if self.labeling.wait(0):
            self._receive_changes()
        return self.labeling.wait(0)

    def _open(self, request: LabelRequest, name: str) -> None:
        """Imports a part of the batch; once all of it is there, starts to ask for it."""
        index = request.selection.index.tolist()
        if self._batch is None or self._batch[:2] != (request.cycle, tuple(index)):
            self._batch = prepare_batch(request)
        self.project.prepare(request.class_names, self.labeling.new_classes)
        tasks = self.project.import_some(name, self._tasks_of(self._batch), lambda i: self._picture(request, i))
        if tasks is None:
            return
        self.project.remove_superfluous(tasks, {self.labeling.names[i] for i in index})
        self.labeling.open_batch(self._batch)
        self._announce(f"{len(index):,} images to label at {self.project.link}?labeling=1")

    def _tasks_of(self, batch: Batch) -> list[NewTask]:
        """Returns the images of a batch that have no answer yet."""
        tasks = []
        for index, guess in zip(batch.index, batch.guesses, strict=True):
            path = self.labeling.names[index]
            answer = self.labeling.log.current(path)
            if answer is None or answer.action not in ANSWERED:
                tasks.append(NewTask(index, path, guess, self._address(path)))
        return tasks

    def _picture(self, request: LabelRequest, index: int) -> Picture:
        if request.dataset.files:
            return Picture(*picture_file(Path(request.dataset.files[index])))
        return Picture((batch_folder(request) / PICTURES / self.labeling.names[index]).read_bytes(), "image/png")

    def _receive_changes(self) -> None:
        """Reads again what people have answered about earlier batches."""
        tasks = self.project.changed_tasks(self._seen_until)
        self._receiver.receive(tasks, self._annotation_exists)
        if tasks:
            latest = max(datetime.fromisoformat(task["updated_at"]) for task in tasks)
            self._seen_until = (latest - OVERLAP).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")

    def _annotation_exists(self, number: int) -> bool:
        return self.project.client.exists(f"api/annotations/{number}/")
