"""What a run has memorised of its training text, measured by attacking it."""
