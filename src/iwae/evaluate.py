"""How likely a model makes each held-out example, and which of its latent units it uses.

Everything measured on a split goes through `map_examples`: it batches, pads, shards the examples
over the devices and yields the results slab by slab, so that a caller can show progress or stop.
Example i always gets the key `fold_in(key, i)`; its number does not depend on the rest.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial, reduce
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, PyTree, Shaped

from iwae._types import Example, LogWeights, PRNGKey, Scalar, UserError
from iwae.model import VAE, AbstractLatentModel, Dense, GaussianNet
from iwae.particles import importance_particles, particle_keys

ROWS = 1000
"""Decoder evaluations in flight per device: enough to feed a core, few enough for its cache."""

SLAB_ROWS = 200_000
"""Decoder evaluations per dispatch and device: about a second of work on a CPU."""

ACTIVE_THRESHOLD = 0.01
"""A unit is active if its posterior mean varies more than this (Burda et al. 2016, sec. 5.2)."""

AUTHORS_EXAMPLES = 500
"""Training examples from which the paper's published code tells the active units."""

ExampleFn = Callable[[AbstractLatentModel, Example, PRNGKey], PyTree]


def map_examples(
    fn: ExampleFn,
    model: AbstractLatentModel,
    examples: np.ndarray,
    key: PRNGKey,
    *,
    batch_size: int,
    slab_size: int = 1,
) -> Iterator[PyTree]:
    """Apply `fn(model, x, fold_in(key, i))` to every example; yield NumPy results slab by slab.

    Args:
        fn: a function of one example; its result is a pytree of arrays.
        examples: `[n, ...]`; bytes become float32 on the device.
        batch_size: examples under one `vmap`, on each device.
        slab_size: examples per dispatch over all devices, rounded up to whole batches.

    Yields:
        For each slab in order, the pytree of `fn` with a leading axis over the slab's examples.

    Raises:
        UserError: if there are no examples, or `batch_size` is not positive.
    """
    if len(examples) == 0:
        raise UserError("there are no examples to evaluate: this split is empty")
    _check_positive("batch_size", batch_size)
    mesh = Mesh(np.asarray(jax.devices()), ("example",))
    # A model fresh from training lies on some of the devices only.
    arrays, static = eqx.partition((model, key), eqx.is_array)
    arrays = jax.device_put(arrays, NamedSharding(mesh, PartitionSpec()))
    model, key = eqx.combine(arrays, static)
    batch = mesh.size * batch_size
    slab = batch * -(-min(slab_size, len(examples)) // batch)
    for start in range(0, len(examples), slab):
        # The last slab is filled up with the last example, so that only one shape is compiled.
        index = np.minimum(np.arange(start, start + slab), len(examples) - 1)
        xs = jnp.asarray(examples[index])
        out = _map_slab(fn, model, xs, jnp.asarray(index), key, batch_size, mesh)
        count = min(slab, len(examples) - start)
        yield jax.tree.map(lambda leaf, count=count: np.asarray(leaf)[:count], out)


def _check_positive(name: str, value: int) -> None:
    if value < 1:
        raise UserError(f"{name} is {value}; it must be at least 1")


@eqx.filter_jit
def _map_slab(
    fn: ExampleFn,
    model: AbstractLatentModel,
    xs: Shaped[Array, "n ..."],
    index: Int[Array, " n"],
    key: PRNGKey,
    batch_size: int,
    mesh: Mesh,
) -> PyTree:
    params, static = eqx.partition(model, eqx.is_array)

    def one_device(params: PyTree, xs: Array, index: Array, key: PRNGKey) -> PyTree:
        model = eqx.combine(params, static)

        def one_example(args: tuple[Array, Array]) -> PyTree:
            x, i = args
            return fn(model, x.astype(jnp.float32), jax.random.fold_in(key, i))

        return jax.lax.map(one_example, (xs, index), batch_size=batch_size)

    split, whole = PartitionSpec("example"), PartitionSpec()
    return jax.shard_map(
        one_device,
        mesh=mesh,
        in_specs=(whole, split, split, whole),
        out_specs=split,
        check_vma=False,  # the loops start from constants, which are the same on every device
    )(params, xs, index, key)


def gather(slabs: Iterator[PyTree]) -> PyTree:
    """All slabs of `map_examples` as one pytree of `[n, ...]` arrays, floats in float64."""

    def join(*leaves: np.ndarray) -> np.ndarray:
        whole = np.concatenate(leaves)
        return whole.astype(np.float64) if np.issubdtype(whole.dtype, np.floating) else whole

    return jax.tree.map(join, *slabs)


@lru_cache
def streamed_bound(k: int, chunk: int, sampler: Callable = importance_particles) -> ExampleFn:
    """L_k of one example and the effective sample size, from chunks of particles.

    The running maximum, sum and sum of squares of the weights are all that is kept, so memory
    does not grow with k. Particle i has the same key whatever the chunk.

    Returns:
        A function of (model, x, key) whose result has `log_likelihood` (nats) and `ess`.
    """

    def fn(model: AbstractLatentModel, x: Example, key: PRNGKey) -> dict[str, Scalar]:
        def add(carry: tuple, first: Array) -> tuple[tuple, None]:
            log_w = sampler(model, x, key, chunk, first=first)[0].log_w
            kept = jnp.where(first + jnp.arange(chunk) < k, log_w, -jnp.inf)
            return _add_weights(carry, kept), None

        start = (jnp.float32(-jnp.inf), jnp.float32(0), jnp.float32(0))
        (top, total, squares), _ = jax.lax.scan(add, start, jnp.arange(0, k, chunk))
        return {
            "log_likelihood": top + jnp.log(total) - jnp.log(jnp.float32(k)),
            "ess": jnp.where(squares > 0, total**2 / squares, 0.0),
        }

    return fn


def _add_weights(
    carry: tuple[Scalar, Scalar, Scalar], log_w: LogWeights
) -> tuple[Scalar, Scalar, Scalar]:
    """Fold weights into (max log w, sum w / max, sum (w / max)^2)."""
    top, total, squares = carry
    new_top = jnp.maximum(top, jnp.max(log_w))
    shift = jnp.where(jnp.isneginf(new_top), 0.0, new_top)  # all weights zero so far
    scale, w = jnp.exp(top - shift), jnp.exp(log_w - shift)
    return new_top, total * scale + jnp.sum(w), squares * scale**2 + jnp.sum(w**2)


def log_likelihood_slabs(
    model: AbstractLatentModel,
    examples: np.ndarray,
    key: PRNGKey,
    *,
    k: int,
    batch_size: int | None = None,
    chunk_size: int | None = None,
    sampler: Callable = importance_particles,
) -> Iterator[dict[str, np.ndarray]]:
    """`log_likelihoods` slab by slab, with the effective sample sizes, for progress bars."""
    longest = ROWS // 4 if chunk_size is None else chunk_size
    _check_positive("k", k)
    _check_positive("chunk_size", longest)
    chunk = -(-k // -(-k // longest))  # chunks of equal length waste the fewest particles
    batch = max(1, ROWS // chunk) if batch_size is None else batch_size
    slab = max(1, SLAB_ROWS // k) * jax.device_count()
    fn = streamed_bound(k, chunk, sampler)
    slabs = map_examples(fn, model, examples, key, batch_size=batch, slab_size=slab)
    return _refuse_nan(slabs)


def _refuse_nan(slabs: Iterator[dict[str, np.ndarray]]) -> Iterator[dict[str, np.ndarray]]:
    done = 0
    for slab in slabs:
        bad = np.flatnonzero(np.isnan(slab["log_likelihood"]))
        if bad.size:
            raise FloatingPointError(
                f"the log-likelihood of example {done + bad[0]} is not a number (nan): look for "
                "a parameter of the model or a value of this example that is not finite"
            )
        done += len(slab["log_likelihood"])
        yield slab


def log_likelihoods(
    model: AbstractLatentModel,
    examples: np.ndarray,
    key: PRNGKey,
    *,
    k: int,
    batch_size: int | None = None,
    chunk_size: int | None = None,
    sampler: Callable = importance_particles,
) -> Float[np.ndarray, " n"]:
    """The importance weighted bound L_k of each example (Burda et al. 2016, eq. 8).

    Its expectation is a lower bound of log p(x) that rises with k.

    Args:
        examples: `[n, ...]`, in the model's units (binary pixels as 0 and 1).
        k: importance samples per example; memory does not depend on it.
        batch_size, chunk_size: examples and particles at a time; they change the speed, not
            the numbers (beyond float32 rounding).
        sampler: a function (model, x, key, k, first=) -> (Particles, info).

    Returns:
        `[n]` float64, nats.

    Raises:
        UserError: if there are no examples, or k or a size is not positive.
        FloatingPointError: if a number is nan; `-inf` is an example that the model rules out.
    """
    slabs = log_likelihood_slabs(
        model,
        examples,
        key,
        k=k,
        batch_size=batch_size,
        chunk_size=chunk_size,
        sampler=sampler,
    )
    return gather(slabs)["log_likelihood"]


# --- where the bound comes from, and which units carry it -----------------------------------


@lru_cache
def layer_terms(k: int) -> ExampleFn:
    """The parts of a VAE's evidence lower bound: ELBO = reconstruction - sum(kl).

    Each is an average over the same k draws z ~ q(z|x). Only the last of `kl` is an average of
    divergences; one of a lower layer, whose p looks down from above and q up from below, can be
    negative.

    Returns:
        A function of (model, x, key) whose result has, in nats, `reconstruction`, the scalar
        E_q log p(x|h_1), and `kl`, `[L]`: E_q[log q(h_l|h_{l-1}) - log p(h_l|h_{l+1})].
    """

    def fn(model: AbstractLatentModel, x: Example, key: PRNGKey) -> dict[str, Array]:
        vae = _as_vae(model)
        posterior = vae.posterior(x)

        def draw(key: PRNGKey) -> tuple[Scalar, Float[Array, " L"]]:
            z = posterior.sample(key)
            log_q = jnp.stack(posterior.layer_log_probs(z))
            return vae.decode(z).log_prob(x), log_q - jnp.stack(vae.layer_log_priors(z))

        reconstruction, kl = jax.vmap(draw)(particle_keys(key, jnp.arange(k)))
        return {"reconstruction": jnp.mean(reconstruction), "kl": jnp.mean(kl, axis=0)}

    return fn


def _as_vae(model: AbstractLatentModel) -> VAE:
    if not isinstance(model, VAE):
        raise UserError(
            f"a {type(model).__name__} has no layers to look into: this needs an iwae.VAE"
        )
    return model


class ActiveUnits(NamedTuple):
    """How much each latent unit's posterior mean varies from example to example.

    Attributes:
        variances: for each layer l, `[d_l]` float64: the variance of E_q[h_l|x] over examples.
        n: examples.
        samples: ancestral draws per example.
        threshold: a unit whose variance is above it is active.
    """

    variances: tuple[Float[np.ndarray, " _"], ...]
    n: int
    samples: int
    threshold: float

    @property
    def masks(self) -> tuple[Bool[np.ndarray, " _"], ...]:
        """For each layer, which units are active."""
        return tuple(variance > self.threshold for variance in self.variances)

    @property
    def counts(self) -> tuple[int, ...]:
        """For each layer, how many units are active."""
        return tuple(int(mask.sum()) for mask in self.masks)


def active_units(
    model: AbstractLatentModel,
    examples: np.ndarray,
    key: PRNGKey,
    *,
    samples: int = 16,
    threshold: float = ACTIVE_THRESHOLD,
) -> ActiveUnits:
    """The variance over examples of each unit's posterior mean (Burda et al. 2016, sec. 5.2).

    Of the first layer the mean E_q[h_1|x] is known exactly. Of a layer above it is estimated by
    the average of E[h_l|h_{l-1}] over `samples` ancestral draws of the layers below, and the
    variance that the noise of this average adds is estimated from the draws and taken off (the
    result is not let below zero). One draw says nothing about its noise, so with `samples=1`
    nothing is taken off, and noise counts as activity.

    The variance divides by n, not n - 1. Memory does not grow with the number of examples.

    Args:
        examples: `[n, ...]` in the model's units: a whole split.
        samples: ancestral draws per example.

    Raises:
        UserError: if the model is not a VAE, there are no examples, or `samples` is not positive.
    """
    _as_vae(model)
    _check_positive("samples", samples)
    slabs = map_examples(
        _posterior_means(samples),
        model,
        examples,
        key,
        batch_size=max(1, ROWS // samples),
        slab_size=max(1, SLAB_ROWS // samples) * jax.device_count(),
    )
    sums = reduce(partial(jax.tree.map, np.add), map(_moment_sums, slabs))
    n = len(examples)
    variances = tuple(
        np.maximum(square / n - (first / n) ** 2 - (1 - 1 / n) * noise / n, 0.0)
        for first, square, noise in zip(*sums, strict=True)
    )
    return ActiveUnits(variances, n, samples, threshold)


def authors_active_units(
    model: AbstractLatentModel, train_examples: np.ndarray, key: PRNGKey
) -> ActiveUnits:
    """Active units as the paper's published code counts them: 500 examples, one ancestral draw.

    Args:
        train_examples: the training data in the model's units, so pixels already binarised;
            only the first 500 are used.
    """
    return active_units(model, train_examples[:AUTHORS_EXAMPLES], key, samples=1)


@lru_cache
def _posterior_means(samples: int) -> ExampleFn:
    """For each layer, the estimate of E_q[h_l|x] and the variance of its noise, `[d_l]` each."""

    def fn(model: AbstractLatentModel, x: Example, key: PRNGKey) -> tuple[list, list]:
        posterior = _as_vae(model).posterior(x)
        keys = particle_keys(key, jnp.arange(samples))
        draws = jax.vmap(lambda key: posterior.layer_means(posterior.sample(key)))(keys)
        noise = [jnp.var(d, axis=0) / max(1, samples - 1) for d in draws]  # of one draw: zero
        return [jnp.mean(d, axis=0) for d in draws], noise

    return fn


def _moment_sums(slab: tuple[list, list]) -> tuple[list, list, list]:
    """Sums over examples of means, squared means and noise; float64 loses nothing that matters."""
    means, noise = jax.tree.map(lambda leaf: leaf.astype(np.float64), slab)
    return [m.sum(0) for m in means], [(m**2).sum(0) for m in means], [v.sum(0) for v in noise]


# --- removing units -------------------------------------------------------------------------


def prune(model: AbstractLatentModel, keep: Sequence[Bool[np.ndarray, " _"]]) -> VAE:
    """A smaller model without the units that are not kept; the model given stays as it is.

    A unit removed is one fixed at 0 with its factors of p and q dropped. If nothing is kept of
    a layer l > 1, it carries nothing up or down, so the layers above it go too (their weights
    have mean one) and layer l - 1 becomes the top. Its prior p(h_{l-1}|h_l = 0) is then a
    constant Gaussian, which standardised latents make the N(0, I) of a VAE; log weights do not
    change under this change of variables.

    Args:
        keep: for each layer a mask, `[d_l]`, such as `active_units(...).masks`.

    Raises:
        UserError: if the model is not a VAE, the masks do not fit it, or nothing is kept of the
            first layer (no VAE is left: the data do not depend on the latents at all).
    """
    vae = _as_vae(model)
    if tuple(mask.size for mask in keep) != vae.latent_sizes:
        sizes = tuple(mask.size for mask in keep)
        raise UserError(f"masks of sizes {sizes} do not fit latent sizes {vae.latent_sizes}")
    if not keep[0].any():
        raise UserError("no unit of the first layer is kept, and a VAE needs at least one")
    empty = [l for l, mask in enumerate(keep) if not mask.any()]
    n_layers = min(empty, default=len(keep))
    for l, mask in enumerate(keep[:n_layers]):
        vae = eqx.tree_at(partial(_writers, l), vae, replace_fn=partial(_keep_outputs, mask))
        vae = eqx.tree_at(partial(_readers, l), vae, replace_fn=partial(_keep_inputs, mask))
    return _without_top(vae, n_layers) if empty else vae


def _writers(l: int, model: VAE) -> list[Dense]:
    """The linear maps whose outputs are units of layer l (from 0): of its q, and of its p."""
    nets = model.encoder[l : l + 1] + model.prior_nets[l : l + 1]
    return [dense for net in nets for dense in (net.loc, net.log_scale)]


def _readers(l: int, model: VAE) -> list[Dense]:
    """The linear maps whose inputs are units of layer l (from 0): of the layers above and below."""

    def first(net: GaussianNet) -> tuple[Dense, ...]:
        return net.hidden.layers[:1] or (net.loc, net.log_scale)

    above = [dense for net in model.encoder[l + 1 : l + 2] for dense in first(net)]
    if l == 0:
        return [*above, *(*model.decoder_hidden.layers, model.output)[:1]]
    return [*above, *first(model.prior_nets[l - 1])]


def _keep_outputs(mask: np.ndarray, dense: Dense) -> Dense:
    return _with(dense, dense.weight[:, mask], dense.bias[mask])


def _keep_inputs(mask: np.ndarray, dense: Dense) -> Dense:
    return _with(dense, dense.weight[mask], dense.bias)


def _with(dense: Dense, weight: Float[Array, "n m"], bias: Float[Array, " m"]) -> Dense:
    return eqx.tree_at(lambda d: (d.weight, d.bias), dense, (weight, bias))


def _without_top(model: VAE, n_layers: int) -> VAE:
    """The first `n_layers` layers of a model whose next layer is fixed at zero."""
    top = n_layers - 1
    prior = model.prior_nets[top](jnp.zeros(model.latent_sizes[n_layers]))
    mean, scale = prior.mean, jnp.sqrt(prior.variance)
    model = eqx.tree_at(
        lambda m: (m.encoder, m.prior_nets),
        model,
        (model.encoder[:n_layers], model.prior_nets[:top]),
    )

    # With h = mean + scale u and p(u) = N(0, I): q's outputs are those of u, and readers take u.
    def read(dense: Dense) -> Dense:
        return _with(dense, scale[:, None] * dense.weight, dense.bias + mean @ dense.weight)

    q = model.encoder[top]
    loc = _with(q.loc, q.loc.weight / scale, (q.loc.bias - mean) / scale)
    log_scale = _with(q.log_scale, q.log_scale.weight, q.log_scale.bias - jnp.log(scale))
    model = eqx.tree_at(partial(_writers, top), model, [loc, log_scale])
    return eqx.tree_at(partial(_readers, top), model, replace_fn=read)
