"""Label Studio's files: tasks to import, the interface that shows them, and the exports JSON and JSON-MIN.

Written from its documentation: labelstud.io/guide/tasks (basic JSON format), /guide/predictions, /guide/storage_local,
/guide/task_format (JSON), /guide/export (JSON-MIN), /tags/choices. Tasks carry `path` among their data, which every
export gives back.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit
from xml.etree import ElementTree

from sslpl.oracle.label_table import SHOWN, LabelRow
from sslpl.types import InvalidLabels

CONTROL, IMAGE = "label", "image"  # names of the interface's parts
Annotation = tuple[str, str, str]  # who, when, which class (empty: none)


def tasks(paths: Sequence[str], files: Sequence[str], guesses: Sequence[tuple[str, float] | None]) -> str:
    """Tasks to import: files below the document root of the local storage, the model's guesses with probabilities."""
    found = []
    for number, (path, file, guess) in enumerate(zip(paths, files, guesses, strict=True), start=1):
        data = {IMAGE: f"/data/local-files/?d={quote(file)}", "path": path}
        predictions = [prediction(number, *guess)] if guess is not None else []
        found.append({"id": number, "data": data, "predictions": predictions})
    return json.dumps(found, indent=1, ensure_ascii=False) + "\n"


def prediction(number: int, name: str, probability: float) -> dict[str, Any]:
    """A guess as Label Studio shows it before anybody has labeled."""
    choice = {
        "id": f"guess{number}",
        "from_name": CONTROL,
        "to_name": IMAGE,
        "type": "choices",
        "value": {"choices": [name]},
    }
    return {"model_version": "sslpl", "score": round(probability, 4), "result": [choice]}


def interface(class_names: Sequence[str]) -> str:
    """The labeling interface: an image, and one of the classes."""
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Image", name=IMAGE, value=f"${IMAGE}")
    choices = ElementTree.SubElement(view, "Choices", name=CONTROL, toName=IMAGE, choice="single", showInline="true")
    for name in class_names:
        ElementTree.SubElement(choices, "Choice", value=name)
    ElementTree.indent(view)
    return ElementTree.tostring(view, encoding="unicode") + "\n"


def export_rows(path: Path) -> list[LabelRow]:
    """What people said in an export, JSON or JSON-MIN; of one annotator the last word, skipped tasks say nothing.

    LabelsRefused for a file that is no export, an annotation of several classes, and annotators who disagree.
    """
    try:
        found = json.loads(path.read_text("utf-8-sig"))
    except (OSError, ValueError) as error:
        raise InvalidLabels(f"{path}: cannot be read as JSON ({error}): export it again") from error
    if not isinstance(found, list) or not all(isinstance(task, dict) for task in found):
        raise InvalidLabels(f"{path}: must be an export of Label Studio, JSON or JSON-MIN: a list of tasks")
    by_path: dict[str, tuple[str, list[Annotation]]] = {}
    problems = []
    for number, task in enumerate(found, start=1):
        place = f"task {task.get('id', number)}"
        try:
            name, said = task_path(task), list(annotations(task))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            problems.append(f"{path}, {place}: {error.args[0] if type(error) is ValueError else NO_TASK}")
            continue
        by_path.setdefault(name, (place, []))[1].extend(said)  # JSON-MIN repeats a task for each annotation
    rows = []
    for name, (place, said) in by_path.items():
        last = {who: label for who, when, label in sorted(said, key=lambda one: one[1])}
        labels = sorted({label for label in last.values() if label})
        if len(labels) > 1:
            problems.append(f"{path}, {place}: {name!r} has {len(labels)} labels by different people: {labels}")
        rows.append(LabelRow(place, name, labels[0] if labels else ""))
    if problems:
        raise InvalidLabels(*problems[:SHOWN])
    return rows


NO_TASK = "must be a task with `data` and `annotations` (JSON) or with `image` (JSON-MIN), of the tasks to import"


def task_path(task: Mapping[str, Any]) -> str:
    """The path of a task's image, as it was asked for."""
    data = task["data"] if "annotations" in task else task
    if isinstance(path := data.get("path"), str):
        return path.strip()
    address = urlsplit(data[IMAGE])
    return str(parse_qs(address.query).get("d", [address.path])[0])


def annotations(task: Mapping[str, Any]) -> Iterator[Annotation]:
    """Who said what when, of a task in either format."""
    if "annotations" not in task:
        yield annotator(task.get("annotator")), submitted_at(task), single_class(chosen_classes(task.get(CONTROL)))
        return
    for annotation in task["annotations"]:
        if annotation.get("was_cancelled"):
            continue
        answers = [part for part in annotation["result"] if part.get("type") == "choices"]
        ours = [part["value"] for part in answers if part.get("from_name", CONTROL) == CONTROL]
        if answers and not ours:
            names = ", ".join(sorted({part["from_name"] for part in answers}))
            raise ValueError(f"must be answered in the control {CONTROL} of label_studio.xml, not in {names}")
        yield annotator(annotation.get("completed_by")), submitted_at(annotation), single_class(chosen_classes(ours))


def chosen_classes(value: Any) -> list[Any]:
    """What was chosen: one choice is text in JSON-MIN, several are a mapping, several results a list of either."""
    if isinstance(value, list):
        return [choice for part in value for choice in chosen_classes(part)]
    return list(value["choices"]) if isinstance(value, dict) else [value] if value else []


def single_class(choices: Sequence[str]) -> str:
    """The one class of an annotation; empty for an empty one, ValueError for several."""
    if len(choices) > 1:
        raise ValueError(f"must have one class, has {len(choices)}: {', '.join(map(str, choices))}")
    return str(choices[0]).strip() if choices else ""


def annotator(person: Any) -> str:
    """An annotator, told by number or by a mapping."""
    return str(person.get("id", person) if isinstance(person, dict) else person)


def submitted_at(annotation: Mapping[str, Any]) -> str:
    """When an annotation was last submitted, as Label Studio writes it: text that sorts by time."""
    return str(annotation.get("updated_at") or annotation.get("created_at") or "")
