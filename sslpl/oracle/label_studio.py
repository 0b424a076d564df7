"""Label Studio files: tasks to import, the labeling interface, and exports in JSON and JSON-MIN.

Source: its documentation, labelstud.io/guide/tasks (basic JSON format), /guide/predictions, /guide/storage_local,
/guide/task_format (JSON), /guide/export (JSON-MIN), /tags/choices. Tasks carry `path` among their data, which every
export returns.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit
from xml.etree import ElementTree

from sslpl.oracle.label_table import MAX_PROBLEMS, LabelRow
from sslpl.types import InvalidLabels

CONTROL, IMAGE = "label", "image"  # tag names in the interface
Annotation = tuple[str, str, str]  # annotator, time, class name (empty: none)


def tasks(paths: Sequence[str], files: Sequence[str], predictions: Sequence[tuple[str, float] | None]) -> str:
    """Formats tasks to import: files below the document root of the local storage, predictions with probabilities."""
    content = []
    for number, (path, file, predicted) in enumerate(zip(paths, files, predictions, strict=True), start=1):
        data = {IMAGE: f"/data/local-files/?d={quote(file)}", "path": path}
        shown = [prediction(number, *predicted)] if predicted is not None else []
        content.append({"id": number, "data": data, "predictions": shown})
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def prediction(number: int, name: str, probability: float) -> dict[str, Any]:
    """Returns a prediction in the format that Label Studio shows before annotation."""
    choice = {
        "id": f"guess{number}",
        "from_name": CONTROL,
        "to_name": IMAGE,
        "type": "choices",
        "value": {"choices": [name]},
    }
    return {"model_version": "sslpl", "score": round(probability, 4), "result": [choice]}


def interface(class_names: Sequence[str]) -> str:
    """Returns the labeling interface as XML: an image and a single choice of the classes."""
    view = ElementTree.Element("View")
    ElementTree.SubElement(view, "Image", name=IMAGE, value=f"${IMAGE}")
    choices = ElementTree.SubElement(view, "Choices", name=CONTROL, toName=IMAGE, choice="single", showInline="true")
    for name in class_names:
        ElementTree.SubElement(choices, "Choice", value=name)
    ElementTree.indent(view)
    return ElementTree.tostring(view, encoding="unicode") + "\n"


def export_rows(path: Path) -> list[LabelRow]:
    """Reads the labels in an export, JSON or JSON-MIN: the last one of each annotator; skipped tasks have no label.

    InvalidLabels if the file is no export, an annotation has several classes, or annotators disagree.
    """
    try:
        export = json.loads(path.read_text("utf-8-sig"))
    except (OSError, ValueError) as error:
        raise InvalidLabels(f"{path}: cannot be read as JSON ({error}): export it again") from error
    if not isinstance(export, list) or not all(isinstance(task, dict) for task in export):
        raise InvalidLabels(f"{path}: must be an export of Label Studio, JSON or JSON-MIN: a list of tasks")
    by_path: dict[str, tuple[str, list[Annotation]]] = {}
    problems = []
    for number, task in enumerate(export, start=1):
        location = f"task {task.get('id', number)}"
        try:
            name, answers = task_path(task), list(annotations(task))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            problems.append(f"{path}, {location}: {error.args[0] if type(error) is ValueError else NO_TASK}")
            continue
        by_path.setdefault(name, (location, []))[1].extend(answers)  # JSON-MIN repeats a task for each annotation
    rows = []
    for name, (location, answers) in by_path.items():
        latest = {person: label for person, _, label in sorted(answers, key=lambda answer: answer[1])}
        labels = sorted({label for label in latest.values() if label})
        if len(labels) > 1:
            problems.append(f"{path}, {location}: {name!r} has {len(labels)} labels by different people: {labels}")
        rows.append(LabelRow(location, name, labels[0] if labels else ""))
    if problems:
        raise InvalidLabels(*problems[:MAX_PROBLEMS])
    return rows


NO_TASK = "must be a task with `data` and `annotations` (JSON) or with `image` (JSON-MIN), of the tasks to import"


def task_path(task: Mapping[str, Any]) -> str:
    """Returns the path of a task's image as it is written in the request."""
    data = task["data"] if "annotations" in task else task
    if isinstance(path := data.get("path"), str):
        return path.strip()
    url = urlsplit(data[IMAGE])
    return str(parse_qs(url.query).get("d", [url.path])[0])


def annotations(task: Mapping[str, Any]) -> Iterator[Annotation]:
    """Yields the annotations of a task in either format; ValueError for an answer in another control."""
    if "annotations" not in task:
        yield annotator(task.get("annotator")), submitted_at(task), single_class(chosen_classes(task.get(CONTROL)))
        return
    for annotation in task["annotations"]:
        if annotation.get("was_cancelled"):
            continue
        results = [result for result in annotation["result"] if result.get("type") == "choices"]
        values = [result["value"] for result in results if result.get("from_name", CONTROL) == CONTROL]
        if results and not values:
            names = ", ".join(sorted({result["from_name"] for result in results}))
            raise ValueError(f"must be answered in the control {CONTROL} of label_studio.xml, not in {names}")
        yield annotator(annotation.get("completed_by")), submitted_at(annotation), single_class(chosen_classes(values))


def chosen_classes(value: Any) -> list[Any]:
    """Returns the chosen classes; JSON-MIN has text for one, a mapping for several, a list for several results."""
    if isinstance(value, list):
        return [choice for part in value for choice in chosen_classes(part)]
    return list(value["choices"]) if isinstance(value, dict) else [value] if value else []


def single_class(choices: Sequence[str]) -> str:
    """Returns the only class of an annotation, empty if there is none; ValueError if there are several."""
    if len(choices) > 1:
        raise ValueError(f"must have one class, has {len(choices)}: {', '.join(map(str, choices))}")
    return str(choices[0]).strip() if choices else ""


def annotator(person: Any) -> str:
    """Returns an annotator's id, which exports give directly or in a mapping."""
    return str(person.get("id", person) if isinstance(person, dict) else person)


def submitted_at(annotation: Mapping[str, Any]) -> str:
    """Returns when an annotation was last submitted, as Label Studio's text, which sorts by time."""
    return str(annotation.get("updated_at") or annotation.get("created_at") or "")
