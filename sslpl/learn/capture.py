"""Training steps as CUDA graphs: one launch instead of a thousand."""

from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor

WARM_UP = 3  # steps of each kind that run as usual first: libraries choose their kernels, memory is laid out


class CapturedSteps:
    """Runs a step (views, labels, detached -> sums) as usual a few times for each batch size, then as a CUDA graph.

    The first steps are real ones, so nothing is trained twice and nothing has to be undone (whole-network
    capture after PyTorch's notes on CUDA graphs; the warm-up on real data is ours).
    """

    def __init__(self, step: Callable[[Tensor, Tensor, bool], Tensor]) -> None:
        self.step = step
        self.seen: Counter[tuple[int, bool]] = Counter()
        self.captured: dict[tuple[int, bool], tuple[torch.cuda.CUDAGraph, Tensor, Tensor, Tensor]] = {}
        self.stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, views: Tensor, labels: Tensor, detached: bool) -> Tensor:
        """The sums of the step; valid until the next step of the same kind."""
        key = len(views), detached
        self.seen[key] += 1
        if self.seen[key] <= WARM_UP:
            return self._aside(views, labels, detached)
        if key not in self.captured:
            self.captured[key] = self._capture(
                views.clone(memory_format=torch.preserve_format), labels.clone(), detached
            )
        graph, static_views, static_labels, sums = self.captured[key]
        static_views.copy_(views)
        static_labels.copy_(labels)
        graph.replay()
        return sums

    def _aside(self, views: Tensor, labels: Tensor, detached: bool) -> Tensor:
        """One step as usual, on a stream of its own as a capture needs it."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            sums = self.step(views, labels, detached)
        torch.cuda.current_stream().wait_stream(self.stream)
        return sums

    def _capture(
        self, views: Tensor, labels: Tensor, detached: bool
    ) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor, Tensor]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
            sums = self.step(views, labels, detached)
        return graph, views, labels, sums
