"""A client of the labeling page, as a browser uses it: for tests and checks."""

import json
import re
import time
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

Record = dict[str, Any]


class PageClient:
    """A page with its token, tab and person, on one connection."""

    def __init__(self, link: str, person: str = "Ada") -> None:
        url = urlsplit(link.strip())
        self.host, self.port, self.person, self.tab = url.hostname or "", url.port or 80, person, uuid4().hex
        self.connection = HTTPConnection(self.host, self.port, timeout=30)
        self.cookie = f"sslpl_token_{self.port}={url.query.partition('token=')[2]}"

    def request(self, method: str, path: str, content: Any = None, **headers: str) -> tuple[int, bytes]:
        """Returns the status and body of a response."""
        body = None if content is None else json.dumps(content)
        kind = {} if content is None else {"Content-Type": "application/json"}
        try:
            self.connection.request(method, path, body, {"Cookie": self.cookie} | kind | headers)
            response = self.connection.getresponse()
            return response.status, response.read()
        except (OSError, HTTPException):
            self.connection.close()
            raise

    def send(self, *items: Record, **more: Any) -> Record:
        """Sends answers; returns results, queue, overview and run."""
        submission = {"tab": self.tab, "person": self.person, "items": items} | more
        code, body = self.request("POST", "/api/answers", submission)
        assert code == 200, body
        found: Record = json.loads(body)
        return found


def item(action: str, image: Record | None = None, **more: Any) -> Record:
    """Returns an answer about an image of a queue, with an id of its own."""
    about = {} if image is None else {"index": image["index"], "replaces": image["replaces"]}
    return {"id": uuid4().hex, "action": action} | about | more


def wait_for_link(folder: Path, seconds: float = 60) -> str:
    """Returns the link of the only run below a folder as soon as its page is served."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for file in folder.glob("**/labeling/link.txt"):
            if re.fullmatch(r"http://\S+/\?token=\S+\n", file.read_text()):
                return file.read_text()
        time.sleep(0.02)
    raise TimeoutError("no page is served")


def label_until_end(link: str, label: Callable[[str], str], person: str = "Ada") -> int:
    """Labels every image of every batch until the run ends; returns how many."""
    client, count = PageClient(link, person), 0
    while True:
        try:
            data = client.send()
            while data["queue"]:
                image = data["queue"][0]
                data = client.send(item("label", image, label=label(image["path"]), seconds=1.5))
                count += data["results"][0]["ok"]
        except (OSError, HTTPException):
            return count
        if data["run"]["end"]:
            return count
        time.sleep(0.02)
