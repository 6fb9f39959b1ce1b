"""One objective for the decoder and another for the encoder."""

import equinox as eqx
import jax
from jaxtyping import PyTree

from iwae.inference.particles import Info
from iwae.models.posteriors import Posterior
from iwae.models.vae import VAE, AbstractLatentModel
from iwae.objectives.gradient_estimators import stop_gradients
from iwae.objectives.objective import Extra, Objective
from iwae.typing import Example, Latents, PRNGKey, Scalar


class Halves(AbstractLatentModel):
    """p(x, z) of one model and q(z|x) of another."""

    generative: AbstractLatentModel
    recognition: AbstractLatentModel

    def posterior(self, x: Example) -> Posterior:
        """q(z|x)."""
        return self.recognition.posterior(x)

    def log_joint(self, x: Example, z: Latents) -> Scalar:
        """log p(x, z), nats."""
        return self.generative.log_joint(x, z)

    def sample(self, key: PRNGKey) -> tuple[Latents, Example]:
        """Draw (z, x) ~ p by ancestral sampling."""
        return self.generative.sample(key)


def halves(
    generative: AbstractLatentModel, recognition: AbstractLatentModel
) -> AbstractLatentModel:
    """The decoder of one model with the encoder of another; a VAE if both are.

    A VampPrior remains that of the encoder of the generative model.
    """
    if isinstance(generative, VAE) and isinstance(recognition, VAE):
        generative = generative.settled()
        return eqx.tree_at(lambda model: model.encoder, generative, recognition.encoder)
    return Halves(generative, recognition)


def split_halves(*, decoder: Objective, encoder: Objective) -> Objective:
    """One objective for p(x, z) and another for q(z|x), each with the other half held fixed.

    Both use the same key and therefore the same importance samples. The value is that of the
    decoder's objective.
    """

    def terms(
        model: AbstractLatentModel, x: Example, key: PRNGKey, extra: Extra
    ) -> tuple[Scalar, Info]:
        fixed, (learned, tuned) = stop_gradients(model), extra
        of_p, of_q = (Extra(*pair) for pair in zip(learned, tuned, strict=True))
        key, same = jax.random.clone(key), jax.random.clone(key)
        value, info = decoder.terms(halves(model, fixed), x, key, of_p)
        encoder_value, encoder_info = encoder.terms(halves(fixed, model), x, same, of_q)
        value += encoder_value - jax.lax.stop_gradient(encoder_value)
        return value, {**info, "encoder": encoder_info}

    def init() -> Extra:
        pairs = decoder.init(), encoder.init()
        return Extra(tuple(e.learned for e in pairs), tuple(e.tuned for e in pairs))

    def tune(tuned: PyTree, info: Info) -> PyTree:
        return decoder.tune(tuned[0], info), encoder.tune(tuned[1], info["encoder"])

    return Objective(terms, init, tune, decoder.metrics)
