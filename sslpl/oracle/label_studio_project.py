"""The project of a run in a running Label Studio: its labeling interface, and a task for each image of a batch.

A task has `path` and `batch` in its data, by which it is found again: nothing is imported twice, whatever was killed.
"""

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from xml.etree import ElementTree

from sslpl.oracle.label_request import Prediction
from sslpl.oracle.label_studio import CONTROL, IMAGE, interface, prediction
from sslpl.oracle.label_studio_client import Client, LabelStudioError, Record
from sslpl.types import UserError

REJECT, NEW_CLASS = "reject", "new_class"  # further tag names in the interface
REJECT_CHOICE = "not an image of any class"
MODEL = "sslpl"  # name of the model whose predictions the page shows first
MAX_TITLE = 50  # characters
UPLOADS = 20  # files of a request
TASKS = 200  # tasks of a request
NEEDED = f'<Image name="{IMAGE}" value="${IMAGE}"/> and <Choices name="{CONTROL}" toName="{IMAGE}">'


class Picture(NamedTuple):
    """An image as a file to upload."""

    content: bytes
    media_type: str


class NewTask(NamedTuple):
    """An image to import."""

    index: int  # type: ignore[assignment]  # position in the pool
    path: str
    prediction: Prediction
    address: str | None  # where the server finds the image itself; None: it is uploaded


class Project:
    """A project, and the part of it that belongs to a run."""

    def __init__(self, client: Client, number: int, run: str) -> None:
        self.client, self.number, self.run = client, number, run

    @property
    def link(self) -> str:
        """The address of the project's page."""
        return f"{self.client.url}/projects/{self.number}/data"

    def batch(self, cycle: int) -> str:
        """Returns the name of a batch in the data of its tasks."""
        return f"{self.run}/cycle{cycle}"

    def prepare(self, class_names: Sequence[str], new_classes: bool) -> None:
        """Gives the labeling interface the classes that it lacks; LabelStudioError if people have made it unusable."""
        config = str(self.client.get(f"api/projects/{self.number}")["label_config"])
        if not is_empty(config) and not is_usable(config):
            raise LabelStudioError(f"{self.link}: its labeling interface has lost what a run needs: {NEEDED}")
        wanted = extended_interface(config, class_names, new_classes)
        if wanted != config:
            self.client.patch(f"api/projects/{self.number}", {"label_config": wanted})

    def tasks(self, batch: str) -> list[Record]:
        """Returns the tasks of a batch."""
        return [*self.client.tasks(task_query(("data.batch", "equal", "String", batch)), self.number)]

    def changed_tasks(self, since: str = "") -> list[Record]:
        """Returns the run's tasks of all batches, or those that have changed since a time on the server."""
        changed = [("updated_at", "greater", "Datetime", since)] if since else []
        return [
            *self.client.tasks(task_query(("data.batch", "contains", "String", f"{self.run}/"), *changed), self.number)
        ]

    def import_some(
        self, batch: str, wanted: Sequence[NewTask], picture: Callable[[int], Picture]
    ) -> list[Record] | None:
        """Imports some of the images that have no task yet; returns the batch's tasks when all of them have one."""
        tasks = self.tasks(batch)
        present = {task["data"]["path"] for task in tasks}
        missing = (task for task in wanted if task.path not in present)
        some = [*islice(missing, UPLOADS if any(task.address is None for task in wanted) else TASKS)]
        if not some:
            return tasks
        addresses = self._uploaded([task.index for task in some if task.address is None], picture)
        new = [imported_task(task, batch, task.address or addresses[task.index]) for task in some]
        self.client.post(f"api/projects/{self.number}/import", new)
        return None

    def remove_superfluous(self, tasks: Iterable[Record], paths: Collection[str]) -> None:
        """Deletes tasks of a batch that nobody has answered if their image has another one or is not asked for.

        There is a second one if an import was completed by the server after the run had given it up, and one that is
        not asked for if a run that was killed selected other images than it does now.
        """
        for number in superfluous(tasks, paths):
            self.client.delete(f"api/tasks/{number}/")

    def _uploaded(self, index: Iterable[int], picture: Callable[[int], Picture]) -> dict[int, str]:
        """Returns the addresses of images on the server, to which those that it does not have yet are uploaded."""
        names = {i: f"{self.run}-{i:06d}" for i in index}
        found = self._uploads() if names else {}
        missing = {}
        for i in (i for i, name in names.items() if name not in found):
            content, media_type = picture(i)
            missing[names[i]] = (f"{names[i]}.{media_type.rpartition('/')[2]}", content, media_type)
        if missing:
            self.client.upload(f"api/projects/{self.number}/import?commit_to_project=false", missing)
            found = self._uploads()
        if not found.keys() >= {*names.values()}:
            raise LabelStudioError(f"{self.link}: the server does not list the uploaded images yet")
        return {i: found[name] for i, name in names.items()}

    def _uploads(self) -> dict[str, str]:
        """Returns the addresses of the files that were uploaded to the project, by name without a suffix."""
        root = urlsplit(self.client.url).path
        files = [str(each["file"]) for each in self.client.get(f"api/projects/{self.number}/file-uploads", all="true")]
        # The server puts eight random characters and a hyphen before the name.
        return {PurePosixPath(file).stem.partition("-")[2]: f"{root}/data/{file}" for file in files}


