"""Starting densities of chains: q(z|x), or the prior of a model that defines it."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import equinox as eqx

from iwae.errors import UserError
from iwae.models.posteriors import Posterior
from iwae.models.vae import AbstractLatentModel
from iwae.typing import Example, Latents, PRNGKey, Scalar


@runtime_checkable
class WithPrior(Protocol):
    """A model that defines the density of its prior."""

    def sample(self, key: PRNGKey) -> tuple[Latents, Example]:
        """Draw (z, x) ~ p by ancestral sampling."""

    def log_prior(self, z: Latents) -> Scalar:
        """log p(z), nats, over all layers."""


class Prior(eqx.Module):
    """p(z) of a model as a starting density; its draws are those of `model.sample`."""

    model: WithPrior

    def sample(self, key: PRNGKey) -> Latents:
        """Draw z ~ p(z)."""
        return self.model.sample(key)[0]

    def log_prob(self, z: Latents) -> Scalar:
        """log p(z), nats."""
        return self.model.log_prior(z)


def _prior(model: AbstractLatentModel, x: Example) -> Posterior:  # noqa: ARG001
    if not isinstance(model, WithPrior):
        raise UserError(
            f"a {type(model).__name__} does not define its prior: add a method "
            "log_prior(z) that returns log p(z) in nats, or start at the posterior"
        )
    return Prior(model)


STARTS: dict[str, Callable[[AbstractLatentModel, Example], Posterior]] = {
    "posterior": lambda model, x: model.posterior(x),
    "prior": _prior,
}
"""Starting densities by name: (model, x) -> a density with `sample` and `log_prob`."""


def start_density(name: str, model: AbstractLatentModel, x: Example) -> Posterior:
    """The starting density called `name` for one example.

    Raises:
        UserError: for an unknown name, or a model that does not define its prior.
    """
    if name not in STARTS:
        raise UserError(f"no start {name!r}; known: {', '.join(STARTS)}")
    return STARTS[name](model, x)
