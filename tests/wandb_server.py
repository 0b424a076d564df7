"""A local stand-in for the W&B server: it stores what wandb sends, and can fail in several ways."""

import json
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

ENTITY = "someone"


class FakeRun:
    """The data of one run on the server."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []  # history, in the order of arrival
        self.posted: list[tuple[int, list[dict[str, Any]]]] = []  # (offset, lines) of each request
        self.upsert: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}
        self.exit_code: int | None = None
        self.artifacts: list[dict[str, Any]] = []

    @property
    def config(self) -> dict[str, Any]:
        """The uploaded config."""
        return {key: entry["value"] for key, entry in json.loads(self.upsert["config"]).items()}

    def bucket(self, name: str) -> dict[str, Any]:
        """Returns the run as a resuming client receives it."""
        tail = json.dumps([json.dumps(line) for line in self.lines[-1:]])
        counts = {"historyLineCount": len(self.lines), "logLineCount": 0, "eventsLineCount": 0}
        owner = {"id": "ZQ==", "name": self.upsert.get("entity", ENTITY)}
        project = {"id": "cA==", "name": self.upsert.get("project", "p"), "entity": owner}
        texts = dict.fromkeys(("description", "sweepName", "notes"), "")
        texts["displayName"] = self.upsert.get("displayName", name)
        state = {"summaryMetrics": json.dumps(self.summary), "config": self.upsert["config"], "tags": []}
        tails = {"historyTail": tail, "eventsTail": "[]", "wandbConfig": '{"t": 1}'}
        return {"id": "Yg==", "name": name, "project": project} | counts | texts | state | tails

    def stream(self, body: dict[str, Any]) -> None:
        """Stores one request of the file stream."""
        files = body.get("files", {})
        if history := files.get("wandb-history.jsonl"):
            lines = [json.loads(line) for line in history["content"]]
            self.posted.append((history["offset"], lines))
            self.lines[history["offset"] :] = lines
        for line in files.get("wandb-summary.json", {}).get("content", []):
            self.summary = json.loads(line)
        if body.get("complete"):
            self.exit_code = body["exitcode"]


class WandbServer(ThreadingHTTPServer):
    """Serves on a free loopback port; `failure` is None, an HTTP status, or "hang"."""

    daemon_threads = True
    failure: int | str | None = None

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.runs: dict[str, FakeRun] = {}
        self.requests: list[str] = []
        self.sweep = ""  # the YAML of the sweep, for agents
        self.commands: list[dict[str, Any]] = []  # for agents, one per heartbeat
        self.projects: list[str] = ["sslpl"]
        self.views: list[dict[str, Any]] = []  # saved reports and workspace views

    @property
    def url(self) -> str:
        """The value for WANDB_BASE_URL."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Prints nothing when a client disconnects."""

    def answer(self, operation: str, variables: dict[str, Any]) -> dict[str, Any]:
        """Returns the data of a GraphQL response."""
        if operation == "UpsertBucket":
            run = self.runs.setdefault(variables["name"], FakeRun())
            run.upsert |= {key: value for key, value in variables.items() if value is not None}
            return {"upsertBucket": {"bucket": run.bucket(variables["name"]), "inserted": True}}
        if operation == "RunResumeStatus":
            known = self.runs.get(variables["name"])
            return {"model": {"id": "cA==", "bucket": known and known.bucket(variables["name"])}}
        if operation == "Viewer":
            names = {"id": "dQ==", "entity": ENTITY, "username": ENTITY}
            return {"viewer": names | {"teams": {"edges": []}, "flags": "{}"}}
        if operation == "SweepWithRuns":
            return {"project": {"sweep": {"id": "cw==", "name": "s", "config": self.sweep, "runs": {"edges": []}}}}
        if operation == "CreateAgent":
            return {"createAgent": {"agent": {"id": "YQ=="}}}
        if operation == "Heartbeat":
            commands = [self.commands.pop(0)] if self.commands else []
            return {"agentHeartbeat": {"agent": {"id": "YQ=="}, "commands": json.dumps(commands)}}
        if operation in ("UpsertView2", "upsertView"):
            self.views.append(variables | {"spec": json.loads(variables["spec"])})
            project = {"id": "cA==", "name": variables["projectName"], "entityName": variables["entityName"]}
            kept = {key: variables[key] for key in ("name", "displayName", "description", "spec", "type")}
            return {"upsertView": {"view": kept | {"id": "dg==", "project": project}, "inserted": True}}
        if operation == "ProjectInternalId":
            known = variables["projectName"] in self.projects
            return {"project": {"id": "cA==", "internalId": "UHJvamVjdA=="} if known else None}
        if operation == "GetProjects":
            fields = {"__typename": "Project", "id": "cA==", "createdAt": "", "isBenchmark": False}
            nodes = [fields | {"user": None, "name": name, "entityName": variables["entity"]} for name in self.projects]
            page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
            return {"models": {"pageInfo": page, "edges": [{"node": node} for node in nodes]}}
        if operation == "ArtifactType":  # no artifact of that name exists
            return {"project": None}
        if operation == "CreateRunFiles":
            files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in variables["files"]]
            return {"createRunFiles": {"runID": "Yg==", "uploadHeaders": [], "files": files}}
        if operation == "CreateArtifact":  # an artifact that is committed already is not uploaded again
            self.runs[variables["input"]["runName"]].artifacts.append(variables["input"])
            sequence = {"id": "cw==", "latestArtifact": None}
            artifact = {"id": "YQ==", "state": "COMMITTED", "artifactSequence": sequence}
            return {"createArtifact": {"artifact": artifact}}
        return {}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WandbServer

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = json.loads(raw) if self.headers.get("Content-Type", "").startswith("application/json") else {}
        operation = "".join(re.findall(r"^\s*(?:query|mutation)\s+(\w+)", body.get("query", "")))
        self.server.requests.append(operation or self.path)
        if self.server.failure == "hang":
            time.sleep(60)
        if isinstance(self.server.failure, int):
            return self._reply(self.server.failure, {})
        if self.path.endswith("/file_stream"):
            self.server.runs[self.path.split("/")[-2]].stream(body)
            return self._reply(200, {"exitcode": None, "limits": {}})
        return self._reply(200, {"data": self.server.answer(operation, body.get("variables") or {})})

    do_GET = do_PUT = do_POST

    def _reply(self, status: int, answer: dict[str, Any]) -> None:
        payload = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def wandb_server() -> Iterator[WandbServer]:
    """Runs a server until the context is left."""
    server = WandbServer()
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
