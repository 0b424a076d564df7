"""BAIT: matches the Fisher information of the labeled images to that of the whole pool (Ash et al. 2021)."""

from torch import Generator

from sslpl.memory import free_memory
from sslpl.messages import print_notice
from sslpl.query.context import needs_subset
from sslpl.query.fisher_selection import binary_covariance, class_covariance, select_by_fisher, selection_bytes
from sslpl.query.selection import subsample
from sslpl.types import Count, Positive, QueryContext, Selection, UserError


@needs_subset
def bait(
    context: QueryContext,
    n: int,
    rng: Generator,
    *,
    regularization: Positive = 1.0,
    oversample: Count = 2,
    memory_gib: Positive = 8.0,
    subset: Count | None = None,
) -> Selection:
    """Minimizes tr(M^-1 F) greedily, forward to `oversample` x n images and back to n (BAIT: Ash et al., NeurIPS 2021).

    F and M are the Fisher information of the pool and of the labeled and selected images for the weights of the softmax
    layer, exactly, with ((classes - 1) x dimensions)^2 entries. `regularization` is 0.01 on CIFAR and 1 elsewhere in
    the published code, `oversample` 2. If it would take more than `memory_gib` (ours), the binary form is used
    instead, and a line says so: 8 GiB are enough for 37 classes and 512 dimensions. Each step, forward or back, costs
    O(images x dimensions x classes^2 + dimensions^2 x classes^3) in float64. With `subset` (ours), a random subset of
    that many unlabeled images replaces the pool.
    """
    context = subsample(context, n, subset, rng)
    images, dimensions = context.predictions.embedding.shape
    needed = selection_bytes(images, dimensions, max(1, context.num_classes - 1)) / 2**30
    covariance = class_covariance
    if needed > memory_gib:
        covariance = binary_covariance
        limit = f"more than query.memory_gib={memory_gib:g}: uses the binary form (query=bait_binary)"
        print_notice(f"bait: the exact form needs {needed:,.1f} GiB, {limit}")
    elif needed > (free := free_memory(context.device) / 2**30):
        raise UserError(
            f"query.memory_gib={memory_gib:g}: BAIT needs {needed:,.1f} GiB, and {free:.1f} GiB are free on "
            f"{context.device}; a lower value selects by the binary form"
        )
    return select_by_fisher(context, n, rng, covariance, regularization, oversample)
