"""A job at work: its measured and cached steps, and what they offer to a plan."""
