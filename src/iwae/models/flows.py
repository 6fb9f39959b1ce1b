"""Coupling flows that map N(0, I) to a learned density, from FlowJAX."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from iwae.errors import UserError
from iwae.typing import PRNGKey, Scalar

WIDTH = 100
"""Units of the only hidden layer of each coupling network."""

LARGEST_LOG_SCALE = 2.0
"""Bound of a layer's log scales, so that float32 can invert many layers."""


class Flow(eqx.Module):
    """A RealNVP (Dinh et al. 2017, arXiv 1605.08803), optionally given a condition.

    Each coupling layer keeps half of the units and maps the others by an affine function, whose
    parameters a network computes from the kept units and the condition. The initial flow is the
    identity.

    Only the arrays of the networks are stored: FlowJAX's functions, which differ between two flows
    of the same sizes, would cause recompilation.

    Args:
        size: number of units, at least 2.
        layers: number of coupling layers.
        n_condition: size of the condition; 0 for none.
        key: for the hidden layers of the networks.

    Raises:
        UserError: for fewer than 2 units.
    """

    networks: PyTree[Float[Array, "..."]]
    size: int = eqx.field(static=True)
    layers: int = eqx.field(static=True)
    n_condition: int = eqx.field(static=True)

    def __init__(self, size: int, layers: int, *, n_condition: int = 0, key: PRNGKey):
        if size < 2:
            raise UserError(
                f"a flow couples units with each other, so it needs a layer of at least 2, not "
                f"{size}: use more latents, or no flow"
            )
        self.size, self.layers, self.n_condition = size, layers, n_condition
        self.networks = eqx.filter(_build(size, layers, n_condition, key), eqx.is_inexact_array)

    def forward(
        self, noise: Float[Array, " d"], condition: Float[Array, " c"] | None = None
    ) -> tuple[Float[Array, " d"], Scalar]:
        """The image of the noise, and the log of the absolute Jacobian determinant."""
        return self._bijection().transform_and_log_det(noise, condition)

    def inverse(
        self, h: Float[Array, " d"], condition: Float[Array, " c"] | None = None
    ) -> tuple[Float[Array, " d"], Scalar]:
        """The noise whose image is h, and the log Jacobian determinant of this inverse."""
        return self._bijection().inverse_and_log_det(h, condition)

    def _bijection(self) -> Any:
        return eqx.combine(self.networks, _static(self.size, self.layers, self.n_condition))


def _build(size: int, layers: int, n_condition: int, key: PRNGKey) -> Any:
    """The bijection of FlowJAX."""
    kinds, transformer = _flowjax()

    def layer(key: PRNGKey) -> list[Any]:
        coupling = kinds.Coupling(
            key,
            transformer=transformer,
            untransformed_dim=size // 2,
            dim=size,
            cond_dim=n_condition or None,
            nn_width=WIDTH,
            nn_depth=1,
            nn_activation=jnp.tanh,
        )
        last = coupling.conditioner.layers[-1]
        zeros = jax.tree.map(jnp.zeros_like, eqx.filter(last, eqx.is_inexact_array))
        last = eqx.combine(zeros, last)
        coupling = eqx.tree_at(lambda c: c.conditioner.layers[-1], coupling, last)
        return [coupling, kinds.Flip((size,))]

    return kinds.Chain([part for one in jax.random.split(key, layers) for part in layer(one)])


@lru_cache
def _flowjax() -> tuple[Any, Any]:
    """FlowJAX's bijections, and the affine function of one unit that a network controls."""
    from flowjax import bijections  # only models with flows need the import
    from paramax import Parameterize

    kinds: Any = bijections

    def affine() -> Any:
        scale: Any = Parameterize(_bounded_exp, jnp.zeros(()))
        return eqx.tree_at(lambda affine: affine.scale, kinds.Affine(), scale)

    return kinds, _apart(affine)


def _apart(make: Callable[[], Any]) -> Any:
    """Run a function in another thread and return its result.

    No program is traced there and no devices are mapped over, so the result can be kept for other
    programs.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(make).result()


def _bounded_exp(raw: Float[Array, "*d"]) -> Float[Array, "*d"]:
    return jnp.exp(LARGEST_LOG_SCALE * jnp.tanh(raw / LARGEST_LOG_SCALE))


@lru_cache
def _static(size: int, layers: int, n_condition: int) -> Any:
    """The bijection without its arrays: the same object for all flows of these sizes."""
    bijection = _apart(lambda: _build(size, layers, n_condition, jax.random.key(0)))
    return eqx.filter(bijection, eqx.is_inexact_array, inverse=True)


class FlowDistribution(eqx.Module):
    """The distribution of loc + scale f(noise; condition), with noise from N(0, I).

    Attributes:
        flow: f.
        loc, scale: parameters of the affine map after f, `[d]`; None for 0 and 1.
        condition: an input of the networks in f.
    """

    flow: Flow
    loc: Float[Array, " d"] | None = None
    scale: Float[Array, " d"] | None = None
    condition: Float[Array, " c"] | None = None

    def sample(self, key: PRNGKey) -> Float[Array, " d"]:
        """A reparameterised draw."""
        return self.place(jax.random.normal(key, (self.flow.size,)))

    def place(self, noise: Float[Array, " d"]) -> Float[Array, " d"]:
        """Map noise to its draw."""
        h, _ = self.flow.forward(noise, self.condition)
        return h if self.loc is None or self.scale is None else self.loc + self.scale * h

    def log_prob(self, h: Float[Array, " d"]) -> Scalar:
        """The log density, nats."""
        log_det = jnp.float32(0)
        if self.loc is not None and self.scale is not None:
            h, log_det = (h - self.loc) / self.scale, -jnp.sum(jnp.log(self.scale))
        noise, more = self.flow.inverse(h, self.condition)
        return jnp.sum(jax.scipy.stats.norm.logpdf(noise)) + log_det + more
