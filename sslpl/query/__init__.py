"""Query strategies: scorers, selectors, and those that are neither."""
