"""Differential privacy: what a training step clips and adds, and what that costs."""
