"""Rate, distortion and mutual information of the approximate posterior.

For a conditional model, all quantities are given the label y. The rate is KL(q(z|x, y) || p(z|y)),
and the information is I_q(x; z | y): a draw is compared with examples of its own label only.
"""

from collections.abc import Iterator
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from iwae.data.rows import Examples
from iwae.errors import UserError, require_positive
from iwae.evaluation.examples import (
    ROWS,
    check_examples,
    gather_examples,
    map_examples_by_cost,
    refuse_nan_examples,
)
from iwae.evaluation.standard_errors import standard_error
from iwae.inference.particles import particle_keys
from iwae.inference.starts import start_density
from iwae.models.conditional import label_of
from iwae.models.vae import AbstractLatentModel
from iwae.typing import Example, PRNGKey, Scalar

Slab = dict[str, np.ndarray]

OTHERS = 128
"""Number of posteriors under which a draw is scored at a time."""


class Estimate(NamedTuple):
    """A mean over examples and its standard error, sd / sqrt(n), nats.

    The error is nan for a single example.
    """

    mean: float
    stderr: float


class Information(NamedTuple):
    """Per-example information of q(z|x), and bounds on the mutual information.

    Attributes:
        rate: `[n]` float64, E_q[log q(z|x) - log p(z)] = KL(q(z|x) || p(z)), nats.
        distortion: `[n]` float64, -E_q[log p(x|z)], nats.
        log_ratio: `[n]` float64, log q(z|x_i) - log (1/n) sum_j q(z|x_j) for draws z ~ q(z|x_i),
            nats; over the n examples of its own label, if the model is conditional.
    """

    rate: Float[np.ndarray, " n"]
    distortion: Float[np.ndarray, " n"]
    log_ratio: Float[np.ndarray, " n"]

    @property
    def elbo(self) -> Float[np.ndarray, " n"]:
        """-(rate + distortion) of each example, nats (Alemi et al. 2018, sec. 2.4)."""
        return -(self.rate + self.distortion)

    @property
    def mutual_information(self) -> tuple[Estimate, Estimate]:
        """Lower and upper bounds on I_q(x; z), nats; each holds in expectation.

        The lower bound is the mean of `log_ratio`, which measures how well a draw identifies its
        example among these n. It is the mutual information of z and the index of an example
        (Hoffman & Johnson 2016), and lies below that of z and x if the examples are a sample of all
        possible x (Poole et al. 2019, "structured bounds with tractable encoders"). It is at most
        log n; a value near log n only shows that n is too small.

        The upper bound is the mean rate, the sum of the information and KL(q(z) || p(z)) (Hoffman &
        Johnson 2016; Alemi et al. 2018, sec. 2).

        The error of the lower bound treats examples as independent, although the average over j
        includes all of them.
        """
        return _estimate(self.log_ratio), _estimate(self.rate)

    @property
    def marginal_kl(self) -> Estimate:
        """Upper bound on KL(q(z) || p(z)), nats: the mean rate minus the lower bound.

        For q(z) = (1/n) sum_j q(z|x_j), the estimate is unbiased (Hoffman & Johnson 2016).
        """
        return _estimate(self.rate - self.log_ratio)


class GapSplit(NamedTuple):
    """The gap of the ELBO in two parts: `gap = recovered + remaining`, nats.

    Attributes:
        gap: log p(x) - ELBO, which is KL(q(z|x) || p(z|x)).
        recovered: L_k - ELBO, the part that k samples recover.
        remaining: log p(x) - L_k, the rest.
    """

    gap: Estimate
    recovered: Estimate
    remaining: Estimate


def information(
    model: AbstractLatentModel,
    examples: Examples,
    key: PRNGKey,
    *,
    k: int = 16,
    draws: int = 1,
    batch_size: int | None = None,
) -> Information:
    """Rate and distortion of each example, and how well z identifies its example.

    For a `ConditionalVAE`, all quantities are given the label (see the module). Time grows with
    n^2 * draws, memory with n.

    Args:
        examples: `[n, ...]` in the model's units.
        k: samples per example for `rate` and `distortion`.
        draws: number of these, from the first, that are scored under the posteriors of all
            examples.
        batch_size: examples at a time on each device; changes the speed, not the numbers.

    Raises:
        UserError: if there are no examples, they are invalid for the model's kind of data, a size
            is not positive, `draws` is more than k, or the model does not define its prior.
        FloatingPointError: if a number is nan.
    """
    require_positive("k", k)
    if not 1 <= draws <= k:
        raise UserError(f"draws is {draws}; it must be between 1 and k, which is {k}")
    rates = information_rate_slabs(model, examples, key, k=k, batch_size=batch_size)
    ratios = ratio_slabs(model, examples, key, draws=draws, batch_size=batch_size)
    return Information(**gather_examples(rates), **gather_examples(ratios))


def information_rate_slabs(
    model: AbstractLatentModel,
    examples: Examples,
    key: PRNGKey,
    *,
    k: int,
    batch_size: int | None = None,
    first: int = 0,
) -> Iterator[Slab]:
    """`rate` and `distortion` of `information`, from example `first` on, slab by slab."""
    check_examples(model, examples)
    fn = eqx.Partial(_rate_and_distortion, k=k)
    slabs = map_examples_by_cost(
        fn, model, examples, key, rows=k, batch_size=batch_size, first=first
    )
    return refuse_nan_examples(slabs, first, "information", ("rate", "distortion"))


