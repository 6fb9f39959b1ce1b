"""Evaluation: likelihoods of held-out examples, and the latent units that a model uses.

Arrays in, arrays out. All measurements of a split use `examples.map_examples`: one number per
example, in memory that does not grow with the split.
"""
