"""A Jetson for tests: a stand-in for trtexec that takes what a release takes and writes what it writes, and a board
around it.
"""

from pathlib import Path


def stand_in_path() -> Path:
    """The stand-in's source: a program that imports nothing of the tests."""
    return Path(__file__).parent / "stand_in.py"
