"""Annealed importance sampling: chains along the path from a start to the joint density.

f_beta(z) = start(z)^(1 - beta) p(x, z)^beta, where start(z) is q(z|x) or p(z). At every
temperature, a chain first updates its weight at the old z, then makes one HMC move at the new
temperature (Neal 2001; Wu et al. 2017). Where some latents are discrete, the move is a few Langevin
proposals instead; see `iwae.inference.langevin`.
"""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, Key, PyTree

from iwae.errors import UserError
from iwae.inference.kernels import Evaluate, Flat, Move, Point, check_leapfrog, move
from iwae.inference.langevin import langevin
from iwae.inference.particles import Info, Particles, particle_keys
from iwae.inference.starts import start_density
from iwae.inference.temperatures import Betas, StepSize, as_betas, temperature_step_sizes
from iwae.models.posteriors import Posterior, is_reparameterised_posterior
from iwae.models.vae import VAE, AbstractLatentModel
from iwae.typing import Example, Latents, LogWeights, PRNGKey, Scalar


class Path(NamedTuple):
    """The annealing path of one example, on flat latents.

    Attributes:
        sample: key -> a flat draw from the start.
        evaluate: flat latent -> its `Point`: one evaluation of the model and its gradient.
        unravel: flat latent -> the model's latents.
        move: the kernel: HMC, or Langevin proposals if some latents are discrete.
    """

    sample: Callable[[PRNGKey], Flat]
    evaluate: Evaluate
    unravel: Callable[[Flat], Latents]
    move: Move


class Total(NamedTuple):
    """A compensated float32 sum, exact to the last digits over 10^4 terms (Kahan 1965)."""

    value: Float[Array, "*k"]
    excess: Float[Array, "*k"]

    def add(self, term: Float[Array, "*k"]) -> "Total":
        """Add one term; a sum of -inf stays -inf."""
        term = term - self.excess
        value = self.value + term
        excess = (value - self.value) - term  # added by rounding
        return Total(value, jnp.where(jnp.isfinite(value), excess, 0.0))


class Chain(NamedTuple):
    """State of a chain: flat latent, its `Point`, and the log weight so far, nats."""

    z: Flat
    point: Point
    log_w: Total


class Temperature(NamedTuple):
    """One step of the schedule: a weight update by `delta`, and a move at `beta`."""

    number: Int[Array, "*T"]
    beta: Float[Array, "*T"]
    delta: Float[Array, "*T"]
    step_size: Float[Array, "*T"]


def annealing_path(model: AbstractLatentModel, x: Example, start: str) -> Path:
    """The annealing path of one example, with the parameters of its start computed once.

    No gradient flows through it, so that memory does not grow with the number of temperatures.

    Raises:
        UserError: for an unknown start, or latents that no kernel moves.
    """
    arrays, static = eqx.partition((model, x), eqx.is_array)
    model, x = eqx.combine(jax.lax.stop_gradient(arrays), static)
    model, x = model.condition(x)
    first = start_density(start, model, x)
    unravel = ravel_pytree(first.sample(jax.random.key(0)))[1]  # only the shapes matter

    def evaluate(z: Flat) -> Point:
        log_start, grad_start = jax.value_and_grad(lambda z: first.log_prob(unravel(z)))(z)
        log_joint, grad_joint = jax.value_and_grad(lambda z: model.log_joint(x, unravel(z)))(z)
        return Point(log_start, log_joint, grad_start, grad_joint)

    q = first if start == "posterior" else model.posterior(x)  # the encoder runs once
    kernel = _annealing_kernel(model, q, unravel)
    return Path(lambda key: ravel_pytree(first.sample(key))[0], evaluate, unravel, kernel)


def _annealing_kernel(
    model: AbstractLatentModel, q: Posterior, unravel: Callable[[Flat], Latents]
) -> Move:
    """The kernel that moves the latents of a model, given the posterior q of one example."""
    if isinstance(model, VAE) and model.has_discrete:
        return langevin(model.latents, unravel)
    if not is_reparameterised_posterior(q):
        raise UserError(
            "annealing moves latents by HMC, which needs continuous ones, and draws of this "
            f"{type(model).__name__}'s q have no gradient: measure it by importance sampling"
        )
    return move


def annealing_steps(
    betas: Betas, step_size: StepSize, n_leapfrog: int, *, end: float | None = 1.0
) -> Temperature:
    """The T - 1 steps of a schedule, checked."""
    check_leapfrog(n_leapfrog)
    b = as_betas(betas, end=end)
    moves = b.size - 1
    return Temperature(
        jnp.arange(moves), b[1:], jnp.diff(b), temperature_step_sizes(step_size, moves)
    )


def start_annealing(path: Path, keys: Key[Array, " k"]) -> Chain:
    """Start chains at draws from the start density, each with a weight of one."""
    return jax.vmap(lambda key: _start_at(path, path.sample(key)))(keys)


def _start_at(path: Path, z: Flat) -> Chain:
    return Chain(z, path.evaluate(z), Total(jnp.float32(0), jnp.float32(0)))


def annealing_chain_keys(
    key: PRNGKey, indices: Int[Array, " k"]
) -> tuple[Key[Array, " k"], Key[Array, " k"]]:
    """Keys for the starts and the moves of chains, each a function of the chain's index."""
    keys = jax.vmap(jax.random.split)(particle_keys(key, indices))
    return keys[:, 0], keys[:, 1]


