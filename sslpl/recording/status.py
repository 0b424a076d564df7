"""The status of a run: running, finished, failed, interrupted or waiting."""

import json
from pathlib import Path
from typing import Any

from sslpl.files import write_json


def write_status(folder: Path, state: str, **details: Any) -> None:
    """Writes the status of a run, with further details, to its status.json."""
    write_json(folder / "status.json", {"state": state, **details})


def read_status(folder: Path) -> dict[str, Any]:
    """Returns the status of a run; an empty one if it has not started or the file is damaged."""
    try:
        status = json.loads((folder / "status.json").read_text())
    except (OSError, ValueError):
        return {}
    return status if isinstance(status, dict) else {}
