"""Oracles: simulated annotators, and people who label through files, on a page of the run or in Label Studio."""

from sslpl.oracle.browser import BrowserOracle
from sslpl.oracle.crowd import CrowdOracle
from sslpl.oracle.label_studio_oracle import LabelStudioOracle
from sslpl.oracle.oracles import FileOracle, SimulatedOracle

__all__ = [
    "BrowserOracle",
    "CrowdOracle",
    "FileOracle",
    "LabelStudioOracle",
    "SimulatedOracle",
]
