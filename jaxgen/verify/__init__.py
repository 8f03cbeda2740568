"""Promises checked on the user's own machine and config, with the proof or the first difference."""
