"""Adapters: a few numbers beside the weights of a model, which are trained in their place."""
