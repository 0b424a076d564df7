"""The comparison of runs: read from folders, compared by statistics, shown as tables, figures and a page."""
