"""An oracle that serves a page on which people label while the run waits, and goes on when a batch is complete."""

import secrets
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field

from sslpl.data.embeddings import Embeddings
from sslpl.messages import print_notice
from sslpl.oracle.aggregation import Aggregate, annotations_of, checked_max_answers, consensus
from sslpl.oracle.answer_log import LOG, Answer, AnswerLog
from sslpl.oracle.label_request import PICTURES, batch_folder, image_names, top_predictions, write_pictures
from sslpl.oracle.labeling import Batch, Labeling, Record
from sslpl.oracle.oracles import hidden_labels
from sslpl.types import (
    REJECTED,
    UNLABELED,
    Count,
    Dataset,
    EarlierLabels,
    LabelAnswer,
    LabelRequest,
    RunProgress,
    UserError,
)

LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")
WAIT_SECONDS = 0.25  # after which a waiting run looks for signals
FAREWELL_SECONDS = 3.0  # in which open pages learn that the run has ended
LINK = "link.txt"  # in the folder `labeling` of the run; a resumed run keeps its token
Port = Annotated[int, Field(strict=True, ge=0, le=65535)]


@dataclass
class BrowserOracle:
    """Asks people on a web page that the run serves."""

    guesses: bool = True  # shows the model's guess at first; each person may change it
    new_classes: bool = True  # people may add classes
    host: str = "127.0.0.1"
    port: Port = 8765  # 0: any free one
    share: bool = False  # allows other hosts than this computer
    annotators: Count = 1  # people who answer about each image, each without the others' answers
    max_answers: Count | None = None  # answers that a disputed image gets at most; None: one more
    aggregate: Aggregate = "majority"  # how several answers become a label
    labeling: Labeling | None = field(default=None, init=False, repr=False)  # while the page is served

    def __post_init__(self) -> None:
        checked_max_answers(self.annotators, self.max_answers)
        if self.host not in LOCAL_HOSTS and not self.share:
            raise UserError(
                f"oracle.host={self.host}: must be 127.0.0.1 unless oracle.share=true, which lets everybody who "
                "reaches this computer and has the link see the images and label them"
            )

    def prepare(self, dataset: Dataset) -> Dataset:
        """Returns the dataset; if every image is labeled, the pool's labels are removed to rehearse the workflow."""
        try:
            import sslpl.oracle.labeling_server  # noqa: F401
        except ImportError as error:
            raise UserError("oracle=browser: needs a package; pip install 'sslpl[label]'") from error
        if isinstance(dataset.train, Embeddings):
            raise UserError("oracle=browser: the dataset must have images to show; choose oracle=file for embeddings")
        return hidden_labels(dataset)

    @contextmanager
    def serve(
        self, dataset: Dataset, folder: Path, announce: Callable[[str], None], progress: Callable[[], RunProgress]
    ) -> Iterator[None]:
        """Serves the page while the context is open: during the whole run, its trainings included.

        UserError if the address cannot be used or the log of answers is damaged.
        """
        from sslpl.oracle import labeling_server

        names = image_names(dataset, torch.arange(len(dataset.train)))
        log = AnswerLog(folder / "labeling" / LOG, by_person=self.annotators > 1)
        link_file = folder / "labeling" / LINK
        listener, token = self._listen(labeling_server.bound_socket), read_token(link_file)
        labeling = self.labeling = Labeling(
            log,
            names,
            dataset.class_names,
            self.new_classes,
            annotators=self.annotators,
            max_answers=checked_max_answers(self.annotators, self.max_answers),
        )
        end = ""

        def status() -> Record:
            run = progress()._asdict()
            return run | {"name": folder.name, "guesses": self.guesses, "end": end}

        def picture(index: int) -> Path:
            if dataset.files:
                return Path(dataset.files[index])
            return folder / "labeling" / f"cycle{labeling.cycle_of(index)}" / PICTURES / names[index]

        hosts = None if self.share else {*LOCAL_HOSTS}
        app = labeling_server.labeling_app(labeling, picture, status, token, hosts)
        link = f"http://{link_host(self.host)}:{listener.getsockname()[1]}/?token={token}"
        write_secret(link_file, link + "\n")
        if self.host not in LOCAL_HOSTS:
            print_notice(
                f"oracle.host={self.host}: everybody who reaches this computer and has the link can see the images and "
                "label them; the connection is not encrypted"
            )
        announce(f"label at {link}")
        with closing(log), labeling_server.running(app, listener):
            try:
                yield
                end = "finished"
            finally:
                end = end or "stopped"
                say_farewell(labeling)
                self.labeling = None

    def __call__(self, request: LabelRequest) -> LabelAnswer | None:
        """Returns the labels once every image of the batch has an answer; None after a moment if some have none."""
        labeling = self.labeling
        assert labeling is not None
        if not labeling.asks_for(request.cycle, request.selection.index.tolist()):
            labeling.open_batch(prepare_batch(request))
        if not labeling.wait(WAIT_SECONDS):
            return None
        how = self.aggregate if self.annotators > 1 else None
        return label_answer(request, labeling.names, labeling.close_batch(), how)

    def _listen(self, bind: Callable[[str, int], socket.socket]) -> socket.socket:
        try:
            return bind(self.host, self.port)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(
                f"oracle.port={self.port}: cannot be used on oracle.host={self.host} ({reason}); choose another "
                "port, or 0 for any free one"
            ) from error


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


def say_farewell(labeling: Labeling) -> None:
    """Waits until the open pages have learned that the run has ended, at most FAREWELL_SECONDS."""
    start = time.monotonic()
    while time.monotonic() - start < FAREWELL_SECONDS:
        pages, informed = labeling.pages_seen(start)
        if pages == informed:
            return
        time.sleep(0.05)


def link_host(host: str) -> str:
    """Returns the host as it is written in a link: this computer's name if the server listens at all addresses."""
    name = socket.gethostname() if host in ("0.0.0.0", "::") else host
    return f"[{name}]" if ":" in name else name


def read_token(link_file: Path) -> str:
    """Returns the token of the link of an earlier process, so that open pages work again; a new one without it."""
    token = link_file.read_text().strip().partition("token=")[2] if link_file.exists() else ""
    return token or secrets.token_urlsafe(24)


def write_secret(path: Path, text: str) -> None:
    """Writes a file that only its owner can read."""
    path.touch(mode=0o600)
    path.write_text(text)
