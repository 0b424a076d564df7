"""Datasets, batched augmentation on the device, batches."""
