"""Training: many steps in one compiled program, many independently seeded replicates at once.

A replicate's `TrainState` says everything that the next step needs; all states carry a leading
axis over replicates. Every random number of step s is addressed by (replicate's key, s, position
in the batch), so a run that is stopped, resumed or cut into other dispatches stays the same run.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, Shaped

from iwae._types import Example, PRNGKey, Scalar, UserError
from iwae.data import draw
from iwae.evaluate import gather, map_examples
from iwae.model import AbstractLatentModel
from iwae.objectives import Objective
from iwae.particles import particle_keys

Schedule = Callable[[Array], Array]

DISPATCH_SECONDS = 2.0
"""How long one dispatch should last: long enough to cost nothing, short enough to stop politely."""


class TrainState(NamedTuple):
    """What the next step needs; every leaf has a leading axis over replicates.

    Attributes:
        params: the model's floating-point arrays.
        opt_state: the optimiser's state.
        key: the replicate's key; never consumed, only folded.
        step: steps taken.
        bound: mean of the batches' bounds in the epoch of the last step, nats.
    """

    params: PyTree
    opt_state: PyTree
    key: Key[Array, " R"]
    step: Int[Array, " R"]
    bound: Float[Array, " R"]


class Settings(NamedTuple):
    """What is fixed while a program runs; hashable, so that it can be a static argument.

    Attributes:
        objective: maximised, one example at a time.
        optimizer: turns gradients of the mean loss into a direction of descent; the learning
            rate is not part of it.
        batch_size: examples a step.
        binarization: how raw examples become the model's input, see `iwae.data.draw`.
        shuffle: a new order every epoch; otherwise the order of the first epoch for ever.
    """

    objective: Objective
    optimizer: optax.GradientTransformation
    batch_size: int = 20
    binarization: str = "none"
    shuffle: bool = True


# --- optimisers and schedules ---------------------------------------------------------------


def adam() -> optax.GradientTransformation:
    """Adam as the paper states it: beta1 = 0.9, beta2 = 0.999, epsilon = 1e-4."""
    return optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-4)


class AuthorsAdamState(NamedTuple):
    """Moments of the steps before."""

    count: Int[Array, ""]
    mu: PyTree
    nu: PyTree


def authors_adam(batch_size: int) -> optax.GradientTransformation:
    """The optimiser of the paper's published code, which differs from the paper's text.

    beta1 is 0.99; the second moments start at one while the bias correction is the usual one;
    a step uses the moments of the step before, so the first changes nothing; the gradient is
    the sum over the batch, which makes epsilon = 1e-4 a smaller one on the mean.
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
        count = state.count + 1
        t = count.astype(jnp.float32)
        correction = jnp.sqrt(1 - b2**t) / (1 - b1**t)
        updates = jax.tree.map(
            lambda m, v: correction * m / (jnp.sqrt(v) + eps), state.mu, state.nu
        )
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * batch_size * g, state.mu, grads)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * (batch_size * g) ** 2, state.nu, grads)
        return updates, AuthorsAdamState(count, mu, nu)

    return optax.GradientTransformation(init, update)


class StagedSchedule(eqx.Module):
    """A learning rate that is constant within stages; its numbers are not compiled in.

    Attributes:
        ends: the step at which each stage ends.
        rates: the learning rate of each stage; the last one holds after the last end.
    """

    ends: Int[Array, " stages"]
    rates: Float[Array, " stages"]

    def __call__(self, step: Int[Array, ""]) -> Scalar:
        """The learning rate of the step after `step` steps."""
        stage = jnp.searchsorted(self.ends, step, side="right")
        return self.rates[jnp.minimum(stage, self.rates.size - 1)]


def staged(rates: Sequence[float], epochs: Sequence[int], steps_per_epoch: int) -> StagedSchedule:
    """The schedule that holds `rates[i]` for `epochs[i]` epochs, stage after stage."""
    ends = np.cumsum(np.asarray(epochs, np.int64)) * steps_per_epoch
    return StagedSchedule(jnp.asarray(ends, jnp.int32), jnp.asarray(rates, jnp.float32))


PAPER_EPOCHS = tuple(3**i for i in range(8))
PAPER_RATES = tuple(1e-3 * 10 ** (-i / 7) for i in range(8))
AUTHORS_RATES = tuple(1e-3 * r for r in (1.0, 0.72, 0.52, 0.37, 0.27, 0.19, 0.14, 0.1))


