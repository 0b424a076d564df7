"""Fixtures of all tests: one thread each, no network, no W&B account, and the command line in this process."""

import csv
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

from sslpl.run import cli

torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported: its kernels run on the CPU
pytest.register_assert_rewrite("contract")

TINY = (
    "training.epochs=2",
    "training.finetune_epochs=1",
    "budget.initial=24",
    "budget.per_cycle=24",
    "budget.cycles=3",
    "budget.candidates=200",
    "training.batch_size=16",
    "tracker=none",
    "runtime.num_threads=1",
    "runtime.progress=none",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--strategies", metavar="FOLDER", type=Path, help="also check the strategies in its query/ against the contract"
    )


class Killed(BaseException):
    """Ends a run abruptly, as a signal 9 does: nothing in `sslpl` catches it."""


class Result(NamedTuple):
    """The exit code and output of a command."""

    code: int
    out: str
    err: str


@pytest.fixture
def sslpl(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Result]:
    """Runs the command line in this process, in an empty folder, as a user would type it."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str) -> Result:
        monkeypatch.setattr("sys.argv", ["run.py", *arguments])
        GlobalHydra.instance().clear()
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capfd.readouterr()
        return Result(int(ended.value.code or 0), out, err)

    return command


def timeless(folder: Path) -> list[dict[str, str]]:
    """Returns the rows of a run's metrics without times, speeds and memory, which differ between equal runs."""
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if not k.endswith(("_seconds", "_per_second", "_mib"))} for row in rows]


def run_folder(root: Path = Path("outputs")) -> Path:
    """Returns the folder of the only run below `root`."""
    (found,) = [path.parent for path in root.glob("**/status.json")]
    return found
