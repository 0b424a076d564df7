"""How the runs of a sweep share the GPUs and the cores of one machine."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from sslpl.recording import lock


def at_once(asked: int | None, gpus: int, jobs_per_gpu: int, cores: int) -> int:
    """How many runs go on at a time: as asked (-1: one for each core), else as many as the GPUs or the cores take."""
    if asked is not None:
        return cores if asked < 1 else asked
    return gpus * jobs_per_gpu or cores


def gpu_names(environment: Mapping[str, str], count: int) -> list[str]:
    """What the GPUs that this process sees are called by all processes of the machine."""
    named = [name.strip() for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return named if len(named) == count else [str(index) for index in range(count)]


def slots(names: list[str], jobs_per_gpu: int) -> list[tuple[int, str]]:
    """The places for runs, as (index of the GPU, name): a second run comes to a GPU when each has one."""
    return [(index, f"{name}-{turn}") for turn in range(jobs_per_gpu) for index, name in enumerate(names)]


@contextmanager
def gpu(count: int, jobs_per_gpu: int, name: str) -> Iterator[str | None]:
    """The GPU that a run may use, by locks that all sweeps of a user on this machine share; None without any."""
    places = slots(gpu_names(os.environ, count), jobs_per_gpu)
    if not places:
        yield None
        return
    folder = Path(tempfile.gettempdir()) / f"sslpl-gpus-{os.getuid()}"
    paths = [folder / f"{place}.lock" for _, place in places]
    with lock.first_free(paths, lambda: print(f"{name}  waiting for a GPU", flush=True)) as chosen:
        yield f"cuda:{places[chosen][0]}"
