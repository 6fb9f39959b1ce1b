"""The scikit-learn interface: an estimator built on the other modules."""

from iwae.sklearn.estimator import ImportanceWeightedAutoencoder

__all__ = ["ImportanceWeightedAutoencoder"]