def stage_epochs(total: int) -> tuple[int, ...]:
    """The paper's eight stages, 3^i epochs each, stretched or squeezed to `total` epochs.

    Stage ends are rounded, so that short runs skip the short early stages; 3,280 epochs are the
    paper's own.
    """
    ends = np.round(np.cumsum(PAPER_EPOCHS) * total / sum(PAPER_EPOCHS)).astype(int)
    return tuple(int(n) for n in np.diff(ends, prepend=0))


# --- the compiled program -------------------------------------------------------------------


def init_state(
    models: Sequence[AbstractLatentModel], keys: Key[Array, " R"], settings: Settings
) -> TrainState:
    """The state before the first step of one replicate for each of `models`."""
    params = [eqx.filter(model, eqx.is_inexact_array) for model in models]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params)
    opt_states = [settings.optimizer.init(p) for p in params]
    opt_state = jax.tree.map(lambda *leaves: jnp.stack(leaves), *opt_states)
    steps = jnp.zeros(len(models), jnp.int32)
    return TrainState(stacked, opt_state, keys, steps, jnp.zeros(len(models), jnp.float32))


def replicate_model(
    template: AbstractLatentModel, params: PyTree, replicate: int
) -> AbstractLatentModel:
    """The model of one replicate; `template` says what is not trained."""
    static = eqx.filter(template, eqx.is_inexact_array, inverse=True)
    return eqx.combine(jax.tree.map(lambda leaf: leaf[replicate], params), static)


_ORDER, _STEPS = 0, 1  # what a replicate's key is folded with, for data order and for steps


def _step_key(state: TrainState) -> PRNGKey:
    return jax.random.fold_in(jax.random.fold_in(state.key, _STEPS), state.step)


def _epoch_order(state: TrainState, n: int, settings: Settings) -> Int[Array, " n"]:
    """The order in which the epoch of one replicate's next step visits the examples."""
    epoch = state.step // (n // settings.batch_size) if settings.shuffle else 0
    key = jax.random.fold_in(jax.random.fold_in(state.key, _ORDER), epoch)
    return jax.random.permutation(key, n)


