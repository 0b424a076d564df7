"""The state of torch that all threads of a process share, or that a new thread starts with."""

from typing import NamedTuple, Self

import torch
from torch import Generator, Tensor


class ProcessState(NamedTuple):
    """Settings and global random generators of torch, which every run of a process sets for itself.

    What torch keeps for each thread is not part of it: grad mode, autocast, the current stream and device.
    """

    threads: int  # torch keeps it for each thread, but a new thread takes it from the last call in any other
    deterministic: bool
    cudnn_benchmark: bool
    matmul_precision: str
    generator: Tensor  # state of the CPU's generator
    cuda_generators: tuple[Generator, ...]  # generators that share the state of each GPU's; empty before CUDA is used

    @classmethod
    def current(cls) -> Self:
        """Returns the state of this process, as this thread sees it."""
        return cls(
            torch.get_num_threads(),
            torch.are_deterministic_algorithms_enabled(),
            torch.backends.cudnn.benchmark,
            torch.get_float32_matmul_precision(),
            torch.default_generator.get_state(),
            tuple(generator.graphsafe_get_state() for generator in cuda_generators()),
        )

    def restore(self) -> None:
        """Sets this process, and this thread, to the state.

        A GPU's generator gets back the very tensors from which captured CUDA graphs of the run read seed and offset.
        """
        if torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        if torch.are_deterministic_algorithms_enabled() != self.deterministic:  # the call alone takes seconds
            torch.use_deterministic_algorithms(self.deterministic)
        if torch.backends.cudnn.benchmark != self.cudnn_benchmark:
            torch.backends.cudnn.benchmark = self.cudnn_benchmark
        if torch.get_float32_matmul_precision() != self.matmul_precision:
            torch.set_float32_matmul_precision(self.matmul_precision)
        torch.default_generator.set_state(self.generator)
        for generator, saved in zip(cuda_generators(), self.cuda_generators, strict=False):
            generator.graphsafe_set_state(saved)

    def copy(self) -> Self:
        """Returns an equal state with GPU generators of its own, because two graphs must not share their tensors."""
        return self._replace(cuda_generators=tuple(generator.clone_state() for generator in self.cuda_generators))


def cuda_generators() -> tuple[Generator, ...]:
    """Returns the global generator of each GPU; none before this process has used CUDA."""
    is_initialized = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return tuple(torch.cuda.default_generators) if is_initialized else ()
