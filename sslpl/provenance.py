"""The provenance of a run: command, versions, commit and hardware."""

import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import sslpl
from sslpl.distributed.world import SINGLE_PROCESS, World


def provenance(device: torch.device, world: World = SINGLE_PROCESS) -> dict[str, Any]:
    """Returns the command, package versions, commit, device, threads and processes of the current run."""
    return {
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "versions": {"sslpl": sslpl.__version__, "python": platform.python_version(), "torch": torch.__version__}
        | {name: _version(name) for name in _PACKAGES},
        "git": _git(),
        "device": device.type,
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
        "threads": torch.get_num_threads(),
        "processes": world.size,
    }


_PACKAGES = ("torchvision", "timm", "pillow", "numpy", "scikit-learn", "hydra-core", "omegaconf", "wandb")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git() -> dict[str, Any]:
    """Returns the commit of this package's checkout and whether tracked files differ from it; None outside of one."""
    package = Path(__file__).parent

    def git(*arguments: str) -> str | None:
        try:
            result = subprocess.run(["git", "-C", package, *arguments], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return result.stdout.strip() if result.returncode == 0 else None

    changes = git("status", "--porcelain", "--untracked-files=no")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if changes is None else bool(changes)}


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")),
        platform.machine(),
    )