def _batch(
    state: TrainState, order: Int[Array, " n"], data: Shaped[Array, "n ..."], settings: Settings
) -> Shaped[Array, "batch ..."]:
    """The raw examples of one replicate's next step."""
    first = state.step % (len(data) // settings.batch_size) * settings.batch_size
    return data[jax.lax.dynamic_slice_in_dim(order, first, settings.batch_size)]


def mean_loss(
    model: AbstractLatentModel,
    raw: Shaped[Array, "batch ..."],
    key: PRNGKey,
    settings: Settings,
) -> Scalar:
    """Minus the mean objective of a batch: the one place that negates and averages."""

    def one(raw: Shaped[Array, "..."], position: Array) -> Scalar:
        x, latent_key = _example(raw, position, key, settings)
        return settings.objective(model, x, latent_key)

    return -jnp.mean(jax.vmap(one)(raw, jnp.arange(settings.batch_size)))


def _example(
    raw: Shaped[Array, "..."], position: Int[Array, ""], step_key: PRNGKey, settings: Settings
) -> tuple[Example, PRNGKey]:
    """The model's input at one place of a batch, and the key of its latents."""
    data_key, latent_key = jax.random.split(jax.random.fold_in(step_key, position))
    return draw(raw, data_key, binarization=settings.binarization), latent_key


def _one_step(
    state: TrainState,
    raw: Shaped[Array, "batch ..."],
    schedule: Schedule,
    static: PyTree,
    settings: Settings,
    steps_per_epoch: int,
) -> tuple[TrainState, PyTree]:
    """One step of one replicate: the next state, and the gradient that led there."""
    step_key = _step_key(state)

    def loss(params: PyTree) -> Scalar:
        return mean_loss(eqx.combine(params, static), raw, step_key, settings)

    value, grads = jax.value_and_grad(loss)(state.params)
    direction, opt_state = settings.optimizer.update(grads, state.opt_state, state.params)
    rate = schedule(state.step)
    params = jax.tree.map(lambda p, d: p - rate * d, state.params, direction)
    # A running mean, because a running sum in float32 would lose digits over a long epoch.
    seen = state.step % steps_per_epoch
    mean = jnp.where(seen == 0, 0.0, state.bound)
    bound = mean + (-value - mean) / (seen + 1).astype(jnp.float32)
    return TrainState(params, opt_state, state.key, state.step + 1, bound), grads


def _run_replicate(
    state: TrainState,
    stop: Int[Array, ""],
    data: Shaped[Array, "n ..."],
    schedule: Schedule,
    static: PyTree,
    settings: Settings,
    checked: bool,
) -> TrainState:
    """Steps up to `stop`, all within one epoch; ends early when a bound is not finite.

    `checked` also looks at every gradient, and returns the state before the step that broke.
    """
    steps_per_epoch = len(data) // settings.batch_size
    order = _epoch_order(state, len(data), settings)

    def going_on(carry: tuple[TrainState, Bool[Array, ""]]) -> Bool[Array, ""]:
        state, good = carry
        return good & (state.step < stop)

    def step(carry: tuple[TrainState, Bool[Array, ""]]) -> tuple[TrainState, Bool[Array, ""]]:
        state, _ = carry
        raw = _batch(state, order, data, settings)
        new, grads = _one_step(state, raw, schedule, static, settings, steps_per_epoch)
        good = jnp.isfinite(new.bound)
        if checked:
            good &= jnp.isfinite(optax.tree.sum(jax.tree.map(jnp.abs, grads)))
            new = jax.tree.map(lambda a, b: jnp.where(good, a, b), new, state)
        return new, good

    return jax.lax.while_loop(going_on, step, (state, jnp.bool(True)))[0]


def run_steps(
    state: TrainState,
    stop: Int[Array, " R"],
    data: Shaped[Array, "n ..."],
    schedule: Schedule,
    template: AbstractLatentModel,
    settings: Settings,
    *,
    checked: bool = False,
) -> TrainState:
    """Take every replicate to its step `stop`, in one program on all devices.

    Replicates are sharded over the devices. Within one they go one after another on a CPU, whose
    cores are busy with one, and under one `vmap` on a GPU, which is not.

    Args:
        state: R replicates.
        stop: the step to stop at, in the epoch that the replicate is in; a replicate already
            there costs nothing and stays as it is.
        data: the raw training examples.
        template: a model of the replicates' kind; its floating-point arrays are not used.
        checked: also look at every gradient; slower, to find the step that broke a run.

    Returns:
        The new states. A replicate whose bound is not finite has stopped where it broke.
    """
    replicates = len(state.step)
    devices = jax.devices()[:replicates]
    mesh = Mesh(np.asarray(devices), ("replicate",))
    padding = -replicates % len(devices)  # copies that have nothing to do
    if padding:
        state = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf[:padding]]), state)
        stop = jnp.concatenate([stop, state.step[:padding]])
    state, stop = jax.device_put((state, stop), NamedSharding(mesh, PartitionSpec("replicate")))
    data = jax.device_put(data, NamedSharding(mesh, PartitionSpec()))
    static = eqx.filter(template, eqx.is_inexact_array, inverse=True)
    out = _run_replicates(state, stop, data, schedule, static, settings, checked, mesh)
    return jax.tree.map(lambda leaf: leaf[:replicates], out) if padding else out


@eqx.filter_jit
def _run_replicates(
    state: TrainState,
    stop: Int[Array, " R"],
    data: Shaped[Array, "n ..."],
    schedule: Schedule,
    static: PyTree,
    settings: Settings,
    checked: bool,
    mesh: Mesh,
) -> TrainState:
    arrays, fixed = eqx.partition((schedule, static), eqx.is_array)

    def on_device(states: TrainState, stops: Array, data: Array, arrays: PyTree) -> TrainState:
        schedule, static = eqx.combine(arrays, fixed)

        def one(state: TrainState, stop: Array) -> TrainState:
            return _run_replicate(state, stop, data, schedule, static, settings, checked)

        if mesh.devices.flat[0].platform == "cpu":
            return jax.lax.map(lambda args: one(*args), (states, stops))
        return jax.vmap(one)(states, stops)

    split, whole = PartitionSpec("replicate"), PartitionSpec()
    return jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(split, split, whole, whole),
        out_specs=split,
        check_vma=False,  # the loops start from constants, which are the same on every device
    )(state, stop, data, arrays)


