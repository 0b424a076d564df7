"""What the processes of one run say to one another.

Every process computes the same run. What costs is shared: a process works on its part and the parts are gathered or
summed, so that all go on with the same numbers; what must happen once is done by the first process, which tells the
others (`led`). No wrapper of torch's is needed for that: gradients are summed once a step, for both networks at once.
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
BROADCAST_ROWS = 8192  # of a table, sent at once
FAILURE, TRACEBACK = "failure", "traceback"  # where in the store a process leaves why it ends


class ProcessLost(Exception):
    """Another process of the run has ended before its time."""


class WorkRequest(NamedTuple):
    """What the others are to take part in while they wait for what they are told."""

    arguments: tuple[Any, ...]


@contextmanager
def detect_lost_process(world: World) -> Iterator[None]:
    """ProcessLost where the others cannot be reached, with what one of them may have left to say."""
    try:
        yield
    except RuntimeError as error:
        raise ProcessLost(published_failure(world) or world.lost_message) from error


def published_failure(world: World, kind: str = FAILURE) -> str:
    """Why a process ended, if it could say so, or its traceback."""
    with suppress(RuntimeError):  # the store may be gone too
        if world.store is not None and world.store.check([kind]):
            return str(world.store.get(kind).decode())
    return ""


def publish_failure(world: World, line: str, kind: str = FAILURE) -> None:
    """Leaves to the first process why this one ends, unless it is for the end of another; the first to do so stays."""
    with suppress(RuntimeError):
        if (
            world.store is not None
            and line != world.lost_message
            and not published_failure(world)
            and not published_failure(world, kind)
        ):
            world.store.set(kind, f"process {world.rank} of {world.size}: {line}")


def all_reduce_sum(world: World, tensors: Sequence[Tensor]) -> None:
    """Makes tensors of one type their sums over all processes, in one exchange."""
    if world.size == 1:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    with detect_lost_process(world):
        dist.all_reduce(flat)
    for tensor, total in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
        tensor.copy_(total.view(tensor.shape))


def all_gather(world: World, part: Tensor, lengths: Sequence[int]) -> Tensor:
    """The parts [length, ...] of all processes, one below the other."""
    if world.size == 1:
        return part
    longest = max(lengths)
    padded = part.new_zeros(longest, *part.shape[1:])
    padded[: len(part)] = part
    whole = [torch.empty_like(padded) for _ in lengths]
    with detect_lost_process(world):
        dist.all_gather(whole, padded)
    return torch.cat([rows[:length] for rows, length in zip(whole, lengths, strict=True)])


def broadcast_shards(world: World, part: Tensor, lengths: Sequence[int]) -> Iterator[Tensor]:
    """The parts [length, ...] of all processes, one after the other, some rows at a time."""
    for rank, length in enumerate(lengths):
        for start in range(0, length, BROADCAST_ROWS):
            span = slice(start, min(start + BROADCAST_ROWS, length))
            rows = part[span].clone() if rank == world.rank else part.new_empty(span.stop - start, *part.shape[1:])
            with detect_lost_process(world):
                dist.broadcast(rows, src=rank)
            yield rows


def all_gather_with_gradient(world: World, part: Tensor, lengths: Sequence[int]) -> Tensor:
    """The same, with the gradient of this process's part."""
    if world.size == 1:
        return part
    own, whole = world.shard(sum(lengths)), all_gather(world, part.detach(), lengths)
    return torch.cat([whole[: own.start], part, whole[own.stop :]])


def all_reduce_max(world: World, number: int | None) -> int | None:
    """The highest number that a process comes with; they meet on the CPU, so that no GPU is waited for."""
    if world.size == 1:
        return number
    highest = torch.tensor(number or 0)
    with detect_lost_process(world):
        dist.all_reduce(highest, dist.ReduceOp.MAX)
    return int(highest) or None


def broadcast_weights(world: World, *networks: nn.Module | None) -> None:
    """Gives all processes the weights of the first: the same already, unless machines differ in their arithmetic."""
    if world.size == 1:
        return
    with detect_lost_process(world), torch.no_grad():
        for network in networks:
            for value in network.state_dict().values() if network is not None else ():
                dense = value.contiguous()
                dist.broadcast(dense, src=0)
                value.copy_(dense)


def on_rank_zero(world: World, action: Callable[[], T], take_part: Callable[..., Any] | None = None) -> T:
    """What `action` returns or raises in the first process; the others wait for it, and take part as they are asked."""
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
    """Runs an action for all."""
    try:
        result = action()
    except ProcessLost:
        raise
    except Exception as error:
        # Others may not survive the way: their line does.
        broadcast_object(
            world, (None, error if isinstance(error, WaitingForLabels | UserError) else RuntimeError(str(error)))
        )
        raise
    broadcast_object(world, (result, None))
    return result


def request_work(world: World, *arguments: Any) -> None:
    """Asks those that wait for what an action returns to take part in something."""
    broadcast_object(world, WorkRequest(arguments))


def broadcast_object(world: World, message: Any = None) -> Any:
    """What the first process says."""
    box = [message]
    with detect_lost_process(world):
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    return box[0]


def offsets(lengths: Sequence[int]) -> list[int]:
    """Where each of some parts begins in the whole."""
    return [0, *accumulate(lengths[:-1])]
