"""Rules that end a run before its last cycle, each a function of what the run has measured so far."""

from collections.abc import Sequence

COMPARED = 3  # comparisons of successive models over which the agreement is averaged


def predictions_are_stable(kappas: Sequence[float | None], threshold: float) -> bool:
    """True if successive models agree: the mean of the last three kappas is above the threshold.

    Each is Cohen's kappa of the predictions of two successive models on a fixed set (Bloodgood and Vijay-Shanker 2009,
    with their window of three).
    """
    recent = [kappa for kappa in kappas[-COMPARED:] if kappa is not None]
    return len(recent) == COMPARED and sum(recent) / COMPARED > threshold


def gain_is_small(expected_gain: float, threshold: float) -> bool:
    """True if the next batch is expected to raise the accuracy by less than the threshold (0 to 1)."""
    return expected_gain < threshold


def batch_exceeds_seconds(spent: float, labeled: int, per_cycle: int, available: float) -> bool:
    """True if the next batch, at the mean time of a label so far, would take more than the seconds that are left."""
    return spent + spent / labeled * per_cycle > available
