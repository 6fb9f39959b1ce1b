"""Evaluation: likelihoods of held-out examples, and the latent units that a model uses.

Arrays in, arrays out. Everything measured on a split goes through `examples.map_examples`, one
number per example, in memory that does not grow with the split.
"""
