"""An oracle that serves a page on which people label while the run waits, and goes on when a batch is complete."""

import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field

from sslpl.data.embeddings import Embeddings
from sslpl.messages import print_notice
from sslpl.oracle.aggregation import Aggregate, checked_max_answers
from sslpl.oracle.answer_log import LOG, AnswerLog
from sslpl.oracle.label_request import PICTURES, image_names
from sslpl.oracle.labeling import Labeling, Record
from sslpl.oracle.live_labels import LOCAL_HOSTS, WAIT_SECONDS, label_answer, prepare_batch
from sslpl.oracle.oracles import hidden_labels
from sslpl.types import Count, Dataset, LabelAnswer, LabelRequest, RunProgress, UserError

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

        log = AnswerLog(folder / "labeling" / LOG, by_person=self.annotators > 1)
        link_file = folder / "labeling" / LINK
        listener, token = self._listen(labeling_server.bound_socket), read_token(link_file)
        labeling = self.labeling = Labeling(
            log,
            image_names(dataset, torch.arange(len(dataset.train))),
            dataset.class_names,
            self.new_classes,
            annotators=self.annotators,
            max_answers=checked_max_answers(self.annotators, self.max_answers),
        )
        end = ""

        def status() -> Record:
            return progress()._asdict() | {"name": folder.name, "guesses": self.guesses, "end": end}

        hosts = None if self.share else {*LOCAL_HOSTS}
        file_of = partial(image_file, dataset, folder, labeling)
        app = labeling_server.labeling_app(labeling, file_of, status, token, hosts)
        link = f"http://{link_host(self.host)}:{listener.getsockname()[1]}/?token={token}"
        write_secret(link_file, link + "\n")
        self._warn_of_other_hosts()
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

    def _warn_of_other_hosts(self) -> None:
        if self.host not in LOCAL_HOSTS:
            print_notice(
                f"oracle.host={self.host}: everybody who reaches this computer and has the link can see the images and "
                "label them; the connection is not encrypted"
            )

    def _listen(self, bind: Callable[[str, int], socket.socket]) -> socket.socket:
        try:
            return bind(self.host, self.port)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(
                f"oracle.port={self.port}: cannot be used on oracle.host={self.host} ({reason}); choose another "
                "port, or 0 for any free one"
            ) from error


def image_file(dataset: Dataset, folder: Path, labeling: Labeling, index: int) -> Path:
    """Returns the file of an image that was asked for: its own, or the picture of it that the run has written."""
    if dataset.files:
        return Path(dataset.files[index])
    return folder / "labeling" / f"cycle{labeling.cycle_of(index)}" / PICTURES / labeling.names[index]


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
