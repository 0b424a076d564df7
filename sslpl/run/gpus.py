"""How the runs of a sweep share the GPUs and the cores of one machine."""

import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from sslpl.recording import lock
from sslpl.types import UserError


def concurrent_runs(asked: int | None, gpus: int, jobs_per_gpu: int, cores: int) -> int:
    """How many runs go on at a time: as asked (-1: one for each core), else as many as the GPUs or the cores take."""
    if asked is not None:
        return cores if asked < 1 else asked
    return gpus * jobs_per_gpu or cores


def gpu_names(environment: Mapping[str, str], count: int) -> list[str]:
    """What the GPUs that this process sees are called by all processes of the machine."""
    named = [name.strip() for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named if len(named) == count else [str(index) for index in range(count)]


def gpu_slots(names: list[str], jobs_per_gpu: int) -> list[tuple[int, str]]:
    """The places for runs, as (index of the GPU, name): a second run comes to a GPU when each has one."""
    return [(index, f"{name}-{turn}") for turn in range(jobs_per_gpu) for index, name in enumerate(names)]


def lock_folder() -> Path:
    """Returns the folder of GPU locks: in the user's runtime folder, else in the temporary one.

    UserError where the latter has something under its name that is not this user's alone.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if Path(runtime).is_absolute() and is_private(Path(runtime)):
        return Path(runtime) / "sslpl-gpus"
    folder = Path(tempfile.gettempdir()) / f"sslpl-gpus-{os.getuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    if not is_private(folder):
        raise UserError(
            f"{folder}: must be a folder of this user's alone (mode 700); remove it, or set XDG_RUNTIME_DIR or TMPDIR"
        )
    return folder


def is_private(path: Path) -> bool:
    """Whether a path is a folder, and no link, of this user's that nobody else can enter or write."""
    try:
        facts = path.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.getuid() and not facts.st_mode & 0o077


@contextmanager
def reserve_gpu(count: int, jobs_per_gpu: int, name: str) -> Iterator[str | None]:
    """The GPU that a run may use, by locks that all sweeps of a user on this machine share; None without any."""
    places = gpu_slots(gpu_names(os.environ, count), jobs_per_gpu)
    if not places:
        yield None
        return
    folder = lock_folder()
    paths = [folder / f"{place}.lock" for _, place in places]
    with lock.first_free_lock(paths, lambda: print(f"{name}  waiting for a GPU", flush=True)) as chosen:
        yield f"cuda:{places[chosen][0]}"
