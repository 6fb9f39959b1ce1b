"""The scikit-learn way in: an estimator over the functions of the modules above."""

from iwae.estimator.autoencoder import ImportanceWeightedAutoencoder

__all__ = ["ImportanceWeightedAutoencoder"]
