"""Oracles: a simulated annotator, and people who label through files or on a page that the run serves."""

from sslpl.oracle.browser import BrowserOracle
from sslpl.oracle.oracles import FileOracle, SimulatedOracle

__all__ = [
    "BrowserOracle",
    "FileOracle",
    "SimulatedOracle",
]
