"""Backbones and the loss prediction module."""
