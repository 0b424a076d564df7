"""A stand-in for a running Label Studio: the endpoints that a run and a person use, in memory, on loopback.

What it answers was observed at Label Studio 1.23.2; `tests/check_label_studio.py` does the same with the real server.
"""

import email
import json
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

import requests

Record = dict[str, Any]
LEGACY, PERSONAL = "0123456789abcdef0123456789abcdef01234567", "eyJhbGciOiJIUzI1NiJ9.eyJpZCI6MX0.c2lnbmF0dXJl"
ROUTES = (
    ("POST", r"api/token/refresh", "renew"),
    ("GET", r"api/current-user/whoami", "whoami"),
    ("GET", r"api/projects", "list_projects"),
    ("POST", r"api/projects", "make_project"),
    ("GET", r"api/projects/(\d+)", "get_project"),
    ("PATCH", r"api/projects/(\d+)", "change_project"),
    ("POST", r"api/projects/(\d+)/import", "import_into"),
    ("GET", r"api/projects/(\d+)/file-uploads", "list_uploads"),
    ("GET", r"api/tasks", "list_tasks"),
    ("DELETE", r"api/tasks/(\d+)/", "delete_task"),
    ("POST", r"api/tasks/(\d+)/annotations/", "annotate"),
    ("GET", r"api/annotations/(\d+)/", "get_annotation"),
    ("PATCH", r"api/annotations/(\d+)/", "change_annotation"),
    ("DELETE", r"api/annotations/(\d+)/", "delete_annotation"),
)


class Refused(Exception):
    """Raised with the status and the words of an error."""


class FakeLabelStudio:
    """The state of a server, which outlives its restarts."""

    def __init__(self) -> None:
        self.url, self.person, self.lock = "http://label-studio", "ada@example.org", Lock()
        self.forget()

    def forget(self) -> None:
        """Starts with an empty database."""
        self.projects, self.tasks, self.annotations = dict[int, Record](), dict[int, Record](), dict[int, Record]()
        self.uploads: list[tuple[str, bytes]] = []
        self.requests: list[str] = []
        self.access, self.numbers, self.broken = 0, 0, 0  # broken: requests that will fail
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def number(self) -> int:
        self.numbers += 1
        return self.numbers

    def time(self) -> str:
        self.now += timedelta(seconds=1)
        return self.now.strftime("%Y-%m-%dT%H:%M:%S.%fZ")

    def respond(self, method: str, address: str, headers: Any, body: bytes) -> tuple[int, bytes]:
        """Returns the status and the body of a response."""
        url = urlsplit(address)
        query = {key: values[0] for key, values in parse_qs(url.query).items()}
        with self.lock:
            self.requests.append(f"{method} {url.path[1:]}")
            try:
                content = self.answer(method, url.path[1:], query, headers, body)
            except Refused as error:
                return error.args[0], json.dumps({"status_code": error.args[0], "detail": error.args[1]}).encode()
        return (204, b"") if content is None else (200, json.dumps(content).encode())

    def answer(self, method: str, path: str, query: Record, headers: Any, body: bytes) -> Any:
        """Returns the content of a response; Refused for an error."""
        if self.broken:
            self.broken -= 1
            raise Refused(503, "Service Unavailable")
        if path != "api/token/refresh" and not self.is_allowed(headers.get("Authorization", "")):
            raise Refused(401, "Invalid token.")
        for verb, pattern, name in ROUTES:
            if verb == method and (match := re.fullmatch(pattern, path)):
                kind = headers.get("Content-Type", "")
                content = json.loads(body) if kind == "application/json" else form_files(kind, body)
                return getattr(self, name)(*map(int, match.groups()), query=query, content=content)
        raise Refused(404, "Not found.")

    def is_allowed(self, authorization: str) -> bool:
        return authorization in (f"Token {LEGACY}", f"Bearer access{self.access}") and authorization != "Bearer access0"

    def found(self, records: dict[int, Record], number: int, kind: str) -> Record:
        if number not in records:
            raise Refused(404, f"No {kind} matches the given query.")
        return records[number]

    # Endpoints

    def renew(self, *, content: Any, **_: Any) -> Record:
        if content["refresh"] != PERSONAL:
            raise Refused(401, "Token is invalid")
        self.access += 1
        return {"access": f"access{self.access}"}

    def whoami(self, **_: Any) -> Record:
        return {"id": 1, "email": self.person}

    def list_projects(self, *, query: Record, **_: Any) -> Record:
        results = [project for project in self.projects.values() if query["title"] in project["title"]]
        return {"count": len(results), "next": None, "previous": None, "results": results}

    def make_project(self, *, content: Any, **_: Any) -> Record:
        if len(content["title"]) > 50:
            raise Refused(400, "Ensure this field has no more than 50 characters.")
        number = self.number()
        self.projects[number] = {"id": number, "label_config": "<View></View>"} | content
        return self.projects[number]

    def get_project(self, number: int, **_: Any) -> Record:
        return self.found(self.projects, number, "Project")

    def change_project(self, number: int, *, content: Any, **_: Any) -> Record:
        project = self.found(self.projects, number, "Project")
        project.update(content)
        return project

    def import_into(self, number: int, *, query: Record, content: Any) -> Record:
        self.found(self.projects, number, "Project")
        if query.get("commit_to_project") == "false":
            self.uploads += [(f"upload/{number}/4dbf07c2-{name}", data) for name, data in content]
            return {"task_count": len(content), "file_upload_ids": [*range(len(content))]}
        for task in content:
            own = {"id": self.number(), "project": number, "annotations": [], "updated_at": self.time()}
            self.tasks[own["id"]] = task | own
        return {"task_count": len(content), "file_upload_ids": []}

    def list_uploads(self, number: int, *, query: Record, **_: Any) -> list[Record]:
        assert query == {"all": "true"}
        files = [file for file, _ in self.uploads if file.startswith(f"upload/{number}/")]
        return [{"id": id, "file": file, "size": 1} for id, file in enumerate(files, start=1)]

    def list_tasks(self, *, query: Record, **_: Any) -> Record:
        items = json.loads(query["query"])["filters"]["items"] if "query" in query else []
        tasks = [task for task in self.tasks.values() if task["project"] == int(query["project"])]
        tasks = [task for task in tasks if all(is_selected(task, item) for item in items)]
        page, size = int(query.get("page", 1)), int(query.get("page_size", 100))
        shown = tasks[(page - 1) * size : page * size]
        if page > 1 and not shown:
            raise Refused(404, "Invalid page.")
        return {"total_annotations": 0, "total_predictions": 0, "total": len(tasks), "tasks": shown}

    def delete_task(self, number: int, **_: Any) -> None:
        self.found(self.tasks, number, "Task")
        del self.tasks[number]

    def annotate(self, number: int, *, content: Any, **_: Any) -> Record:
        task, id, now = self.found(self.tasks, number, "Task"), self.number(), self.time()
        own = {"id": id, "completed_by": 1, "created_username": f" {self.person}, 1", "created_at": now, "task": number}
        annotation = {"was_cancelled": False, "lead_time": None} | content | own | {"updated_at": now}
        self.annotations[id] = annotation
        task["annotations"].append(annotation)
        task["updated_at"] = self.time()
        return annotation

    def get_annotation(self, number: int, **_: Any) -> Record:
        return self.found(self.annotations, number, "Annotation")

    def change_annotation(self, number: int, *, content: Any, **_: Any) -> Record:
        annotation = self.found(self.annotations, number, "Annotation")
        annotation.update(content | {"updated_at": self.time()})
        self.tasks[annotation["task"]]["updated_at"] = self.time()
        return annotation

    def delete_annotation(self, number: int, **_: Any) -> None:
        annotation = self.found(self.annotations, number, "Annotation")
        task = self.tasks[annotation["task"]]
        task["annotations"].remove(annotation)
        task["updated_at"] = self.time()
        del self.annotations[number]


