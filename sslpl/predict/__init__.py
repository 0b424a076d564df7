"""Prediction of new images with a finished run: `python -m sslpl.predict`."""
