"""How much memory is free, and how much was used at most."""

import os
import resource
from pathlib import Path

import torch

# Limit and usage of the control group of this process, in either version of the kernel's interface.
CONTROL_GROUPS = (
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device; on a CPU within the limit of the control group of this process."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if (meminfo := Path("/proc/meminfo")).exists():
        free = int(meminfo.read_text().split("MemAvailable:")[1].split()[0]) * 1024
    for limit, usage in ((Path("/sys/fs/cgroup", a), Path("/sys/fs/cgroup", b)) for a, b in CONTROL_GROUPS):
        if limit.exists() and (most := limit.read_text().strip()).isdigit():
            free = min(free, int(most) - int(usage.read_text()))
    return max(0, free)


def peak_memory_mib(device: torch.device) -> float:
    """Highest memory so far: of the device on CUDA, of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
