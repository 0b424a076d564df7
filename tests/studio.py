"""A stand-in for Label Studio: validates imported tasks and builds the exports that it would return.

The fields are those of its documentation (labelstud.io, as of 2025): guide/tasks "Basic Label Studio JSON format",
guide/predictions "JSON format for pre-annotations", guide/task_format "Label Studio JSON format of annotated tasks",
guide/export "JSON_MIN", guide/storage_local "Tasks with local storage file references", tags/choices, tags/image. That
JSON-MIN writes one choice as text and several as a mapping, a record per annotation and none for a skipped one, and
what else a record holds, is from its converter (label-studio-sdk, `convert_to_json_min`, `prettify_result`).
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any
from xml.etree import ElementTree

CHOICES = {"name", "toName", "choice", "showInline", "required", "value"}  # the documented parameters used here
RESULT = {"id", "from_name", "to_name", "type", "value", "readonly", "hidden"}
Task = dict[str, Any]


def valid_tasks(text: str, interface: str, names: Sequence[str]) -> list[Task]:
    """Returns the tasks of an import; AssertionError unless they are as documented for images and one choice."""
    view = ElementTree.fromstring(interface)
    image, choices = view.find("Image"), view.find("Choices")
    assert image is not None
    assert choices is not None
    assert set(choices.attrib) <= CHOICES
    assert (view.tag, choices.get("toName"), choices.get("choice")) == ("View", image.get("name"), "single")
    assert [choice.attrib for choice in choices.findall("Choice")] == [{"value": name} for name in names]
    value = image.get("value", "")
    assert value.startswith("$")
    found = json.loads(text)
    assert isinstance(found, list)
    for task in found:
        assert set(task) <= {"id", "data", "annotations", "predictions"}
        assert isinstance(task["id"], int)
        assert all(isinstance(value, str) for value in task["data"].values())
        assert task["data"][value[1:]].startswith("/data/local-files/?d=")
        assert not task["data"][value[1:]].startswith("/data/local-files/?d=/")  # below the document root
        for prediction in task["predictions"]:
            assert set(prediction) == {"model_version", "score", "result"}
            assert isinstance(prediction["model_version"], str)
            assert 0 <= prediction["score"] <= 1
            (result,) = prediction["result"]
            assert set(result) <= RESULT
            assert isinstance(result["id"], str)
            assert (result["from_name"], result["to_name"]) == (choices.get("name"), image.get("name"))
            assert result["type"] == "choices"
            assert set(result["value"]) == {"choices"}
            (choice,) = result["value"]["choices"]
            assert choice in names
    for ids in (
        [task["id"] for task in found],
        [each["result"][0]["id"] for task in found for each in task["predictions"]],
    ):
        assert len(ids) == len(set(ids)), "ids must differ"
    return found


def annotated(task: Task, *labels: str | None, by: Sequence[Any] = (), cancelled: int = -1) -> Task:
    """Returns a task of a JSON export with the annotators' labels, last submitted first; None is an empty answer."""

    def result(label: str) -> Task:
        choices = {"value": {"choices": [label]}, "origin": "manual", "type": "choices"}
        return {"id": "Dx_aB91ISN", "from_name": "label", "to_name": "image", **choices}

    annotations = [
        {
            "id": 1000 * task["id"] + n,
            "completed_by": by[n] if by else 1,
            "result": [] if label is None else [result(label)],
            "was_cancelled": n == cancelled,
            "ground_truth": False,
            "created_at": "2026-01-01T00:00:00.000000Z",
            "updated_at": f"2026-01-{20 - n:02d}T00:00:00.000000Z",
            "lead_time": 4.288,
            "result_count": 0,
            "task": task["id"] + 50,
        }
        for n, label in enumerate(labels)
    ]
    when = {"created_at": "2026-01-01T00:00:00.000000Z", "updated_at": "2026-01-20T00:00:00.000000Z", "project": 83}
    known = {"data": dict(task["data"]), "annotations": annotations, "drafts": [], "predictions": [task["id"]]}
    return {"id": task["id"] + 50, **known, "meta": {}, **when}


def minimal(task: Task) -> Iterator[Task]:
    """Yields the records of a JSON-MIN export of a task of a JSON export."""
    for annotation in task["annotations"]:
        if annotation["was_cancelled"]:
            continue
        record: Task = dict(task["data"]) | {"id": task["id"]}
        for result in annotation["result"]:
            choices = result["value"]["choices"]
            record[result["from_name"]] = choices[0] if len(choices) == 1 else {"choices": choices}
        person = annotation["completed_by"]
        record["annotator"] = person["id"] if isinstance(person, dict) else person
        record["annotation_id"] = annotation["id"]
        yield record | {key: annotation[key] for key in ("created_at", "updated_at", "lead_time")}
