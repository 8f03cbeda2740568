"""One report on generators, old and new: the same held-out text, prompts, samplers and measures."""
