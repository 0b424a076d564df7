"""Shares the GPUs and cores of one machine among the runs of a sweep."""

import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from sslpl.recording import lock
from sslpl.types import UserError


def concurrent_runs(requested: int | None, gpus: int, jobs_per_gpu: int, cores: int) -> int:
    """Returns the number of concurrent runs: as requested (-1: one per core), else what the GPUs or cores allow."""
    if requested is not None:
        return cores if requested < 1 else requested
    return gpus * jobs_per_gpu or cores


def gpu_names(environment: Mapping[str, str], count: int) -> list[str]:
    """Returns names of the GPUs visible to this process that mean the same GPU in all processes of the machine."""
    visible = [name.strip() for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return visible if len(visible) == count else [str(index) for index in range(count)]


def gpu_slots(names: list[str], jobs_per_gpu: int) -> list[tuple[int, str]]:
    """Lists the slots for runs as (index of the GPU, name); a GPU gets its second run after every GPU has one."""
    return [(index, f"{name}-{job}") for job in range(jobs_per_gpu) for index, name in enumerate(names)]


def lock_folder() -> Path:
    """Returns the folder of GPU locks: in the user's runtime folder, else in the temporary one.

    Raises a UserError if the latter exists and is not private to this user.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if Path(runtime).is_absolute() and is_private(Path(runtime)):
        return Path(runtime) / "sslpl-gpus"
    folder = Path(tempfile.gettempdir()) / f"sslpl-gpus-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    if not is_private(folder):
        raise UserError(
            f"{folder}: must be a private folder of this user (mode 700); remove it, or set XDG_RUNTIME_DIR or TMPDIR"
        )
    return folder


def is_private(path: Path) -> bool:
    """True if a path is a folder, not a link, of this user that nobody else can enter, read or write."""
    try:
        info = path.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(info.st_mode) and info.st_uid == os.getuid() and not info.st_mode & 0o077


@contextmanager
def reserve_gpu(count: int, jobs_per_gpu: int, name: str) -> Iterator[str | None]:
    """Reserves a GPU for a run, by locks that all sweeps of a user on this machine share; yields None without GPUs."""
    slots = gpu_slots(gpu_names(os.environ, count), jobs_per_gpu)
    if not slots:
        yield None
        return
    folder = lock_folder()
    paths = [folder / f"{slot}.lock" for _, slot in slots]
    with lock.first_free_lock(paths, lambda: print(f"{name}  waiting for a GPU", flush=True)) as position:
        yield f"cuda:{slots[position][0]}"
