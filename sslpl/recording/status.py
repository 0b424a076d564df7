"""The status of a run: running, finished, failed, interrupted or waiting."""

import json
from pathlib import Path
from typing import Any

from sslpl.files import write_json


def write_status(folder: Path, state: str, **details: Any) -> None:
    """Writes the status of a run, with further details, to its status.json."""
    # A running process writes it in every phase, and whether it runs is told by its lock.
    write_json(folder / "status.json", {"state": state, **details}, durable=state != "running")


def read_status(folder: Path) -> dict[str, Any]:
    """Returns the status of a run; an empty one if it has not started or the file is damaged."""
    try:
        status = json.loads((folder / "status.json").read_text())
    except (OSError, ValueError):
        return {}
    return status if isinstance(status, dict) else {}
