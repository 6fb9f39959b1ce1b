"""Latent variable models: the interface, the autoencoders of the papers, and kinds of data."""
