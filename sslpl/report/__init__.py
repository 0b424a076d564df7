"""Compares runs: reads their folders, computes statistics and writes tables, figures and a page."""
