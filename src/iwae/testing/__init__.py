"""The contract of a latent variable model as a test, and a model known in closed form.

`check_latent_model(model, example, key)` passes for every model that `iwae` can train and
measure. `LinearGaussian` has a closed form for everything, so it can test every estimator.
"""

from iwae.testing.contract import check_latent_model
from iwae.testing.linear_gaussian import LinearGaussian

__all__ = ["LinearGaussian", "check_latent_model"]
