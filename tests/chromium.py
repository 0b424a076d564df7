"""Drives a headless Chromium over the pipe of its DevTools protocol (chromedevtools.github.io/devtools-protocol)."""

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

KEYS = {"Enter": 13, "Backspace": 8, "Escape": 27, " ": 32, "ArrowRight": 39, "ArrowLeft": 37, "ArrowDown": 40}


def find_chromium() -> str | None:
    """Returns the browser's command; None if there is none."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page:
    """One page of the browser."""

    def __init__(self, write: int, read: int) -> None:
        self.write, self.read, self.number, self.buffer = write, read, 0, b""
        self.session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.events: list[dict[str, Any]] = []
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Calls a method of the protocol; returns its result."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        message |= {"sessionId": self.session} if self.session else {}
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            while b"\0" not in self.buffer:
                chunk = os.read(self.read, 2**16)
                assert chunk, "the browser has ended"
                self.buffer += chunk
            line, _, self.buffer = self.buffer.partition(b"\0")
            answer = json.loads(line)
            if answer.get("id") == self.number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result
            if "method" in answer and self.session:
                self.events.append(answer)

    def evaluate(self, expression: str) -> Any:
        """Returns the value of an expression of JavaScript, of a promise when it is resolved."""
        done = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, f"{expression}: {done['exceptionDetails']}"
        return done["result"].get("value")

    def wait(self, expression: str, seconds: float = 60.0) -> None:
        """Waits until an expression is true."""
        end = time.monotonic() + seconds
        while not self.evaluate(expression):
            assert time.monotonic() < end, f"not true after {seconds:.0f} s: {expression}"
            time.sleep(0.02)

    def open(self, url: str) -> None:
        """Opens an address."""
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def press(self, key: str) -> None:
        """Presses and releases a key."""
        code = KEYS.get(key, ord(key[0].upper()) if key.isalnum() else 0)
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        about = {"key": key, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **about)
        self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def type(self, text: str) -> None:
        """Types into the focused field."""
        self.call("Input.insertText", text=text)

    def resize(self, width: int, height: int, phone: bool = False) -> None:
        """Sets the size of the window in pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Emulation.setTouchEmulationEnabled", enabled=phone)

    def screenshot(self, path: Path) -> None:
        """Writes what the window shows as PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def problems(self) -> list[str]:
        """Returns the errors of scripts and of the security policy so far."""
        kinds = {"Runtime.exceptionThrown", "Log.entryAdded"}
        found = [event for event in self.events if event["method"] in kinds]
        return [json.dumps(event["params"]) for event in found if "net::ERR_" not in json.dumps(event)]

    def requested(self) -> list[str]:
        """Returns the addresses requested so far."""
        return [e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"]


@contextmanager
def browser_page(browser: str) -> Iterator[Page]:
    """Starts a headless browser with a profile of its own; yields its page."""
    command_read, command_write = os.pipe()
    answer_read, answer_write = os.pipe()
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe"]
    with TemporaryDirectory(prefix="sslpl-chromium-", ignore_cleanup_errors=True) as profile:
        redirect = f'exec 3<&{command_read} 4>&{answer_write}; exec "$@"'
        command = ["bash", "-c", redirect, "bash", browser, *options, f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen(command, pass_fds=(command_read, answer_write), stderr=subprocess.DEVNULL)
        os.close(command_read)
        os.close(answer_write)
        try:
            yield Page(command_write, answer_read)
        finally:
            os.close(command_write)
            process.kill()
            process.wait()
            os.close(answer_read)
