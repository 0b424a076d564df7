"""Compares runs: folders are read into runs, runs are gathered into lines and boards, boards are measured and shown."""