# --- early stopping -------------------------------------------------------------------------


class Best(NamedTuple):
    """The best weights so far of each replicate, by the validation bound.

    Attributes:
        params: as in `TrainState`.
        value: the best validation bound, nats; `-inf` before the first.
        epoch: when that was.
        waited: validations since then without an improvement by more than the threshold.
    """

    params: PyTree
    value: Float[Array, " R"]
    epoch: Int[Array, " R"]
    waited: Int[Array, " R"]


def init_best(state: TrainState) -> Best:
    """Nothing validated yet."""
    shape = state.step.shape
    zeros = jnp.zeros(shape, jnp.int32)
    return Best(state.params, jnp.full(shape, -jnp.inf, jnp.float32), zeros, zeros)


def update_best(
    best: Best,
    params: PyTree,
    value: Float[np.ndarray, " R"],
    active: Bool[np.ndarray, " R"],
    epoch: int,
    threshold: float = 0.0,
) -> Best:
    """Keep what improves: strictly, by more than `threshold` nats, whatever the sign of either.

    Replicates that are not `active` keep what they have.
    """
    value = jnp.asarray(value, jnp.float32)
    better = jnp.asarray(active) & (value > best.value + threshold)

    def choose(new: Array, old: Array) -> Array:
        return jnp.where(better.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    return Best(
        jax.tree.map(choose, params, best.params),
        choose(value, best.value),
        choose(jnp.full_like(best.epoch, epoch), best.epoch),
        choose(jnp.zeros_like(best.waited), best.waited + jnp.asarray(active, jnp.int32)),
    )


# --- the run --------------------------------------------------------------------------------


class Plan(NamedTuple):
    """How long to train, and what to look at on the way.

    Attributes:
        epochs: passes over the training data; what does not fill a batch is left out of an
            epoch, other examples each time.
        validate_every: epochs between validations.
        patience: validations without improvement after which a replicate stops; None: never.
        threshold: nats by which a validation bound must exceed the best one to count.
    """

    epochs: int
    validate_every: int = 1
    patience: int | None = None
    threshold: float = 0.0


class Report(NamedTuple):
    """What happened in one dispatch.

    Attributes:
        step: of the replicates that are still training.
        epoch: epochs completed.
        epoch_done: this dispatch ended an epoch.
        bound: `[R]` mean training bound of the epoch so far, nats; nan for what has stopped.
        validation: `[R]` validation bound, nats, where this dispatch ended in a validation.
        active: `[R]` which replicates were training.
        steps: steps per replicate in this dispatch.
        seconds: how long they took.
    """

    step: int
    epoch: int
    epoch_done: bool
    bound: np.ndarray
    validation: np.ndarray | None
    active: np.ndarray
    steps: int
    seconds: float


class NonFiniteError(FloatingPointError):
    """Training met a number that is not finite.

    Attributes:
        state: the last good state, before the step that broke.
        best: the best weights so far.
    """

    def __init__(self, message: str, state: TrainState, best: Best):
        super().__init__(message)
        self.state = state
        self.best = best


def training(
    state: TrainState,
    best: Best,
    data: np.ndarray,
    schedule: Schedule,
    template: AbstractLatentModel,
    settings: Settings,
    plan: Plan,
    validation: np.ndarray | None = None,
) -> Iterator[tuple[TrainState, Best, Report]]:
    """Train from `state` to the end of the plan; yield after every dispatch.

    The caller may stop between any two dispatches and go on later from what was yielded: the
    result is the same, bit for bit.

    Args:
        data: `[n, ...]` raw training examples.
        validation: `[m, ...]` examples in the model's units, for `plan.validate_every`.

    Raises:
        UserError: if there are fewer examples than a batch holds.
        NonFiniteError: names the step and the first term that is not finite.
    """
    steps_per_epoch = len(data) // settings.batch_size
    if steps_per_epoch == 0:
        raise UserError(
            f"{len(data)} training examples do not fill one batch of {settings.batch_size}; "
            "choose a smaller batch size"
        )
    data, last, size = jnp.asarray(data), plan.epochs * steps_per_epoch, 20
    while (step := int(state.step.max())) < last and (active := _active(best, plan)).any():
        end_of_epoch = (step // steps_per_epoch + 1) * steps_per_epoch
        stop, start = min(step + size, end_of_epoch), time.perf_counter()
        stops = jnp.where(active, stop, state.step)
        new = run_steps(state, stops, data, schedule, template, settings)
        bound = np.where(active, new.bound, np.nan)  # waits for the device
        seconds = time.perf_counter() - start
        if not np.isfinite(new.bound).all():
            raise _diagnose(state, best, stops, data, schedule, template, settings)
        state, epoch, values = new, stop // steps_per_epoch, None
        done = stop == end_of_epoch
        if done and validation is not None and epoch % plan.validate_every == 0:
            values = validation_bounds(state, template, settings, validation)
            best = update_best(best, state.params, values, active, epoch, plan.threshold)
        yield state, best, Report(stop, epoch, done, bound, values, active, stop - step, seconds)
        size = max(1, round((stop - step) * min(DISPATCH_SECONDS / seconds, 10)))


def _active(best: Best, plan: Plan) -> np.ndarray:
    """Which replicates have not run out of patience."""
    return np.asarray(best.waited) < (np.inf if plan.patience is None else plan.patience)


def validation_bounds(
    state: TrainState, template: AbstractLatentModel, settings: Settings, validation: np.ndarray
) -> Float[np.ndarray, " R"]:
    """The mean training objective of each replicate on other data, by the same keys each time."""
    means = []
    for replicate in range(len(state.step)):
        model = replicate_model(template, state.params, replicate)
        slabs = map_examples(
            settings.objective,
            model,
            validation,
            jax.random.key(_VALIDATION_SEED),
            batch_size=settings.batch_size,
            slab_size=len(validation),
        )
        means.append(gather(slabs).mean())
    return np.asarray(means)


_VALIDATION_SEED = 0


def _diagnose(
    state: TrainState,
    best: Best,
    stops: Int[Array, " R"],
    data: Shaped[Array, "n ..."],
    schedule: Schedule,
    template: AbstractLatentModel,
    settings: Settings,
) -> NonFiniteError:
    """Run the dispatch that broke again, checking every gradient, and name what broke first."""
    good = run_steps(state, stops, data, schedule, template, settings, checked=True)
    broken = int(np.argmax(np.asarray(good.step < stops)))
    one = jax.tree.map(lambda leaf: leaf[broken], good)
    raw = _batch(one, _epoch_order(one, len(data), settings), data, settings)
    model = replicate_model(template, good.params, broken)
    term = _first_non_finite(model, raw, _step_key(one), settings)
    step, steps_per_epoch = int(one.step), len(data) // settings.batch_size
    message = (
        f"training stopped at step {step + 1} (epoch {step // steps_per_epoch + 1}, replicate "
        f"{broken}): {term} is not finite; a smaller learning rate or smaller inputs usually help"
    )
    return NonFiniteError(message, good, best)


def _first_non_finite(
    model: AbstractLatentModel,
    raw: Shaped[Array, "batch ..."],
    step_key: PRNGKey,
    settings: Settings,
) -> str:
    """The first of a step's quantities, in the order of their computation, that broke."""

    def terms(raw: Shaped[Array, "..."], position: Array) -> dict[str, Array]:
        x, key = _example(raw, position, step_key, settings)
        posterior = model.posterior(x)
        z = jax.vmap(posterior.sample)(particle_keys(key, jnp.arange(_DIAGNOSED)))
        log_q = jax.vmap(posterior.log_prob)(z)
        log_p = jax.vmap(lambda z: model.log_joint(x, z))(z)
        named = {"the input x": x, "a parameter of q(z|x)": posterior, "a draw of q(z|x)": z}
        return named | {"log q(z|x)": log_q, "log p(x, z)": log_p}

    named = {"a parameter of the model": model}
    named |= jax.vmap(terms)(raw, jnp.arange(len(raw)))
    params, static = eqx.partition(model, eqx.is_inexact_array)
    loss, grads = jax.value_and_grad(
        lambda params: mean_loss(eqx.combine(params, static), raw, step_key, settings)
    )(params)
    named["the bound"] = loss
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        named[f"the gradient of {jax.tree_util.keystr(path).lstrip('.')}"] = leaf
    for name, tree in named.items():
        leaves = jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array))
        if not all(bool(jnp.isfinite(leaf).all()) for leaf in leaves):
            return name
    return "the optimiser's update"


_DIAGNOSED = 64  # particles looked at: the first ones of the step, whatever its k
