"""An oracle that asks people in a running Label Studio while the run waits, and goes on when a batch is complete."""

import json
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote, urlsplit

import torch

from sslpl.data.embeddings import Embeddings
from sslpl.files import write_json
from sslpl.messages import print_notice
from sslpl.oracle.answer_log import LOG, AnswerLog
from sslpl.oracle.label_request import image_names
from sslpl.oracle.labeling import Labeling
from sslpl.oracle.live_labels import LOCAL_HOSTS, WAIT_SECONDS, label_answer
from sslpl.oracle.oracles import hidden_labels
from sslpl.types import Count, Dataset, LabelAnswer, LabelRequest, RunProgress, UserError

if TYPE_CHECKING:
    from sslpl.oracle.label_studio_client import LabelStudioError
    from sslpl.oracle.label_studio_project import Project
    from sslpl.oracle.label_studio_session import Session

TOKEN = "LABEL_STUDIO_API_KEY"  # environment variable; the token is written nowhere
PROJECT = "label_studio.json"  # in the folder `labeling` of the run: its name in the tasks, and its project


@dataclass
class LabelStudioOracle:
    """Asks people in a project of a running Label Studio."""

    url: str = "http://127.0.0.1:8080"
    project: Count | None = None  # number of an existing project; null makes one
    images: Literal["upload", "local_files"] = "upload"  # local_files: the server reads them itself
    guesses: bool = True  # shows the model's guesses
    new_classes: bool = True  # people may add classes
    session: "Session | None" = field(default=None, init=False, repr=False)  # while the run goes on

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        unexpected = parts.query or parts.fragment or "@" in parts.netloc
        if parts.scheme not in ("http", "https") or not parts.hostname or unexpected:
            raise UserError(f"oracle.url={self.url}: must be the address of a Label Studio, as http://127.0.0.1:8080")

    def prepare(self, dataset: Dataset) -> Dataset:
        """Returns the dataset; if every image is labeled, the pool's labels are removed to rehearse the workflow."""
        try:
            import sslpl.oracle.label_studio_client  # noqa: F401
        except ImportError as error:
            raise UserError("oracle=label_studio: needs a package; pip install 'sslpl[label_studio]'") from error
        if isinstance(dataset.train, Embeddings):
            raise UserError("oracle=label_studio: the dataset must have images to show; choose oracle=file")
        if self.images == "local_files" and not dataset.paths:
            raise UserError("oracle.images=local_files: must be upload, because the dataset has no image files")
        return hidden_labels(dataset)

    @contextmanager
    def serve(
        self,
        dataset: Dataset,
        folder: Path,
        announce: Callable[[str], None],
        progress: Callable[[], RunProgress],  # noqa: ARG002
    ) -> Iterator[None]:
        """Connects to the server while the context is open; UserError if it cannot be used as the options say."""
        from sslpl.oracle.label_studio_answers import Receiver
        from sslpl.oracle.label_studio_client import LabelStudioError
        from sslpl.oracle.label_studio_session import Session

        try:
            project = self._project(folder, dataset.class_names, announce)
        except LabelStudioError as error:
            raise self._user_error(error) from error
        log = AnswerLog(folder / "labeling" / LOG)
        names = image_names(dataset, torch.arange(len(dataset.train)))
        labeling = Labeling(log, names, dataset.class_names, self.new_classes)
        receiver = Receiver(labeling, self.guesses, announce)
        with closing(log):
            self.session = Session(project, labeling, receiver, self._address, announce)
            try:
                yield
            finally:
                self.session = None

    def __call__(self, request: LabelRequest) -> LabelAnswer | None:
        """Returns the labels once every image of the batch has an answer; None after a moment if some have none."""
        session = self.session
        assert session is not None
        if not session.advance(request):
            time.sleep(WAIT_SECONDS)
            return None
        return label_answer(request, session.labeling.names, session.labeling.close_batch())

    def _project(self, folder: Path, class_names: tuple[str, ...], announce: Callable[[str], None]) -> "Project":
        """Returns the run's project, ready for its classes; makes it if there is none."""
        from sslpl.oracle.label_studio_client import Client
        from sslpl.oracle.label_studio_project import find_project, make_project

        if urlsplit(self.url).scheme == "http" and urlsplit(self.url).hostname not in LOCAL_HOSTS:
            print_notice(
                f"oracle.url={self.url}: the connection is not encrypted; others may read the token and images"
            )
        client, file = Client(self.url, api_token()), folder / "labeling" / PROJECT
        client.get("api/current-user/whoami")
        run, made = read_project(file)
        write_json(file, {"run": run, "project": made})  # before the project exists, so that it is found after a kill
        project = find_project(client, self.project, made, run)
        if project is None:
            project = make_project(client, f"sslpl {folder.name}", run, self.guesses)
        project.prepare(class_names, self.new_classes)
        write_json(file, {"run": run, "project": project.number})
        announce(f"label at {project.link}")
        return project

    def _address(self, path: str) -> str | None:
        """Returns where the server reads an image itself; None if it is uploaded."""
        if self.images == "upload":
            return None
        return f"{urlsplit(self.url).path.rstrip('/')}/data/local-files/?d={quote(path)}"

    def _user_error(self, error: "LabelStudioError") -> UserError:
        if error.code is None:
            return UserError(f"oracle.url={self.url}: {error}; start it (label-studio start) or correct the url")
        if error.code in (401, 403):
            return UserError(f"{TOKEN}: must be a token of an account at oracle.url={self.url}; it says: {error}")
        if error.code == 404 and self.project is not None and f"/projects/{self.project}" in str(error):
            return UserError(
                f"oracle.project={self.project}: must be the number of a project at {self.url}; null makes one"
            )
        return UserError(f"oracle.url={self.url}: must be the address of a Label Studio; {error}")


def api_token() -> str:
    """Returns the token of the environment; UserError if there is none."""
    token = os.environ.get(TOKEN, "").strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise UserError(
            f"{TOKEN}: must be set in the environment to a token of Label Studio (Account & Settings), "
            f"{'is not a token' if token else 'is not set'}"
        )
    return token


def read_project(file: Path) -> tuple[str, int | None]:
    """Returns a run's name in the data of its tasks and the number of its project, if it has one; else a new name."""
    try:
        content = json.loads(file.read_text())
        return str(content["run"]), content["project"]
    except FileNotFoundError:
        return secrets.token_hex(4), None
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(f"{file}: cannot be read; restore it, or remove it to import the tasks again") from error