def find_project(client: Client, number: int | None, made: int | None, run: str) -> Project | None:
    """Returns the project with a number, else the one that was made for the run; None if it has to be made.

    UserError if the project with the number is used for something else; LabelStudioError if there is none.
    """
    if number is not None:
        config = str(client.get(f"api/projects/{number}")["label_config"])
        if not is_empty(config) and not is_usable(config):
            raise UserError(
                f"oracle.project={number}: must be a project without a labeling interface, or one whose interface has "
                f"{NEEDED}; null makes one"
            )
        return Project(client, number, run)
    if made is not None and client.exists(f"api/projects/{made}"):
        return Project(client, made, run)
    found = client.get("api/projects", title=run)["results"]
    return Project(client, found[0]["id"], run) if found else None


def make_project(client: Client, name: str, run: str, guesses: bool) -> Project:
    """Makes a project for a run, without its labeling interface; `guesses` shows the model's predictions."""
    settings = {
        "title": f"{name[: MAX_TITLE - len(run) - 1]} {run}",
        "show_collab_predictions": guesses,
        "model_version": MODEL,
        "enable_empty_annotation": False,
    }
    return Project(client, client.post("api/projects", settings)["id"], run)


def task_query(*conditions: tuple[str, str, str, str]) -> str:
    """Returns a query of the data manager: column, operator, type and value of each condition."""
    keys = ("filter", "operator", "type", "value")
    items = [dict(zip(keys, (f"filter:tasks:{column}", *rest), strict=True)) for column, *rest in conditions]
    return json.dumps({"filters": {"conjunction": "and", "items": items}, "ordering": ["tasks:id"]})


def imported_task(task: NewTask, batch: str, address: str) -> Record:
    """Returns a task in the format of an import."""
    data = {IMAGE: address, "path": task.path, "batch": batch}
    guesses = [] if task.prediction is None else [prediction(task.index, *task.prediction)]
    return {"data": data, "predictions": guesses}


def superfluous(tasks: Iterable[Mapping[str, Any]], paths: Collection[str]) -> list[int]:
    """Returns the tasks without an annotation whose image is not among the paths or has another task, by number."""
    seen: set[str] = set()
    found = []
    for task in sorted(tasks, key=lambda task: (not task["annotations"], task["id"])):
        path = task["data"]["path"]
        if not task["annotations"] and (path not in paths or path in seen):
            found.append(int(task["id"]))
        seen.add(path)
    return found


def is_empty(config: str) -> bool:
    """True if a labeling interface shows nothing, as in a new project."""
    return not config.strip() or ElementTree.fromstring(config).find("*") is None


def is_usable(config: str) -> bool:
    """True if a labeling interface shows the image and asks for its class under the names that the tasks use."""
    view = ElementTree.fromstring(config)
    image, choices = view.find(f".//Image[@name='{IMAGE}']"), view.find(f".//Choices[@name='{CONTROL}']")
    if image is None or choices is None:
        return False
    return (image.get("value"), choices.get("toName")) == (f"${IMAGE}", IMAGE)


def choices_of(config: str) -> list[str]:
    """Returns the classes that a labeling interface offers."""
    path = f".//Choices[@name='{CONTROL}']//Choice"
    return [choice.get("value", "") for choice in ElementTree.fromstring(config).iterfind(path)]


def live_interface(class_names: Sequence[str], new_classes: bool) -> str:
    """Returns the labeling interface of a project: the classes, a box for images of none, a field for a new class."""
    view = ElementTree.fromstring(interface(class_names))
    reject = ElementTree.SubElement(view, "Choices", name=REJECT, toName=IMAGE, choice="multiple")
    ElementTree.SubElement(reject, "Choice", value=REJECT_CHOICE)
    if new_classes:
        placeholder = "a class that is missing above"
        ElementTree.SubElement(
            view, "TextArea", name=NEW_CLASS, toName=IMAGE, maxSubmissions="1", placeholder=placeholder
        )
    ElementTree.indent(view)
    return ElementTree.tostring(view, encoding="unicode") + "\n"


def extended_interface(config: str, class_names: Sequence[str], new_classes: bool) -> str:
    """Returns a labeling interface with the classes that it lacks, unchanged if it lacks none."""
    if is_empty(config):
        return live_interface(class_names, new_classes)
    missing = [name for name in class_names if name not in choices_of(config)]
    if not missing:
        return config
    view = ElementTree.fromstring(config)
    choices = view.find(f".//Choices[@name='{CONTROL}']")
    assert choices is not None
    for name in missing:
        ElementTree.SubElement(choices, "Choice", value=name)
    return ElementTree.tostring(view, encoding="unicode")
