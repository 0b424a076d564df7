"""A person who labels in Label Studio, as its page does over the REST API: for tests and checks."""

import time
from collections.abc import Callable
from typing import Any

import requests

Record = dict[str, Any]


class Person:
    """An account of a server, by its legacy token."""

    def __init__(self, url: str, token: str) -> None:
        self.url, self.token = url, token

    def request(self, method: str, path: str, content: Any = None, **parameters: Any) -> Any:
        """Returns the content of a response; HTTPError if the request failed."""
        headers = {"Authorization": f"Token {self.token}"}
        response = requests.request(
            method, f"{self.url}/{path}", json=content, params=parameters, headers=headers, timeout=60
        )
        response.raise_for_status()
        return response.json() if response.content else None

    def tasks(self, project: int) -> list[Record]:
        """Returns the tasks of a project."""
        found: list[Record] = self.request("GET", "api/tasks", project=project, fields="all", page_size=1000)["tasks"]
        return found

    def annotate(self, task: Record, *result: Record, **more: Any) -> Record:
        """Submits an annotation of a task."""
        content = {"result": list(result), "lead_time": 1.5} | more
        annotation: Record = self.request("POST", f"api/tasks/{task['id']}/annotations/", content)
        return annotation

    def change(self, annotation: Record, *result: Record, **more: Any) -> None:
        """Submits an annotation again."""
        self.request("PATCH", f"api/annotations/{annotation['id']}/", {"result": list(result)} | more)

    def delete(self, annotation: Record) -> None:
        """Deletes an annotation."""
        self.request("DELETE", f"api/annotations/{annotation['id']}/")

    def open_tasks(self, project: int) -> list[Record]:
        """Returns the tasks of a project that have no annotation."""
        return [task for task in self.tasks(project) if not task["annotations"]]

    def wait_for_tasks(self, project: int, count: int, seconds: float, ended: Callable[[], bool]) -> list[Record]:
        """Returns the tasks without an annotation as soon as there are `count` of them."""
        end = time.monotonic() + seconds
        while len(found := self.open_tasks(project)) < count:
            assert time.monotonic() < end, f"{len(found)} tasks instead of {count} after {seconds:.0f} s"
            assert not ended(), "the run has ended"
            time.sleep(0.1)
        assert len(found) == count
        return found


def choice(name: str, control: str = "label") -> Record:
    """Returns the choice of a class as a part of an annotation."""
    value = {"choices": [name]}
    return {"id": "a1b2c3d4e5", "from_name": control, "to_name": "image", "type": "choices", "value": value}


def new_class(name: str) -> Record:
    """Returns a typed class as a part of an annotation."""
    value = {"text": [name]}
    return {"id": "f6g7h8i9j0", "from_name": "new_class", "to_name": "image", "type": "textarea", "value": value}
