"""Mean, variance, signal-to-noise ratio and bias of a gradient estimator, from many draws.

A draw is the gradient of the mean objective over a batch of examples, with fresh random numbers. No
gradient is stored per draw.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree, Shaped
from scipy.special import stdtrit

from iwae.errors import UserError
from iwae.inference.particles import particle_keys
from iwae.models.vae import VAE, AbstractLatentModel
from iwae.objectives.objective import Objective
from iwae.typing import PRNGKey, Scalar

BLOCKS = 10
"""Number of blocks of draws, whose spread yields the standard errors."""

Draw = Callable[[AbstractLatentModel, Shaped[Array, "n ..."], PRNGKey], PyTree]


def gradient_signal_sample(objective: Objective) -> Draw:
    """(model, examples, key) -> one draw of the gradient of the mean objective."""

    def value(model: AbstractLatentModel, xs: Array, key: PRNGKey) -> Scalar:
        keys = particle_keys(key, jnp.arange(len(xs)))
        return jnp.mean(jax.vmap(lambda x, key: objective(*model.condition(x), key))(xs, keys))

    return eqx.filter_grad(value)


class Moments(NamedTuple):
    """Mean and variance of the draws in each block, leaf by leaf: `[blocks, ...]`."""

    mean: PyTree
    variance: PyTree


@eqx.filter_jit
def gradient_moments(
    draw: Draw, model: AbstractLatentModel, xs: Array, key: PRNGKey, draws: int
) -> Moments:
    """The first two moments of a gradient, in `BLOCKS` blocks of equally many draws."""
    per_block = draws // BLOCKS

    def of_block(block: Array) -> tuple[PyTree, PyTree]:
        keys = particle_keys(jax.random.fold_in(key, block), jnp.arange(per_block))
        zeros = jax.tree.map(jnp.zeros_like, eqx.filter(model, eqx.is_inexact_array))

        def add(state: tuple[Any, ...], step: tuple[Any, ...]) -> tuple[tuple[Any, ...], None]:
            mean, squares = state
            number, key = step
            gradient = draw(model, xs, key)
            change = jax.tree.map(lambda g, m: g - m, gradient, mean)
            mean = jax.tree.map(lambda m, d: m + d / number, mean, change)
            squares = jax.tree.map(
                lambda s, d, g, m: s + d * (g - m), squares, change, gradient, mean
            )
            return (mean, squares), None

        numbers = jnp.arange(1, per_block + 1).astype(jnp.float32)
        (mean, squares), _ = jax.lax.scan(add, (zeros, zeros), (numbers, keys))
        return mean, jax.tree.map(lambda s: s / (per_block - 1), squares)

    return Moments(*jax.lax.map(of_block, jnp.arange(BLOCKS)))


def gradient_groups(gradient: PyTree, model: AbstractLatentModel) -> dict[str, list[Any]]:
    """Group the leaves of a model's gradient by network.

    The groups of a VAE are the networks of encoder and prior by layer, a learned prior of the top
    layer, and the decoder. For another model, every leaf is a group of its own.
    """
    groups: dict[str, list[Any]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        name = jax.tree_util.keystr(path).lstrip(".")
        groups.setdefault(_group_name(name) if isinstance(model, VAE) else name, []).append(leaf)
    return groups


def _group_name(name: str) -> str:
    """encoder[0].loc.weight -> encoder 1: layers are counted from the data, as in the papers."""
    for part, words in (("encoder", "encoder"), ("prior_nets", "prior")):
        if name.startswith(f"{part}["):
            return f"{words} {int(name[len(part) + 1 :].partition(']')[0]) + 1}"
    return "prior" if name.startswith("top.") else "decoder"


class Signal(NamedTuple):
    """Signal and noise of one group of parameters.

    Attributes:
        parameters: number of parameters.
        mean_norm: norm of the mean gradient, corrected for noise.
        variance: summed over the parameters.
        snr: norm of the mean over the root of the summed variance (Rainforth et al. 2018, eq. 5,
            for a group).
        snr_stderr: of `snr`, by the jackknife over blocks.
        snr_without: `snr` without each of the blocks in turn.
    """

    parameters: int
    mean_norm: float
    variance: float
    snr: float
    snr_stderr: float
    snr_without: tuple[float, ...]


def gradient_signals(model: AbstractLatentModel, found: Moments, draws: int) -> dict[str, Signal]:
    """Signal and noise of every group of parameters."""
    means, variances = gradient_groups(found.mean, model), gradient_groups(found.variance, model)
    return {name: _signal(means[name], variances[name], draws) for name in means}


def _signal(means: list[Array], variances: list[Array], draws: int) -> Signal:
    mean = np.concatenate([np.float64(m).reshape(BLOCKS, -1) for m in means], axis=1)
    noise = np.concatenate([np.float64(v).reshape(BLOCKS, -1) for v in variances], axis=1)
    per_block = draws // BLOCKS

    def of_blocks(keep: np.ndarray) -> tuple[float, float]:
        variance = noise[keep].mean(axis=0).sum()
        squared = (mean[keep].mean(axis=0) ** 2).sum() - variance / (per_block * keep.sum())
        return float(np.sqrt(max(squared, 0.0))), float(variance)

    whole = np.ones(BLOCKS, bool)
    norm, variance = of_blocks(whole)
    without = [of_blocks(np.arange(BLOCKS) != block) for block in range(BLOCKS)]
    ratios = tuple(_ratio(*parts) for parts in without)
    stderr = float(np.sqrt(_jackknife(np.array([ratios]))[0, 0]))
    return Signal(mean.shape[1], norm, variance, _ratio(norm, variance), stderr, ratios)


def _jackknife(without: Float[np.ndarray, "m blocks"]) -> Float[np.ndarray, "m m"]:
    """The covariance of m estimates, from those without each of the blocks, `[m, blocks]`."""
    apart = without - without.mean(axis=1, keepdims=True)
    blocks = without.shape[1]
    return (blocks - 1) / blocks * apart @ apart.T


def _ratio(norm: float, variance: float) -> float:
    """Signal over noise; 0 for a gradient that is zero."""
    return norm / np.sqrt(variance) if variance > 0 else (np.inf if norm > 0 else 0.0)


class Bias(NamedTuple):
    """Difference between the means of two estimators on the same random numbers.

    Attributes:
        difference: between the means, along the mean difference of another set of draws.
        stderr: standard error of the difference.
        relative: the difference over the norm of the reference's mean.
        z: the difference over its standard error.
    """

    difference: float
    stderr: float
    relative: float
    z: float


FALSE_ALARM = 1 / 30_000
"""Rate at which the paired test reports a bias, of either sign, if there is none."""


def gradient_bias_threshold(draws: int) -> float:
    """Number of standard errors above which a difference is a bias.

    A quantile of Student's t, because the error is estimated from the second half of the draws. The
    false-alarm rate is exact for normal differences.
    """
    return -float(stdtrit(_tested(draws) - 1, FALSE_ALARM / 2))


def _tested(draws: int) -> int:
    return draws - draws // 2


def gradient_biases(
    draw: Draw,
    reference: Draw,
    model: AbstractLatentModel,
    xs: Array,
    key: PRNGKey,
    draws: int,
) -> dict[str, Bias]:
    """The bias of every group of parameters against a reference estimator, by a paired test.

    The first half of the draws determines a direction, along which the second half is tested.
    """
    first_key, second_key = jax.random.split(key)
    ours, theirs = (
        _mean_gradient(one, model, xs, first_key, draws // 2) for one in (draw, reference)
    )
    difference = jax.tree.map(lambda a, b: a - b, ours, theirs)
    found = _components(draw, reference, model, xs, second_key, _tested(draws), difference)
    result = {}
    for name, leaves in gradient_groups(difference, model).items():
        norm = float(np.sqrt(sum(float(jnp.sum(leaf**2)) for leaf in leaves)))
        size = np.sqrt(sum(float(jnp.sum(g**2)) for g in gradient_groups(theirs, model)[name]))
        result[name] = _bias_along(np.float64(found[name]) / (norm or 1.0), float(size))
    return result


def _bias_along(along: Any, size: float) -> Bias:
    mean, stderr = along.mean(), along.std(ddof=1) / np.sqrt(len(along))
    # Estimators that agree on every draw differ by rounding only, which is not a bias.
    z = float(mean / max(stderr, ROUNDING * size)) if size > 0 else 0.0
    return Bias(float(mean), float(stderr), float(mean / size) if size > 0 else 0.0, z)


ROUNDING = 1e-7
"""Smallest standard error as a share of the gradient: that of rounding."""


@eqx.filter_jit
def _mean_gradient(
    draw: Draw, model: AbstractLatentModel, xs: Array, key: PRNGKey, draws: int
) -> PyTree:
    def add(mean: PyTree, step: tuple[Any, ...]) -> tuple[PyTree, None]:
        number, key = step
        gradient = draw(model, xs, key)
        return jax.tree.map(lambda m, g: m + (g - m) / number, mean, gradient), None

    zeros = jax.tree.map(jnp.zeros_like, eqx.filter(model, eqx.is_inexact_array))
    numbers = jnp.arange(1, draws + 1).astype(jnp.float32)
    return jax.lax.scan(add, zeros, (numbers, particle_keys(key, jnp.arange(draws))))[0]


@eqx.filter_jit
def _components(
    draw: Draw,
    reference: Draw,
    model: AbstractLatentModel,
    xs: Array,
    key: PRNGKey,
    draws: int,
    direction: PyTree,
) -> dict[str, Float[Array, " draws"]]:
    """For each group, the product of the direction and the difference of each draw."""

    def one(key: PRNGKey) -> dict[str, Scalar]:
        again = jax.random.clone(key)
        difference = jax.tree.map(
            lambda a, b, u: jnp.sum((a - b) * u),
            draw(model, xs, key),
            reference(model, xs, again),
            direction,
        )
        return {name: sum(parts) for name, parts in gradient_groups(difference, model).items()}

    return jax.lax.map(one, particle_keys(key, jnp.arange(draws)))


def check_gradient_draws(draws: int) -> None:
    """Raise UserError for too few draws to estimate a variance in every block."""
    if draws < 2 * BLOCKS or draws % BLOCKS:
        raise UserError(f"draws is {draws}; give a multiple of {BLOCKS}, at least {2 * BLOCKS}")


def gradient_signal_slope(
    ks: Sequence[int],
    ratios: Sequence[float],
    errors: Sequence[float],
    without: Sequence[Sequence[float]] | None = None,
) -> tuple[float, float] | None:
    """The power of k with which a ratio grows, by weighted least squares, and its error.

    The fit is to the ratios, not to their logarithms, so that ratios hidden by noise count too.
    Otherwise, only small ratios raised by chance would count, and a falling line would seem to fall
    less. A ratio without an error, such as zero, gets the largest error.

    The error of the slope is due to the draws alone: it does not show whether the ratios are on a
    line. Ratios at different k are based on the same random numbers, so their errors are
    correlated; `without` has the covariance.

    Args:
        ks: particles, `[m]`.
        ratios, errors: at each k, and their standard errors, `[m]`.
        without: the ratios without each block of draws, `[m, blocks]`, for their covariance; if
            None, the ratios are independent.

    Returns:
        The slope and its standard error; None if fewer than two ratios exceed the noise.
    """
    points = np.array([ks, ratios, errors], np.float64)
    finite = np.isfinite(points).all(axis=0)
    k, ratio, error = points[:, finite]
    clear = (ratio > 2 * error) & (error > 0)
    if clear.sum() < 2:
        return None
    from scipy.optimize import least_squares

    known = error > 0
    error = np.where(known, error, error.max())
    x = np.log(k) - np.log(k[clear]).mean()
    start = np.polyfit(x[clear], np.log(ratio[clear]), 1)[::-1]

    def misfit(line: np.ndarray) -> np.ndarray:
        return (np.exp(line[0] + line[1] * x) - ratio) / error

    found = least_squares(misfit, start)
    of_errors = np.linalg.pinv(found.jac)[1]  # d slope / d (ratio over its error)
    covariance = np.eye(len(k))
    if without is not None:
        together = _jackknife(np.array(without, np.float64)[finite] / error[:, None])
        covariance = np.where(np.outer(known, known), together, covariance)
    return float(found.x[1]), float(np.sqrt(of_errors @ covariance @ of_errors))
