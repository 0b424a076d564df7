"""Clustering and nearest neighbors for the query strategies, in memory linear in the pool."""
