"""How likely a model makes each held-out example, and which of its latent units it uses.

Arrays in, arrays out. Everything measured on a split goes through `examples.map_examples`, one
number per example, in memory that does not grow with the split.
"""
