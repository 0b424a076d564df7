"""Plans the runs of a command line, executes them here or in other processes, resumes them and records their outcome."""
