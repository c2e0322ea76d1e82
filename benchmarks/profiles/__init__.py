"""Published latencies, the networks that they are of, and the fit of the shipped device profiles."""