def is_selected(task: Record, item: Record) -> bool:
    """True if a condition of a query of the data manager holds."""
    column = item["filter"].removeprefix("filter:tasks:")
    value = task["data"][column.removeprefix("data.")] if column.startswith("data.") else task[column]
    operators = {"equal": value == item["value"], "contains": item["value"] in value, "greater": value > item["value"]}
    return operators[item["operator"]]


def form_files(content_type: str, body: bytes) -> list[tuple[str, bytes]]:
    """Returns the names and contents of the files of a form."""
    if not body:
        return []
    message = email.message_from_bytes(f"Content-Type: {content_type}\r\n\r\n".encode() + body)
    return [(part.get_filename() or "", part.get_payload(decode=True)) for part in message.get_payload()]  # type: ignore


def answer_directly(state: FakeLabelStudio, request: requests.PreparedRequest) -> requests.Response:
    """Returns the response to a request without a connection."""
    body = request.body or b""
    response = requests.Response()
    response.status_code, response._content = state.respond(
        request.method or "", request.url or "", request.headers, body.encode() if isinstance(body, str) else body
    )
    response.url = request.url or ""
    return response


@contextmanager
def serving(state: FakeLabelStudio, port: int = 0) -> Iterator[str]:
    """Serves a state at a port while the context is open; yields the address."""

    connections = list[socket.socket]()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def respond(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            code, data = state.respond(self.command, self.path, self.headers, body)
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Set-Cookie", "sessionid=abc; Path=/")
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PATCH = do_DELETE = respond

        def log_message(self, *_: Any) -> None: ...

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def get_request(self) -> tuple[socket.socket, Any]:
            connection, address = super().get_request()
            connections.append(connection)
            return connection, address

    server = Server(("127.0.0.1", port), Handler)
    Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield state.url
    finally:
        server.shutdown()
        server.server_close()
        for connection in connections:  # as if the process had ended
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
