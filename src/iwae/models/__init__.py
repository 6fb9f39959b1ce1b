"""Latent variable models: what one is, the autoencoders of the papers, and kinds of data."""
