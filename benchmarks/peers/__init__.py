"""Other tools on the same models, samples and runtime, for comparison."""
