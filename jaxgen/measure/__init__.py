"""Measures of text and of generators: quality, diversity, stability, speed, each with its interval.

Functions take texts or token ids and return plain floats; None says that a value is undefined (one
text has no self-BLEU), never NaN.
"""
