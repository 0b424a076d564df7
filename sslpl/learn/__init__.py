"""What the phases learn and measure with: steps, losses, optimizers, inference, metrics."""
