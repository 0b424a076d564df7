"""Compare runs: read their folders, compute statistics and write tables, figures and a page."""
