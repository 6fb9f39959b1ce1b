"""The contract of a latent variable model as a test that users run, and a model known exactly.

`check_latent_model(model, example, key)` passes for every model that `iwae` can train and
measure. `LinearGaussian` has a closed form for everything, so it can judge every estimator.
"""

from iwae.testing.contract import check_latent_model
from iwae.testing.linear_gaussian import LinearGaussian

__all__ = ["LinearGaussian", "check_latent_model"]
