"""sslpl: semi-supervised loss prediction for deep active learning."""

import os

# Threads that spin while they wait stall every small kernel as soon as another process uses a core: six times
# slower augmentation beside one other job. It must be set before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
