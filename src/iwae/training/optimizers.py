"""Optimisers: SOAP, and Adam of the paper's text and of its published code.

SOAP is Adam in the eigenbasis of Shampoo's preconditioner, here on one side of each matrix: Vyas et
al. 2025, "SOAP: improving and stabilizing Shampoo using Adam" (arXiv 2409.11321), algorithm 3, with
one-sided eigenvectors (section 4.2.1). Two changes make it cheaper: the first moments are kept in
the eigenbasis, and the covariance uses only the gradients at refreshes. A third change makes it
stable: rotated directions are clipped at 1, which they exceed only after a refresh.

Repeated calls return the same optimiser, because programs are compiled for the object.
"""

from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

Matrix = Float[Array, "m n"]
Square = Float[Array, "d d"]


class SoapState(NamedTuple):
    """Moments of the rotated gradients; eigenbasis and covariance of each matrix, by its index."""

    steps: Int[Array, ""]
    mu: list[Array]
    nu: list[Array]
    basis: dict[str, Square]
    covariance: dict[str, Square]


@cache
def soap(
    b1: float = 0.95,
    b2: float = 0.95,
    eps: float = 1e-8,
    *,
    every: int = 10,
    largest: int = 300,
    memory: float = 0.9,
) -> optax.GradientTransformation:
    """The update direction of SOAP, with each matrix rotated on one side.

    Args:
        b1, b2, eps: as in Adam; clipping requires that the two rates be equal.
        every: steps between refreshes of the eigenbases, by one step of orthogonal iteration.
        largest: largest side to rotate. The smaller side of a matrix is rotated; matrices beyond
            this limit, and vectors, are left to Adam.
        memory: share of the old covariance that a refresh keeps.
    """

    def rotated(leaves: list[Array]) -> dict[str, bool]:
        """For each matrix to rotate, by its index, whether the first side is rotated."""
        sizes = {str(i): leaf.shape for i, leaf in enumerate(leaves) if leaf.ndim == 2}
        return {i: m <= n for i, (m, n) in sizes.items() if min(m, n) <= largest}

    def init(params: PyTree) -> SoapState:
        leaves = jax.tree.leaves(params)
        sides = {i: min(leaves[int(i)].shape) for i in rotated(leaves)}
        zeros = [jnp.zeros_like(leaf) for leaf in leaves]
        covariance = {i: jnp.zeros((d, d)) for i, d in sides.items()}
        basis = {i: jnp.eye(d) for i, d in sides.items()}
        return SoapState(jnp.int32(0), zeros, zeros, basis, covariance)

    def update(
        grads: PyTree,
        state: SoapState,
        params: PyTree = None,  # noqa: ARG001
    ) -> tuple[PyTree, SoapState]:
        leaves, tree = jax.tree.flatten(grads)
        first = rotated(leaves)

        def refresh(state: SoapState) -> SoapState:
            mu, basis, covariance = list(state.mu), {}, {}
            for i, is_first in first.items():
                g, old = leaves[int(i)], state.basis[i]
                new, kept = g @ g.T if is_first else g.T @ g, state.covariance[i]
                c = jnp.where(state.steps == 0, new, memory * kept + (1 - memory) * new)
                q = jax.lax.cond(state.steps == 0, _eigenvectors, _iterated, c, old)
                moved = _back(state.mu[int(i)], old, is_first)
                mu[int(i)], basis[i], covariance[i] = _into(moved, q, is_first), q, c
            return state._replace(mu=mu, basis=basis, covariance=covariance)

        state = jax.lax.cond(state.steps % every == 0, refresh, lambda state: state, state)
        t = (state.steps + 1).astype(jnp.float32)
        mu, nu, directions = [], [], []
        for i, (g, m, v) in enumerate(zip(leaves, state.mu, state.nu, strict=True)):
            q, is_first = state.basis.get(str(i)), first.get(str(i), False)
            h = g if q is None else _into(g, q, is_first)
            mu.append(b1 * m + (1 - b1) * h)
            nu.append(b2 * v + (1 - b2) * h**2)
            d = mu[-1] / (1 - b1**t) / (jnp.sqrt(nu[-1] / (1 - b2**t)) + eps)
            # With b1 = b2, |m| <= sqrt(v) (Cauchy-Schwarz), unless a refresh turned only m.
            directions.append(d if q is None else _back(jnp.clip(d, -1, 1), q, is_first))
        new = state._replace(steps=state.steps + 1, mu=mu, nu=nu)
        return jax.tree.unflatten(tree, directions), new

    return optax.GradientTransformation(init, update)


def _eigenvectors(c: Square, _: Square) -> Square:
    return jnp.linalg.eigh(c)[1]


def _iterated(c: Square, q: Square) -> Square:
    return jnp.linalg.qr(c @ q)[0]


def _into(g: Matrix, q: Square, is_first: bool) -> Matrix:
    return q.T @ g if is_first else g @ q


def _back(g: Matrix, q: Square, is_first: bool) -> Matrix:
    return q @ g if is_first else g @ q.T


@cache
def adam() -> optax.GradientTransformation:
    """Adam as the paper states it: beta1 = 0.9, beta2 = 0.999, epsilon = 1e-4."""
    published = optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-4)

    def update(grads: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        with jax.numpy_dtype_promotion("standard"):  # Optax raises floats to an integer power
            return published.update(grads, state, params)

    return optax.GradientTransformation(published.init, update)


class AuthorsAdamState(NamedTuple):
    """Moments of the previous steps."""

    steps: Int[Array, ""]
    mu: PyTree
    nu: PyTree


@cache
def authors_adam(batch_size: int) -> optax.GradientTransformation:
    """The optimiser of the paper's published code, which differs from the paper's text.

    beta1 is 0.99. The second moments start at one, but the bias correction is the usual one. A step
    uses the moments of the previous step, so that the first step changes nothing. The gradient is
    the sum over the batch, so that epsilon = 1e-4 corresponds to a smaller one for the mean.
    """
    b1, b2, eps = 0.99, 0.999, 1e-4

    def init(params: PyTree) -> AuthorsAdamState:
        return AuthorsAdamState(
            jnp.zeros((), jnp.int32),
            jax.tree.map(jnp.zeros_like, params),
            jax.tree.map(jnp.ones_like, params),
        )

    def update(
        grads: PyTree,
        state: AuthorsAdamState,
        params: PyTree = None,  # noqa: ARG001
    ) -> tuple[PyTree, AuthorsAdamState]:
        steps = state.steps + 1
        t = steps.astype(jnp.float32)
        correction = jnp.sqrt(1 - b2**t) / (1 - b1**t)
        updates = jax.tree.map(
            lambda m, v: correction * m / (jnp.sqrt(v) + eps), state.mu, state.nu
        )
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * batch_size * g, state.mu, grads)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * (batch_size * g) ** 2, state.nu, grads)
        return updates, AuthorsAdamState(steps, mu, nu)

    return optax.GradientTransformation(init, update)
