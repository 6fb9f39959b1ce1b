"""Synthetic data sets whose true density, and so the best possible likelihood, is known.

Each is drawn from one fixed seed, so that all runs share the same data whatever their own seeds.
`log_density` is the exact log p(x) in nats, for `x` of shape `[n, d]` and dtype float64.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

LogDensity = Callable[[np.ndarray], np.ndarray]

# The seed of every synthetic set; the index of the split is added as a second word.
SEED = 20150901
SIZES = {"train": 10_000, "test": 2_000}


class Synthetic(NamedTuple):
    """A distribution on R^d: a sampler `(generator, n) -> [n, d]` and its log density."""

    sample: Callable[[np.random.Generator, int], np.ndarray]
    log_density: LogDensity


def synthetic_splits(distribution: Synthetic) -> dict[str, np.ndarray]:
    """The training and test examples of a distribution, float32 `[n, d]`."""
    return {
        split: distribution.sample(np.random.Generator(np.random.PCG64([SEED, stream])), count)
        .astype(np.float32)
        for stream, (split, count) in enumerate(SIZES.items())
    }  # fmt: skip


def _mixture(
    weights: Sequence[float], means: Sequence[Sequence[float]], sds: Sequence[float]
) -> Synthetic:
    """A mixture of isotropic Gaussians: weights `[c]`, means `[c, d]`, scales `[c]`."""
    weight, mean, sd = np.array(weights), np.array(means), np.array(sds)

    def sample(rng: np.random.Generator, n: int) -> np.ndarray:
        component = np.searchsorted(np.cumsum(weight)[:-1], rng.random(n), side="right")
        return mean[component] + sd[component, None] * rng.standard_normal((n, mean.shape[1]))

    def log_density(x: np.ndarray) -> np.ndarray:
        distance = ((x[:, None, :] - mean) ** 2).sum(axis=-1)
        log_normal = -0.5 * distance / sd**2 - 0.5 * mean.shape[1] * np.log(2 * np.pi * sd**2)
        return np.logaddexp.reduce(np.log(weight) + log_normal, axis=1)

    return Synthetic(sample, log_density)


def _linear_gaussian(slope: Sequence[float], centre: Sequence[float], noise: float) -> Synthetic:
    """Points along a line: x = slope z + centre + noise e with z, e ~ N(0, I), so x is Gaussian."""
    w, b = np.array(slope), np.array(centre)
    d = len(b)

    def sample(rng: np.random.Generator, n: int) -> np.ndarray:
        z = rng.standard_normal((n, 1))
        return z * w + b + noise * rng.standard_normal((n, d))

    def log_density(x: np.ndarray) -> np.ndarray:
        covariance = np.outer(w, w) + noise**2 * np.eye(d)
        deviation = x - b
        distance = (deviation * np.linalg.solve(covariance, deviation.T).T).sum(axis=1)
        return -0.5 * (distance + np.linalg.slogdet(2 * np.pi * covariance)[1])

    return Synthetic(sample, log_density)


def ring(radius: float, noise: float) -> Synthetic:
    """A uniform angle on a circle plus isotropic Gaussian noise, in two dimensions.

    The angle integrates out to a Bessel function: with r = |x|,
    p(x) = exp(-(r^2 + R^2) / 2s^2) I_0(r R / s^2) / (2 pi s^2).
    """

    def sample(rng: np.random.Generator, n: int) -> np.ndarray:
        angle = 2 * np.pi * rng.random(n)
        points = radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        return points + noise * rng.standard_normal((n, 2))

    def log_density(x: np.ndarray) -> np.ndarray:
        from scipy.special import i0e

        r = np.hypot(x[:, 0], x[:, 1])
        # i0e(t) = exp(-t) I_0(t), which neither overflows nor cancels far from the ring.
        log_bessel = np.log(i0e(r * radius / noise**2))
        return log_bessel - 0.5 * ((r - radius) / noise) ** 2 - np.log(2 * np.pi * noise**2)

    return Synthetic(sample, log_density)


CAMEL = _mixture([0.5, 0.5], [[-1.0], [1.0]], [0.5, 0.5])
TWO_CLUSTERS = _mixture([0.4, 0.6], [[-1.5, -1.0], [1.5, 0.5]], [0.5, 0.35])
LINEAR_2D = _linear_gaussian(slope=[1.2, 0.6], centre=[0.5, -0.25], noise=0.2)
FOUR_GAUSSIANS = _mixture(
    [0.25] * 4, [[-1.5, -1.5], [-1.5, 1.5], [1.5, -1.5], [1.5, 1.5]], [0.3] * 4
)
CIRCLE = ring(radius=2.0, noise=0.15)
