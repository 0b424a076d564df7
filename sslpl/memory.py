"""How much memory is free, and how much was used at most."""

import os
import resource
from pathlib import Path

import torch


def peak_memory_mib(device: torch.device) -> float:
    """Highest memory so far: of the device on CUDA, of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def free_memory(device: torch.device) -> int:
    """Memory that is free on a device, within the limit of the control group that this process runs in."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if (meminfo := Path("/proc/meminfo")).exists():
        free = int(meminfo.read_text().split("MemAvailable:")[1].split()[0]) * 1024
    groups = {"memory.max": "memory.current", "memory/memory.limit_in_bytes": "memory/memory.usage_in_bytes"}
    for limit, usage in ((Path("/sys/fs/cgroup", a), Path("/sys/fs/cgroup", b)) for a, b in groups.items()):
        if limit.exists() and (most := limit.read_text().strip()).isdigit():
            free = min(free, int(most) - int(usage.read_text()))
    return free


def available_memory() -> int:
    """Bytes of the host's memory that are available to this process, as far as the system says."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        found.append(int(lines["MemAvailable"].split()[0]) * 1024)
        found.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError, KeyError):  # another system, or no limit
        pass
    return max(0, min(found))
