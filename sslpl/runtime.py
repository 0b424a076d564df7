"""Where and how a run is executed: nothing here changes which run it is."""

import ctypes
import os
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field

from sslpl.distributed.world import SINGLE_PROCESS, World
from sslpl.types import Count, PositiveOrZero, UserError

SMALL_IMAGE = 16 * 16  # pixels below which a second thread has too little to do to make up for the waiting


_DEVICES = "'auto', 'cpu' or 'cuda', or one of several GPUs as 'cuda:1'"
Device = Annotated[
    str,
    Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$", description=_DEVICES),
]


@dataclass(frozen=True)
class Runtime:
    """Device, threads, folders and what is shown."""

    device: Device = "auto"
    jobs_per_gpu: Count = 1  # of a sweep whose launcher runs several on this machine
    compile: Literal["auto", True, False] = "auto"
    num_threads: Count | None = None  # None: as torch chooses, but one for small images
    deterministic: bool = False
    checkpoint_minutes: PositiveOrZero = 5.0  # 0: after each step
    output_dir: str = "outputs"
    progress: Literal["auto", "live", "plain", "none"] = "auto"
    dry_run: bool = False
    held_gib: PositiveOrZero | None = None  # None: see `place_images` in sslpl/data/images.py

    def prepare(self, world: World = SINGLE_PROCESS) -> torch.device:
        """Sets determinism for this process and returns its device; UserError if it is not there."""
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise UserError(f"runtime.device={self.device}: no CUDA device was found; use runtime.device=cpu or auto")
        name = "cuda" if self.device == "auto" and torch.cuda.is_available() else self.device
        device = torch.device("cpu" if name == "auto" else name)
        if world.size > 1:
            device = self.process_device(world, device)
        keep_freed_memory()
        if self.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(self.deterministic)
        torch.backends.cudnn.benchmark = not self.deterministic
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high")
            choose_gpu(device)
        return device

    def process_device(self, world: World, device: torch.device) -> torch.device:
        """The device of one of several processes; UserError for what they cannot do together."""
        if self.compile is True:
            raise UserError("runtime.compile=true: must be auto or false with several processes")
        if ":" in self.device:
            raise UserError(f"runtime.device={self.device}: must be auto, cpu or cuda with several processes")
        return torch.device(device.type, world.local_rank) if device.type == "cuda" else device

    def set_threads(self, shape: tuple[int, int, int], world: World = SINGLE_PROCESS) -> None:
        """Sets the threads of this process for images of a shape (channels, height, width).

        The processes of one machine share its cores; torchrun would leave each of them a single thread.
        """
        if self.num_threads is not None:
            torch.set_num_threads(self.num_threads)
        elif shape[1] * shape[2] <= SMALL_IMAGE:
            torch.set_num_threads(1)
        elif world.size > 1:
            torch.set_num_threads(threads_per_job(world.local_size, os.cpu_count() or 1))


def threads_per_job(jobs: int, cores: int) -> int:
    """The cores that each of some jobs has to itself, at least one."""
    return max(1, cores // max(jobs, 1))


def choose_gpu(device: torch.device) -> None:
    """Makes a GPU the one that this process uses where none is named; UserError if there are not so many."""
    count = torch.cuda.device_count()
    if device.index is not None and device.index >= count:
        raise UserError(f"runtime.device={device}: must be below cuda:{count}, the number of GPUs that can be seen")
    if device.index is not None:
        torch.cuda.set_device(device)


def keep_freed_memory() -> None:
    """Tells glibc to keep the memory of large tensors for the next ones: page faults cost more than their contents."""
    mmap_threshold, trim_threshold = -3, -1
    with suppress(AttributeError, OSError, TypeError):  # another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, 1 << 30)
        libc.mallopt(trim_threshold, 2**31 - 1)


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies matrices in bfloat16 faster than in float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return bool(torch.cpu._is_amx_tile_supported())  # the only public sign of bf16 matrix units is private
