"""What a run leaves and shows: folder, status, checkpoints, tables, plots, progress."""
