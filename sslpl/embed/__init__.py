"""Embeddings of a dataset as a file: `python -m sslpl.embed`."""
