"""Reweighted wake-sleep: decoder and encoder learn from log densities of fixed particles."""

from typing import Literal

import jax
import jax.numpy as jnp

from iwae.inference.particles import Info, Particles, Sampler
from iwae.models.vae import AbstractLatentModel
from iwae.objectives.bounds import Reduction, iwae
from iwae.objectives.gradient_estimators import stop_gradients
from iwae.objectives.objective import Extra, Objective
from iwae.objectives.particle_objectives import bound
from iwae.objectives.surrogates import Coefficients, Estimator, joint_surrogate
from iwae.typing import Example, LogWeights, PRNGKey, Scalar

Phase = Literal["wake", "sleep", "both"]


def _wake_theta(_: Reduction, log_w: LogWeights) -> Coefficients:
    weights, zeros = jax.nn.softmax(log_w), jnp.zeros_like(log_w)
    return Coefficients(weights, zeros, zeros)


def _wake_theta_phi(_: Reduction, log_w: LogWeights) -> Coefficients:
    weights = jax.nn.softmax(log_w)
    return Coefficients(weights, jnp.zeros_like(log_w), -weights)


WAKE = Estimator(_wake_theta_phi, path=False)
"""sum_i w_i grad log p(x, z_i) and sum_i w_i grad log q(z_i|x), w normalised, z held fixed.

Wake-theta and wake-phi of reweighted wake-sleep (Bornschein & Bengio 2015, eqs. 4 and 8).
"""

WAKE_DECODER = Estimator(_wake_theta, path=False, score=False)
"""Wake-theta alone."""


def wake(sampler: Sampler, *, k: int) -> Objective:
    """sum_i w_i grad log p(x, z_i) for k particles of any sampler; the encoder gets no gradient.

    This estimates the gradient of log p(x) in the decoder's parameters by self-normalised weights
    (Ding & Freedman 2019, eq. 7). No gradient flows through the particles or their weights. The
    value is log mean w, a bound.
    """

    def terms(
        model: AbstractLatentModel, x: Example, key: PRNGKey, _: Extra
    ) -> tuple[Scalar, Info]:
        (z, log_w), info = jax.lax.stop_gradient(sampler(stop_gradients(model), x, key, k))
        return joint_surrogate(model, x, Particles(z, log_w)), info

    return Objective(terms, metrics=())


def rws(
    *,
    k: int,
    estimator: Estimator = WAKE,
    phase: Phase = "wake",
    chunk: int | None = None,
    backward: int | None = None,
) -> Objective:
    """Reweighted wake-sleep (Bornschein & Bengio 2015; Le et al. 2019). The value is IWAE-k.

    Args:
        k: particles of the wake phase.
        estimator: the gradient estimator of wake-theta and wake-phi.
        phase: source of the encoder's gradient: "wake" for the particles of the data, "sleep" for a
            draw from the model, "both" for the mean of the two.
        chunk, backward: as in `bound`.
    """
    of_phase = _of_phase(estimator, phase)
    awake = bound(iwae, k=k, estimator=of_phase, chunk=chunk, backward=backward)
    if phase == "wake":
        return awake
    share = 1.0 if phase == "sleep" else 0.5

    def terms(
        model: AbstractLatentModel, x: Example, key: PRNGKey, extra: Extra
    ) -> tuple[Scalar, Info]:
        wake_key, sleep_key = jax.random.split(key)
        value, info = awake.terms(model, x, wake_key, extra)
        log_q = asleep(model, sleep_key)
        return value + share * (log_q - jax.lax.stop_gradient(log_q)), info

    return Objective(terms, awake.init, awake.tune)


def _of_phase(estimator: Estimator, phase: Phase) -> Estimator:
    """The estimator with the encoder's gradient scaled by the share of the wake phase."""
    if phase == "wake":
        return estimator
    if phase == "sleep":
        return WAKE_DECODER

    def halved(reduction: Reduction, log_w: LogWeights) -> Coefficients:
        assert estimator.coefficients is not None  # noqa: S101 - wake-sleep has a table
        decoder, path, score = estimator.coefficients(reduction, log_w)
        return Coefficients(decoder, path / 2, score / 2)

    return estimator._replace(coefficients=halved)


def asleep(model: AbstractLatentModel, key: PRNGKey) -> Scalar:
    """log q(z|x) of a draw (z, x) ~ p, nats, whose gradient in q's parameters is sleep-phi."""
    z, x = jax.lax.stop_gradient(stop_gradients(model).sample(key))
    return model.posterior(x).log_prob(z)