def annealing_move(
    path: Path, chains: Chain, keys: Key[Array, " k"], step: Temperature, n_leapfrog: int
) -> tuple[Chain, Float[Array, " k"]]:
    """Move every chain once at the step's beta; also return the acceptance probabilities."""

    def one(chain: Chain, key: PRNGKey) -> tuple[Chain, Scalar]:
        z, point, acceptance = path.move(
            jax.random.fold_in(key, step.number),
            chain.z,
            chain.point,
            path.evaluate,
            beta=step.beta,
            step_size=step.step_size,
            n_leapfrog=n_leapfrog,
        )
        return Chain(z, point, chain.log_w), acceptance

    return jax.vmap(one)(chains, keys)


def update_annealing_weights(chains: Chain, delta: Scalar) -> Chain:
    """Multiply each weight by (p(x, z) / start(z))^delta at the chain's z."""

    def one(chain: Chain) -> Chain:
        return chain._replace(log_w=chain.log_w.add(delta * chain.point.log_ratio()))

    return jax.vmap(one)(chains)


Observe = Callable[[Chain, Temperature], PyTree]


def anneal(
    path: Path,
    chains: Chain,
    keys: Key[Array, " k"],
    steps: Temperature,
    n_leapfrog: int,
    observe: Observe = lambda chains, step: {},  # noqa: ARG005
) -> tuple[Chain, Info]:
    """Run chains along the path: at each temperature, update the weights, move, and observe.

    Returns:
        The chains at the end; and for each temperature, `[T-1]`, the result of `observe` and the
        mean `acceptance`.
    """

    def one(chains: Chain, step: Temperature) -> tuple[Chain, Info]:
        chains = update_annealing_weights(chains, step.delta)
        chains, acceptance = annealing_move(path, chains, keys, step, n_leapfrog)
        return chains, {"acceptance": jnp.mean(acceptance), **observe(chains, step)}

    return jax.lax.scan(one, chains, steps)


def annealed_particles(
    model: AbstractLatentModel,
    x: Example,
    key: PRNGKey,
    k: int,
    *,
    betas: Betas,
    step_size: StepSize,
    n_leapfrog: int,
    start: str = "posterior",
    first: int | Int[Array, ""] = 0,
    last_move: bool = True,
) -> tuple[Particles, Info]:
    """k chains of annealed importance sampling with HMC (Neal 2001; Wu et al. 2017).

    The weights belong to the ends of the chains at beta = 1, so these particles can replace
    importance samples everywhere. The last move comes after the weights are fixed. No gradient
    flows through the chains; memory does not depend on the number of temperatures.

    Args:
        betas: T temperatures that increase from 0 to 1; see `linear_schedule`.
        step_size: of the leapfrog integrator: one number, or one for each temperature after the
            first, `[T-1]`, as `tune_step_size` finds on other examples.
        n_leapfrog: leapfrog steps per move; with discrete latents, proposals.
        start: "posterior" for q(z|x), or "prior" for p(z).
        first: index of the first chain; chains `first ... first + k - 1` of this `key` do not
            depend on the chunks in which they are drawn.
        last_move: whether to move at beta = 1, after the weights are fixed.

    Returns:
        Particles; and an info with the mean `acceptance` of each move, `[T-1]` (one fewer
        without the last move), and `start_log_w`, `[k]`, log p(x, z) - log start(z) before the
        first move: the importance weights if chains start at q(z|x).

    Raises:
        UserError: if the temperatures or step sizes are not a valid schedule, `start` is
            unknown, or the model does not define its prior.
    """
    steps = annealing_steps(betas, step_size, n_leapfrog)
    path = annealing_path(model, x, start)
    start_keys, move_keys = annealing_chain_keys(key, first + jnp.arange(k))
    chains = start_annealing(path, start_keys)
    start_log_w = jax.vmap(Point.log_ratio)(chains.point)
    moves = steps if last_move else jax.tree.map(lambda leaf: leaf[:-1], steps)
    chains, info = anneal(path, chains, move_keys, moves, n_leapfrog)
    if not last_move:
        chains = update_annealing_weights(chains, steps.delta[-1])
    particles = Particles(jax.vmap(path.unravel)(chains.z), chains.log_w.value)
    return particles, {**info, "start_log_w": start_log_w}


def reverse_annealed_log_weights(
    model: AbstractLatentModel,
    x: Example,
    z: Latents,
    key: PRNGKey,
    k: int,
    *,
    betas: Betas,
    step_size: StepSize,
    n_leapfrog: int,
    start: str = "posterior",
) -> tuple[LogWeights, Info]:
    """Log weights of k chains from an exact draw of p(z|x) back to the start, nats, `[k]`.

    The reverse of `annealed_particles`: at each temperature, a move precedes the weight update.
    Each weight has expectation 1 / p(x), so -log of their mean is an upper bound on log p(x) in
    expectation (Grosse, Ghahramani & Adams 2015; for k > 1 the "coupled reverse" bound of
    Brekelmans et al. 2022). All chains start from the same z.

    Args:
        z: an exact draw from p(z|x), which only `model.sample` can provide: (z, x) ~ p.

    Returns:
        Log weights, and an info with the mean `acceptance` at each temperature, `[T-1]`.
    """
    steps = annealing_steps(betas, step_size, n_leapfrog)
    path = annealing_path(model, x, start)
    _, keys = annealing_chain_keys(key, jnp.arange(k))
    chain = _start_at(path, ravel_pytree(z)[0])
    chains = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (k, *leaf.shape)), chain)

    def one(chains: Chain, step: Temperature) -> tuple[Chain, Info]:
        chains, acceptance = annealing_move(path, chains, keys, step, n_leapfrog)
        return update_annealing_weights(chains, -step.delta), {"acceptance": jnp.mean(acceptance)}

    chains, info = jax.lax.scan(one, chains, steps, reverse=True)
    return chains.log_w.value, info
