"""Smaller models with receipts: quantise and prune layer by layer, and a ladder of what it costs.

`codes`, `sweep`, `scaling` and `masks` are pure functions over one matrix and the statistics of its
inputs; `layerwise` collects these, `recipe` says what is done, `write` does it into a folder.
"""
