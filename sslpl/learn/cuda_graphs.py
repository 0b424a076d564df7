"""Training steps as CUDA graphs: one launch per step instead of about a thousand."""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sslpl.seeds import global_generators
from sslpl.setup import Setup
from sslpl.state import State

WARM_UP = 3  # eager steps of each kind before the capture: libraries select kernels, memory is allocated


class Captured(NamedTuple):
    """A captured step, and the tensors that it reads and writes at each replay."""

    graph: torch.cuda.CUDAGraph
    inputs: list[Tensor]
    sums: Tensor


class CapturedSteps:
    """Runs a step (inputs, kind -> sums) eagerly a few times for each kind and size of inputs, then as a CUDA graph.

    The warm-up steps are real training steps, so nothing has to be undone (whole-network capture follows PyTorch's
    notes on CUDA graphs; the warm-up on real data is ours). If a step cannot be captured, `fall_back` is called once
    with the reason, and all further steps run eagerly.
    """

    def __init__(self, step: Callable[[Sequence[Tensor], bool], Tensor], fall_back: Callable[[str], None]) -> None:
        self.step, self.fall_back = step, fall_back
        self.seen: Counter[Hashable] = Counter()
        self.captured: dict[Hashable, Captured] = {}
        self.failed = False

    @cached_property
    def stream(self) -> torch.cuda.Stream:
        """The stream on which steps are warmed up and captured: the run's own, if it has one, else a new one.

        A graph uses the workspaces of its stream, so that two streams of one run need no more than one of each; the
        default stream cannot be captured.
        """
        current = torch.cuda.current_stream()
        return torch.cuda.Stream() if current == torch.cuda.default_stream() else current  # type: ignore[no-untyped-call]

    @cached_property
    def pool(self) -> Any:
        """The memory pool shared by all graphs, of which only one runs at a time."""
        return torch.cuda.graph_pool_handle()

    def __call__(self, inputs: Sequence[Tensor], kind: bool = False) -> Tensor:
        """Runs a step and returns its sums, which are valid until the next step of the same kind."""
        key = tuple(tensor.shape for tensor in inputs), kind
        self.seen[key] += 1
        if self.seen[key] <= WARM_UP and not self.failed:
            return self._run_eagerly(inputs, kind)
        if key not in self.captured and not self.failed:
            self._try_to_capture(key, inputs, kind)
        if self.failed:
            return self.step(inputs, kind)
        captured = self.captured[key]
        torch._foreach_copy_(captured.inputs, list(inputs))
        captured.graph.replay()
        return captured.sums

    def _run_eagerly(self, inputs: Sequence[Tensor], kind: bool) -> Tensor:
        """Runs one step eagerly, on the side stream that a later capture requires."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            sums = self.step(inputs, kind)
        torch.cuda.current_stream().wait_stream(self.stream)
        return sums

    def _try_to_capture(self, key: Hashable, inputs: Sequence[Tensor], kind: bool) -> None:
        """Captures a step without running it, or falls back to eager steps, which raise genuine errors of the step."""
        static = [tensor.clone(memory_format=torch.preserve_format) for tensor in inputs]
        rng_state = torch.default_generator.get_state()
        try:
            self.captured[key] = self._capture(static, kind)
            if not torch.equal(torch.default_generator.get_state(), rng_state):
                raise RuntimeError("a layer draws random numbers on the CPU, which a graph would repeat")
        except Exception as error:
            self.failed = True
            self.captured.clear()
            torch.default_generator.set_state(rng_state)
            release_generators(static[0].device)
            self.fall_back(first_line(error))

    def _capture(self, inputs: list[Tensor], kind: bool) -> Captured:
        graph = torch.cuda.CUDAGraph()
        # A failed capture leaves its stream as the current one: the outer context restores the previous stream.
        with (
            torch.cuda.stream(torch.cuda.current_stream()),
            # Another thread, such as one that reads images, may call CUDA meanwhile.
            torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"),
        ):
            sums = self.step(inputs, kind)
        return Captured(graph, inputs, sums)


def fall_back(setup: Setup, state: State, reason: str) -> None:
    """Prints why steps cannot be captured; later phases do not try again."""
    state.uncapturable = True
    setup.announce(f"training steps cannot be CUDA graphs ({reason}): they run eagerly, which is slower")


def first_line(error: BaseException) -> str:
    """Returns the first line of the root cause: the error that ends a failed capture only reports the failure."""
    while error.__context__ is not None:
        error = error.__context__
    return str(error).partition("\n")[0] or type(error).__name__


def release_generators(device: torch.device) -> None:
    """Detaches a GPU's global generator from a failed capture, which would otherwise still track its draws."""
    for generator in global_generators(device):
        if generator.device.type == "cuda":
            generator.graphsafe_set_state(generator.clone_state())
