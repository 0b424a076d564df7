"""Oracles: a simulated annotator, and people who label through files."""

from sslpl.oracle.oracles import FileOracle, SimulatedOracle

__all__ = [
    "FileOracle",
    "SimulatedOracle",
]
