"""Oracles: labels of a simulated annotator, or of people by way of files."""

from sslpl.oracle.oracles import FileOracle, SimulatedOracle

__all__ = [
    "FileOracle",
    "SimulatedOracle",
]
