"""What a run and its resumed processes have logged to W&B, stored in its folder: last steps and offline folders."""

import json
import shlex
from pathlib import Path
from typing import NamedTuple, Self

from sslpl.files import write_whole


class History(NamedTuple):
    """The last step logged online and offline (-1: none), and the offline folders, oldest first."""

    online: int = -1
    offline: int = -1
    folders: tuple[str, ...] = ()  # relative to the run's folder if inside it, so that it can be moved

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads the history of an earlier process; an empty one if there is none or the file is damaged."""
        try:
            content = json.loads(path.read_text())
            return cls(int(content["online"]), int(content["offline"]), tuple(map(str, content["folders"])))
        except (OSError, ValueError, KeyError, TypeError):
            return cls()

    def write(self, path: Path) -> None:
        """Writes the history atomically."""
        write_whole(path, json.dumps(self._asdict()) + "\n")

    def logged(self, step: int, offline: bool) -> Self:
        """Returns the history after one more row."""
        return self._replace(offline=step) if offline else self._replace(online=step)

    def with_folder(self, folder: Path, run_folder: Path) -> Self:
        """Returns the history with one more offline folder."""
        own, top = folder.resolve(), run_folder.resolve()
        name = str(own.relative_to(top) if own.is_relative_to(top) else own)
        return self if name in self.folders else self._replace(folders=(*self.folders, name))


def unsent_folders(history: History, run_folder: Path) -> list[Path]:
    """Returns the offline folders that still exist and that `wandb sync` has not marked as sent."""
    folders = [run_folder.absolute() / name for name in history.folders]
    return [folder for folder in folders if folder.is_dir() and not any(folder.glob("*.wandb.synced"))]


def sync_command(folders: list[Path]) -> str:
    """Returns the command that sends offline folders."""
    return shlex.join(["wandb", "sync", *map(str, folders)])
