"""sslpl: semi-supervised loss prediction for deep active learning."""

import os

__version__ = "0.2.0"

# Both must be set before torch is imported. Tensors above 2 MiB on huge pages: a quarter less for an augmentation.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
# Threads that spin while they wait stall every small kernel as soon as another process uses a core: six times
# slower augmentation beside one other job.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
