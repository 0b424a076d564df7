"""Where a run's numbers go besides its own folder: nowhere, or to Weights & Biases."""

from sslpl.tracking.trackers import NoTracker, WandbTracker

__all__ = [
    "NoTracker",
    "WandbTracker",
]
