"""Oracles: one or several simulated annotators, and people who label through files or on a page that the run serves."""

from sslpl.oracle.browser import BrowserOracle
from sslpl.oracle.crowd import CrowdOracle
from sslpl.oracle.oracles import FileOracle, SimulatedOracle

__all__ = [
    "BrowserOracle",
    "CrowdOracle",
    "FileOracle",
    "SimulatedOracle",
]
