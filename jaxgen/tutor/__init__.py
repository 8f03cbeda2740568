"""Exercises whose answers are checked by rules, and what a learner has done of them."""
