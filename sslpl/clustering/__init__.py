"""Clustering and nearest neighbors for pools of any size, without pool x pool matrices."""
