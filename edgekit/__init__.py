"""edgekit: from a trained model to a board, within a latency, memory and accuracy budget."""

__version__ = "0.1.0"
