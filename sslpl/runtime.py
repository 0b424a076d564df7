"""Device, threads and output of a run: settings that are no part of its id."""

import ctypes
import os
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field

from sslpl.distributed.world import SINGLE_PROCESS, World
from sslpl.types import Count, PositiveOrZero, UserError

SMALL_IMAGE = 16 * 16  # pixels up to which a second thread costs more than it saves


_DEVICES = "'auto', 'cpu' or 'cuda', or one of several GPUs as 'cuda:1'"
Device = Annotated[
    str,
    Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$", description=_DEVICES),
]


@dataclass(frozen=True)
class Runtime:
    """Device, threads, output folder and progress of a run (config group `runtime`)."""

    device: Device = "auto"
    jobs_per_gpu: Count = 1  # in a sweep whose launcher runs several jobs on this machine
    compile: Literal["auto", True, False] = "auto"
    num_threads: Count | None = None  # None: torch's default, but 1 for small images
    deterministic: bool = False
    checkpoint_minutes: PositiveOrZero = 5.0  # 0: after every step
    output_dir: str = "outputs"
    progress: Literal["auto", "live", "plain", "none"] = "auto"
    dry_run: bool = False
    held_gib: PositiveOrZero | None = None  # None: see `place_images` in sslpl/data/images.py

    def prepare(self, world: World = SINGLE_PROCESS) -> torch.device:
        """Sets up torch for this process and returns its device; UserError if that device does not exist."""
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise UserError(f"runtime.device={self.device}: no CUDA device was found; use runtime.device=cpu or auto")
        name = "cuda" if self.device == "auto" and torch.cuda.is_available() else self.device
        device = torch.device("cpu" if name == "auto" else name)
        if world.size > 1:
            device = self.process_device(world, device)
        keep_freed_memory()
        if self.deterministic:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        if self.deterministic != torch.are_deterministic_algorithms_enabled():  # the call alone takes seconds
            torch.use_deterministic_algorithms(self.deterministic)
        torch.backends.cudnn.benchmark = not self.deterministic
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high")
            choose_gpu(device)
        return device

    def process_device(self, world: World, device: torch.device) -> torch.device:
        """Returns the device of one of several processes; UserError for options that these do not support."""
        if self.compile is True:
            raise UserError("runtime.compile=true: must be auto or false with several processes")
        if ":" in self.device:
            raise UserError(f"runtime.device={self.device}: must be auto, cpu or cuda with several processes")
        return torch.device(device.type, world.local_rank) if device.type == "cuda" else device

    def set_threads(self, shape: tuple[int, int, int], world: World = SINGLE_PROCESS) -> None:
        """Sets the number of threads of this process, for images of a shape (channels, height, width).

        The processes of one machine share its cores; torchrun would give each of them a single thread.
        """
        if self.num_threads is not None:
            torch.set_num_threads(self.num_threads)
        elif shape[1] * shape[2] <= SMALL_IMAGE:
            torch.set_num_threads(1)
        elif world.size > 1:
            torch.set_num_threads(threads_per_job(world.local_size, os.cpu_count() or 1))


def threads_per_job(jobs: int, cores: int) -> int:
    """Returns the number of cores per job, at least 1."""
    return max(1, cores // max(jobs, 1))


def choose_gpu(device: torch.device) -> None:
    """Makes a GPU the default of this process; UserError if its index is too large."""
    count = torch.cuda.device_count()
    if device.index is not None and device.index >= count:
        raise UserError(f"runtime.device={device}: must be below cuda:{count}, the number of GPUs that can be seen")
    if device.index is not None:
        torch.cuda.set_device(device)


def keep_freed_memory() -> None:
    """Makes glibc reuse the memory of freed large tensors, because page faults cost more than filling the tensors."""
    mmap_threshold, trim_threshold = -3, -1
    with suppress(AttributeError, OSError, TypeError):  # raised with another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(mmap_threshold, 1 << 30)
        libc.mallopt(trim_threshold, 2**31 - 1)


def has_bfloat16(device: torch.device) -> bool:
    """Returns True if the device multiplies matrices faster in bfloat16 than in float32.

    A CPU does if it has AMX or AVX512-BF16.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    # The public `torch.cpu.get_capabilities` is missing in the oldest versions of torch that sslpl runs with.
    return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
