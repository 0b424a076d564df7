"""Query strategies over arrays, without a run: `select` and `strategies`."""

from sslpl.select.selected_rows import SelectedRows, select, strategies

__all__ = ["SelectedRows", "select", "strategies"]
