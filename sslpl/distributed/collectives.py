"""Collective communication between the processes of a run.

Every process computes the same run. Expensive work is sharded, and the results are gathered or summed, so that all
ranks continue with the same numbers. What must happen once runs on rank 0, which broadcasts the result
(`on_rank_zero`). The gradients of both networks are summed in one all-reduce per step, without a wrapper of torch's.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import accumulate
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sslpl.distributed.world import World
from sslpl.types import UserError, WaitingForLabels

T = TypeVar("T")
BROADCAST_ROWS = 8192  # rows of a table per broadcast
FAILURE, TRACEBACK = "failure", "traceback"  # keys of the store under which a process publishes why it ends


class ProcessLost(Exception):
    """Raised when another process of the run has ended prematurely."""


class WorkRequest(NamedTuple):
    """A request from rank 0 to the waiting ranks to take part in a computation."""

    arguments: tuple[Any, ...]


@contextmanager
def detect_lost_process(world: World) -> Iterator[None]:
    """Turns communication errors into ProcessLost, with the failure that another process published, if any."""
    try:
        yield
    except RuntimeError as error:
        raise ProcessLost(published_failure(world) or world.lost_message) from error


def published_failure(world: World, kind: str = FAILURE) -> str:
    """Returns the published failure (or traceback) of a process; an empty string if there is none."""
    with suppress(RuntimeError):  # the store may be gone too
        if world.store is not None and world.store.check([kind]):
            return str(world.store.get(kind).decode())
    return ""


def publish_failure(world: World, line: str, kind: str = FAILURE) -> None:
    """Publishes why this process ends, unless another has already done so or its loss is the reason."""
    with suppress(RuntimeError):
        published = published_failure(world) or published_failure(world, kind)
        if world.store is not None and line != world.lost_message and not published:
            world.store.set(kind, f"process {world.rank} of {world.size}: {line}")


def all_reduce_sum(world: World, tensors: Sequence[Tensor]) -> None:
    """Sums tensors of one type over all processes in place, in one all-reduce."""
    if world.size == 1:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    with detect_lost_process(world):
        dist.all_reduce(flat)
    for tensor, total in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(total.view(tensor.shape))


def all_gather(world: World, part: Tensor, lengths: Sequence[int]) -> Tensor:
    """Returns the concatenated parts [length, ...] of all processes."""
    if world.size == 1:
        return part
    longest = max(lengths)
    padded = part.new_zeros(longest, *part.shape[1:])
    padded[: len(part)] = part
    gathered = [torch.empty_like(padded) for _ in lengths]
    with detect_lost_process(world):
        dist.all_gather(gathered, padded)
    return torch.cat([rows[:length] for rows, length in zip(gathered, lengths, strict=True)])


def broadcast_shards(world: World, part: Tensor, lengths: Sequence[int]) -> Iterator[Tensor]:
    """Yields the parts [length, ...] of all processes in rank order, a block of rows at a time."""
    for rank, length in enumerate(lengths):
        for start in range(0, length, BROADCAST_ROWS):
            span = slice(start, min(start + BROADCAST_ROWS, length))
            rows = part[span].clone() if rank == world.rank else part.new_empty(span.stop - start, *part.shape[1:])
            with detect_lost_process(world):
                dist.broadcast(rows, src=rank)
            yield rows


def all_gather_with_gradient(world: World, part: Tensor, lengths: Sequence[int]) -> Tensor:
    """Returns the same as `all_gather`, differentiable with respect to the local part."""
    if world.size == 1:
        return part
    local, gathered = world.shard(sum(lengths)), all_gather(world, part.detach(), lengths)
    return torch.cat([gathered[: local.start], part, gathered[local.stop :]])


def all_reduce_max(world: World, number: int | None) -> int | None:
    """Returns the maximum over all processes (None counts as 0); on the CPU, without synchronizing the GPU."""
    if world.size == 1:
        return number
    highest = torch.tensor(number or 0)
    with detect_lost_process(world):
        dist.all_reduce(highest, dist.ReduceOp.MAX)
    return int(highest) or None


def broadcast_weights(world: World, *networks: nn.Module | None) -> None:
    """Broadcasts the weights of rank 0; they differ only if the machines round differently."""
    if world.size == 1:
        return
    with detect_lost_process(world), torch.no_grad():
        for network in networks:
            for value in network.state_dict().values() if network is not None else ():
                dense = value.contiguous()
                dist.broadcast(dense, src=0)
                value.copy_(dense)


def on_rank_zero(world: World, action: Callable[[], T], take_part: Callable[..., Any] | None = None) -> T:
    """Runs `action` on rank 0 and returns its result, or raises its exception, on every rank.

    Meanwhile the other ranks call `take_part` with the arguments of each `request_work`.
    """
    if world.size == 1:
        return action()
    if world.is_rank_zero:
        return run_and_broadcast(world, action)
    while isinstance(message := broadcast_object(world), WorkRequest):
        assert take_part is not None
        take_part(*message.arguments)
    result, error = message
    if error is not None:
        raise error
    returned: T = result
    return returned


def run_and_broadcast(world: World, action: Callable[[], T]) -> T:
    """Runs `action` and broadcasts its result or exception."""
    try:
        result = action()
    except ProcessLost:
        raise
    except Exception as error:
        # Not every exception can be pickled: send others as a RuntimeError with their message.
        sendable = error if isinstance(error, WaitingForLabels | UserError) else RuntimeError(str(error))
        broadcast_object(world, (None, sendable))
        raise
    broadcast_object(world, (result, None))
    return result


def request_work(world: World, *arguments: Any) -> None:
    """Asks the ranks that wait in `on_rank_zero` to call `take_part` with these arguments."""
    broadcast_object(world, WorkRequest(arguments))


def broadcast_object(world: World, message: Any = None) -> Any:
    """Returns the object that rank 0 broadcasts."""
    objects = [message]
    with detect_lost_process(world):
        dist.broadcast_object_list(objects, src=0, device=torch.device("cpu"))
    return objects[0]


def offsets(lengths: Sequence[int]) -> list[int]:
    """Returns the start of each part in their concatenation."""
    return [0, *accumulate(lengths[:-1])]
