"""The training and evaluation code of the phases: steps, losses, optimizers, inference, metrics."""
