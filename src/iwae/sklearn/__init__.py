"""The scikit-learn way in: an estimator over the functions of the modules above."""

from iwae.sklearn.estimator import ImportanceWeightedAutoencoder

__all__ = ["ImportanceWeightedAutoencoder"]
