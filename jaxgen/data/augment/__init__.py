"""More training text from the text there is."""
