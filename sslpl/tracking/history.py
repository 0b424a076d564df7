"""What a run has given to W&B in all of its lives, kept in its folder: the last steps, the folders recorded offline."""

import json
import shlex
from pathlib import Path
from typing import NamedTuple, Self

from sslpl.files import write_whole


class History(NamedTuple):
    """The last step given to a server and to a file; the offline folders, oldest first."""

    online: int = -1
    offline: int = -1
    folders: tuple[str, ...] = ()  # relative to the run's folder if they lie there: it can be moved

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads what an earlier life has left; an empty history if there was none or the file is damaged."""
        try:
            content = json.loads(path.read_text())
            return cls(int(content["online"]), int(content["offline"]), tuple(map(str, content["folders"])))
        except (OSError, ValueError, KeyError, TypeError):
            return cls()

    def write(self, path: Path) -> None:
        """Writes it whole."""
        write_whole(path, json.dumps(self._asdict()) + "\n")

    def logged(self, step: int, offline: bool) -> Self:
        """Returns the history after one more row."""
        return self._replace(offline=step) if offline else self._replace(online=step)

    def with_folder(self, folder: Path, run_folder: Path) -> Self:
        """Returns the history with one more offline folder."""
        own, top = folder.resolve(), run_folder.resolve()
        name = str(own.relative_to(top) if own.is_relative_to(top) else own)
        return self if name in self.folders else self._replace(folders=(*self.folders, name))


def unsent(history: History, run_folder: Path) -> list[Path]:
    """Returns the offline folders that are still there and that `wandb sync` has not marked as sent."""
    folders = [run_folder.absolute() / name for name in history.folders]
    return [folder for folder in folders if folder.is_dir() and not any(folder.glob("*.wandb.synced"))]


def sync_command(folders: list[Path]) -> str:
    """Returns the command that sends offline folders."""
    return shlex.join(["wandb", "sync", *map(str, folders)])
