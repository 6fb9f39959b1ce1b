"""Train importance weighted autoencoders, and measure how likely they make held-out data."""