def ratio_slabs(
    model: AbstractLatentModel,
    examples: Examples,
    key: PRNGKey,
    *,
    draws: int = 1,
    batch_size: int | None = None,
    first: int = 0,
) -> Iterator[Slab]:
    """`log_ratio` of `information`, from example `first` on, slab by slab."""
    check_examples(model, examples)
    n = len(examples)
    slabs = map_examples_by_cost(
        eqx.Partial(_log_ratio, others=_chunks(examples), n=n, draws=draws),
        model,
        examples,
        key,
        rows=max(1, n * draws),
        at_once=draws,
        batch_size=batch_size,
        first=first,
    )
    return refuse_nan_examples(slabs, first, "information", ("log_ratio",))


def information_kl_gap(
    elbo: Float[np.ndarray, "..."],
    bound_k: Float[np.ndarray, "..."],
    log_p: Float[np.ndarray, "..."],
) -> GapSplit:
    """Split the gap log p(x) - ELBO into the part that k samples recover and the rest.

    The gap is KL(q(z|x) || p(z|x)) (Burda et al. 2016, sec. 2). Differences are per example,
    so their errors are not those of the likelihoods.

    Args:
        elbo: `[n]`, L_1 of each example, nats.
        bound_k: `[n]`, L_k of the same examples, nats.
        log_p: `[n]`, their best estimates of log p(x), nats; the gap is too small by any shortfall.

    Raises:
        UserError: if the shapes do not match, or a number is not finite.
    """
    values = [np.asarray(one, np.float64) for one in (elbo, bound_k, log_p)]
    shapes = {one.shape for one in values}
    if len(shapes) > 1 or values[0].ndim != 1 or not values[0].size:
        raise UserError(
            "elbo, bound_k and log_p must have one number for each of the same examples, but "
            f"their shapes are {', '.join(str(one.shape) for one in values)}"
        )
    for name, one in zip(("elbo", "bound_k", "log_p"), values, strict=True):
        if not np.isfinite(one).all():
            i = int(np.flatnonzero(~np.isfinite(one))[0])
            raise UserError(f"{name} of example {i} is {one[i]}: a gap needs finite numbers")
    low, middle, high = values
    return GapSplit(_estimate(high - low), _estimate(middle - low), _estimate(high - middle))


def _estimate(values: Float[np.ndarray, " n"]) -> Estimate:
    """The mean of one number per example, and its standard error."""
    return Estimate(float(np.mean(values)), standard_error(values))


def _rate_and_distortion(
    model: AbstractLatentModel, x: Example, key: PRNGKey, *, k: int
) -> dict[str, Scalar]:
    """Means over k draws of log q(z|x) - log p(z) and of -log p(x|z), nats."""
    model, x = model.condition(x)
    posterior, prior = model.posterior(x), start_density("prior", model, x)

    def draw(i: Int[Array, ""]) -> tuple[Scalar, Scalar]:
        z = posterior.sample(jax.random.fold_in(key, i))
        log_prior = prior.log_prob(z)
        return posterior.log_prob(z) - log_prior, log_prior - model.log_joint(x, z)

    rate, distortion = jax.lax.map(draw, jnp.arange(k), batch_size=min(k, ROWS))
    return {"rate": jnp.mean(rate), "distortion": jnp.mean(distortion)}


def _log_ratio(
    model: AbstractLatentModel,
    x: Example,
    key: PRNGKey,
    *,
    others: Shaped[Array, "chunks chunk ..."],
    n: int,
    draws: int,
) -> dict[str, Scalar]:
    """Mean over the first draws of log q(z|x) - log (1/m) sum_j q(z|x_j), nats.

    The sum is over the m examples, out of n, that have the label of x.
    """
    posterior, label = model.posterior(x), label_of(model, x)
    z = jax.vmap(posterior.sample)(particle_keys(key, jnp.arange(draws)))

    def log_q(other: Example) -> tuple[Float[Array, " draws"], Bool[Array, ""]]:
        other = other.astype(jnp.float32)
        is_alike = jnp.all(label_of(model, other) == label)
        return jax.vmap(model.posterior(other).log_prob)(z), is_alike

    def add(
        sums: tuple[Float[Array, " draws"], Int[Array, ""]], chunk: tuple[Array, Array]
    ) -> tuple[tuple[Float[Array, " draws"], Int[Array, ""]], None]:
        (total, count), (xs, first) = sums, chunk
        each, is_alike = jax.vmap(log_q)(xs)
        counts = is_alike & (first + jnp.arange(len(xs)) < n)
        each = jnp.where(counts[:, None], each, -jnp.inf)
        total = jnp.logaddexp(total, jax.nn.logsumexp(each, axis=0))
        return (total, count + jnp.sum(counts)), None

    firsts = jnp.arange(others.shape[0]) * others.shape[1]
    nothing = jnp.full(draws, -jnp.inf), jnp.int32(0)
    (total, count), _ = jax.lax.scan(add, nothing, (others, firsts))
    log_marginal = total - jnp.log(count.astype(jnp.float32))
    return {"log_ratio": jnp.mean(jax.vmap(posterior.log_prob)(z) - log_marginal)}


def _chunks(examples: Examples) -> Shaped[Array, "chunks chunk ..."]:
    """All examples in chunks of equal length, the last one padded with the last example."""
    n = len(examples)
    chunk = min(OTHERS, max(n, 1))
    index = np.minimum(np.arange(-(-n // chunk) * chunk), n - 1)
    return jnp.asarray(examples[index].reshape(-1, chunk, *examples.shape[1:]))
