"""Recording of a run: folder, status, checkpoints, tables, plots and progress."""
