"""From a command line to runs: planned, run here or handed to other processes, resumed, finished."""
