"""Trackers, which send a run's metrics to Weights & Biases or nowhere."""

from sslpl.tracking.trackers import NoTracker, WandbTracker

__all__ = [
    "NoTracker",
    "WandbTracker",
]
