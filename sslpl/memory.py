"""Free and peak memory of a device or of the process."""

import os
import resource
from pathlib import Path

import torch

# Files with the limit and usage of the control group of this process, in versions 2 and 1 of the kernel's interface.
CGROUP_FILES = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)


def free_memory(device: torch.device) -> int:
    """Returns the free bytes of a device; on a CPU within the limit of this process's control group."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if (meminfo := Path("/proc/meminfo")).exists():
        free = int(meminfo.read_text().split("MemAvailable:")[1].split()[0]) * 1024
    for limit, usage in ((Path("/sys/fs/cgroup", a), Path("/sys/fs/cgroup", b)) for a, b in CGROUP_FILES):
        if limit.exists() and (limit_bytes := limit.read_text().strip()).isdigit():
            free = min(free, int(limit_bytes) - int(usage.read_text()))
    return max(0, free)


def peak_memory_mib(device: torch.device) -> float:
    """Returns the peak memory in MiB: of the device on CUDA, of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
