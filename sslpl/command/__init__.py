"""From a command line to its runs: composed, checked, planned, run here or handed to other processes."""
