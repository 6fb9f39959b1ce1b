"""The compiled program: many steps of many replicates in one dispatch.

The `TrainState` of a replicate holds everything that the next step needs; all states have a leading
axis over replicates. Every random number of step s is addressed by (replicate's key, s, position in
the batch), so that stopping, resuming or other dispatches do not change a run.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int, Key, PyTree, Shaped

from iwae.data import draw
from iwae.inference.particles import Info
from iwae.models.vae import AbstractLatentModel
from iwae.objectives.objective import Extra, Objective
from iwae.training.feed import on_all_devices
from iwae.training.hiding import hide
from iwae.training.schedules import Schedule
from iwae.typing import Example, PRNGKey, Scalar


class TrainState(NamedTuple):
    """Everything that the next step needs; every leaf has a leading axis over replicates.

    Attributes:
        params: the model's floating-point arrays.
        opt_state: the optimiser's state.
        key: the replicate's key; never consumed, only folded.
        step: steps taken.
        bound: mean of the batches' bounds in the epoch of the last step, nats.
        extra: arrays that the objective learns and tunes besides the model.
        metrics: means, over the same steps, of the objective's metrics besides its bound.
        ema: the exponential moving average of `params`; () unless `Settings.ema` is given.
    """

    params: PyTree
    opt_state: PyTree
    key: Key[Array, " R"]
    step: Int[Array, " R"]
    bound: Float[Array, " R"]
    extra: Extra
    metrics: dict[str, Float[Array, " R"]]
    ema: PyTree = ()


class Clock(NamedTuple):
    """The step and the epoch at which a stage begins."""

    step: Int[Array, ""] | int = 0
    epoch: Int[Array, ""] | int = 0


START = Clock()
"""The clock of a run without stages."""


class Settings(NamedTuple):
    """The constants of a program; hashable, so that they can be a static argument.

    Attributes:
        objective: maximised, one example at a time.
        optimizer: turns gradients of the mean loss into a direction of descent; the learning
            rate is not part of it.
        batch_size: examples per step.
        binarization: how raw examples become the model's input, see `iwae.data.draw`.
        shuffle: whether every epoch has a new order; otherwise all have that of the first epoch.
        validated: the objective to measure on held-out examples; None for `objective`.
        ema: decay of the moving average of the parameters; None for no average.
        hide: probability of hiding each observed value, drawn anew at every visit of an example.
        blocks: number of blocks of an epoch, which are on the device one after another.
    """

    objective: Objective
    optimizer: optax.GradientTransformation
    batch_size: int = 20
    binarization: str = "none"
    shuffle: bool = True
    validated: Objective | None = None
    ema: float | None = None
    hide: float = 0.0
    blocks: int = 1


@eqx.filter_jit  # otherwise each array of a state takes several programs
def init_state(
    models: Sequence[AbstractLatentModel], keys: Key[Array, " R"], settings: Settings
) -> TrainState:
    """The state before the first step, with one replicate for each of `models`."""
    extra, zeros = settings.objective.init(), jnp.zeros(len(models), jnp.float32)
    params = [eqx.filter(model, eqx.is_inexact_array) for model in models]
    opt_states = [settings.optimizer.init((p, extra.learned)) for p in params]
    steps = jnp.zeros(len(models), jnp.int32)
    metrics = dict.fromkeys(settings.objective.metrics, zeros)
    extras, stacked = _stack([extra] * len(models)), _stack(params)
    ema = () if settings.ema is None else stacked
    return TrainState(stacked, _stack(opt_states), keys, steps, zeros, extras, metrics, ema)


def _stack(trees: Sequence[PyTree]) -> PyTree:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


_ORDER, _STEPS = 0, 1  # folded into a replicate's key, for data order and for steps


def step_key(state: TrainState) -> PRNGKey:
    """The key of one replicate's next step."""
    return jax.random.fold_in(jax.random.fold_in(state.key, _STEPS), state.step)


def step_order(state: TrainState, n: int, settings: Settings, clock: Clock) -> Int[Array, " n"]:
    """The order in which one replicate visits the n examples of its next step's block."""
    done = (state.step - clock.step) // (n // settings.batch_size)
    epoch = clock.epoch + done // settings.blocks if settings.shuffle else 0
    key = jax.random.fold_in(jax.random.fold_in(state.key, _ORDER), epoch)
    if settings.blocks > 1:
        key = jax.random.fold_in(key, done % settings.blocks)
    return jax.random.permutation(key, n)


def step_batch(
    state: TrainState,
    order: Int[Array, " n"],
    data: Shaped[Array, "n ..."],
    settings: Settings,
    clock: Clock,
) -> Shaped[Array, "batch ..."]:
    """The raw examples of one replicate's next step."""
    number = (state.step - clock.step) % (len(data) // settings.batch_size)
    first = number * settings.batch_size
    return data[jax.lax.dynamic_slice_in_dim(order, first, settings.batch_size)]


def step_loss(
    model: AbstractLatentModel,
    raw: Shaped[Array, "batch ..."],
    key: PRNGKey,
    extra: Extra,
    settings: Settings,
) -> tuple[Scalar, Info]:
    """Minus the mean objective of a batch: the only place that negates and averages."""

    def one(raw: Shaped[Array, "..."], position: Array) -> tuple[Scalar, Info]:
        given, x, latent_key = step_example(model, raw, position, key, settings)
        return settings.objective.terms(given, x, latent_key, extra)

    values, info = jax.vmap(one)(raw, jnp.arange(settings.batch_size))
    info = jax.tree.map(lambda leaf: jnp.mean(leaf, axis=0), jax.lax.stop_gradient(info))
    return -jnp.mean(values), info


def step_example(
    model: AbstractLatentModel,
    raw: Shaped[Array, "..."],
    position: Int[Array, ""],
    step_key: PRNGKey,
    settings: Settings,
) -> tuple[AbstractLatentModel, Example, PRNGKey]:
    """The conditioned model, its input at one position in a batch, and the key of its latents."""
    data_key, latent_key = jax.random.split(jax.random.fold_in(step_key, position))
    if settings.hide:
        data_key, hide_key = jax.random.split(data_key)
    given, x = model.condition(draw(raw, data_key, binarization=settings.binarization))
    return given, hide(x, hide_key, settings.hide) if settings.hide else x, latent_key


def _one_step(
    state: TrainState,
    raw: Shaped[Array, "batch ..."],
    schedule: Schedule,
    static: PyTree,
    settings: Settings,
    steps_per_epoch: int,
    clock: Clock,
) -> tuple[TrainState, PyTree]:
    """One step of one replicate: the next state, and the gradient that led there."""
    key = step_key(state)

    def loss(trained: PyTree) -> tuple[Scalar, Info]:
        params, learned = trained
        extra = state.extra._replace(learned=learned)
        return step_loss(eqx.combine(params, static), raw, key, extra, settings)

    trained = state.params, state.extra.learned
    (value, info), grads = jax.value_and_grad(loss, has_aux=True)(trained)
    direction, opt_state = settings.optimizer.update(grads, state.opt_state, trained)
    # Every update waits for the whole backward pass. Otherwise the compiler, which may run a
    # layer's update before the backward pass has read its old weights, copies them every step.
    done = sum(jnp.sum(leaf) for leaf in jax.tree.leaves(grads) if leaf.ndim < 2)
    rate = jnp.where(jnp.isfinite(done), schedule(state.step), jnp.nan)
    params, learned = jax.tree.map(lambda p, d: p - rate * d, trained, direction)
    extra = Extra(learned, settings.objective.tune(state.extra.tuned, info))
    # A running mean, because a running sum in float32 would lose digits over a long epoch.
    seen = (state.step - clock.step) % steps_per_epoch

    def running(mean: Scalar, value: Scalar) -> Scalar:
        mean = jnp.where(seen == 0, 0.0, mean)
        return mean + (value - mean) / (seen + 1).astype(jnp.float32)

    bound = running(state.bound, -value)
    metrics = {name: running(mean, info[name]) for name, mean in state.metrics.items()}
    ema = state.ema if settings.ema is None else _averaged(state, params, settings.ema)
    new = TrainState(params, opt_state, state.key, state.step + 1, bound, extra, metrics, ema)
    return new, grads


def _averaged(state: TrainState, params: PyTree, decay: float) -> PyTree:
    """The moving average after a step, with a shorter memory in the first steps."""
    done = state.step.astype(jnp.float32)
    rate = 1 - jnp.minimum(decay, (1 + done) / (10 + done))
    return jax.tree.map(lambda mean, p: mean + rate * (p - mean), state.ema, params)


def _run_replicate(
    state: TrainState,
    stop: Int[Array, ""],
    data: Shaped[Array, "n ..."],
    schedule: Schedule,
    static: PyTree,
    settings: Settings,
    checked: bool,
    clock: Clock,
) -> TrainState:
    """Take steps up to `stop`, all within one block; end early if a bound is not finite.

    `checked` also checks every gradient and returns the state before the step that broke.
    """
    steps_per_epoch = settings.blocks * (len(data) // settings.batch_size)
    order = step_order(state, len(data), settings, clock)

    def unfinished(carry: tuple[TrainState, Bool[Array, ""]]) -> Bool[Array, ""]:
        state, good = carry
        return good & (state.step < stop)

    def step(carry: tuple[TrainState, Bool[Array, ""]]) -> tuple[TrainState, Bool[Array, ""]]:
        state, _ = carry
        raw = step_batch(state, order, data, settings, clock)
        new, grads = _one_step(state, raw, schedule, static, settings, steps_per_epoch, clock)
        good = jnp.isfinite(new.bound)
        if checked:
            good &= jnp.isfinite(
                optax.tree.sum(jax.tree.map(jnp.abs, (grads, new.params, new.extra.learned)))
            )
            old = state._replace(key=new.key)  # the same key object, which the selection skips
            new = jax.tree.map(lambda a, b: a if a is b else jnp.where(good, a, b), new, old)
        return new, good

    return jax.lax.while_loop(unfinished, step, (state, jnp.bool(True)))[0]


def run_compiled_steps(
    state: TrainState,
    stop: Int[Array, " R"],
    data: Shaped[Array, "n ..."],
    schedule: Schedule,
    template: AbstractLatentModel,
    settings: Settings,
    clock: Clock = START,
    *,
    checked: bool = False,
) -> TrainState:
    """Advance every replicate to its step `stop`, in one program on all devices.

    Replicates are sharded over the devices. Within a device, they run one after another on a CPU,
    whose cores one replicate keeps busy, and under one `vmap` on a GPU, which one does not fill.

    Args:
        state: R replicates.
        stop: the step to stop at, within the current block of the epoch; a replicate that is
            already there is unchanged and costs nothing.
        data: the raw training examples, or those of the block if there are several.
        template: a model of the same structure, whose floating-point arrays are not used.
        clock: the step and epoch at which the current stage began.
        checked: whether to check every gradient too, which is slower, to find the step that broke.

    Returns:
        The new states. A replicate whose bound is not finite has stopped where it broke.
    """
    # All devices take part whatever R is, so that the same program always runs. Keys are folded and
    # never consumed, so that a dispatch may be rerun from the same state.
    replicates, mesh = len(state.step), Mesh(np.asarray(jax.local_devices()), ("replicate",))
    idle = -replicates % mesh.size  # copies with nothing to do
    split = NamedSharding(mesh, PartitionSpec("replicate"))
    state = _with_idle(state, idle, split)
    stops = np.concatenate([stop, np.asarray(state.step)[replicates:]])
    stop = jax.device_put(stops, split)
    data = on_all_devices(data)
    static = eqx.filter(template, eqx.is_inexact_array, inverse=True)
    clock = Clock(*jax.device_put([np.asarray(at, np.int32) for at in clock]))
    out = _run_replicates(state, stop, data, (schedule, clock), static, settings, checked, mesh)
    return _first_states(out, replicates) if idle else out


@partial(jax.jit, static_argnames=("idle", "sharding"))
def _with_idle(state: TrainState, idle: int, sharding: NamedSharding | None = None) -> TrainState:
    """The states of all replicates, and idle copies of some of them."""
    replicates = len(state.step)

    # Slices, because tracing and lowering a gather for each array takes several times as long.
    def pad(leaf: Shaped[Array, "R ..."]) -> Shaped[Array, "S ..."]:
        copies = [i % replicates for i in range(idle)]
        pieces = [leaf, *(jax.lax.slice_in_dim(leaf, i, i + 1) for i in copies)]
        padded = jax.lax.concatenate(pieces, 0)
        return padded if sharding is None else jax.lax.with_sharding_constraint(padded, sharding)

    return _map_leaves(pad, state)


@partial(jax.jit, static_argnames="count")
def _first_states(state: TrainState, count: int) -> TrainState:
    """The states of the first replicates."""
    return _map_leaves(lambda leaf: jax.lax.slice_in_dim(leaf, 0, count), state)


def _map_leaves(fn: Callable[[Array], Array], state: TrainState) -> TrainState:
    """Apply a function to every leaf, and to the raw data of keys so that they can be copied."""
    data, impl = jax.random.key_data(state.key), jax.random.key_impl(state.key)
    made = jax.tree.map(fn, state._replace(key=data))
    return made._replace(key=jax.random.wrap_key_data(made.key, impl=impl))


@eqx.filter_jit
def _run_replicates(
    state: TrainState,
    stop: Int[Array, " R"],
    data: Shaped[Array, "n ..."],
    timing: tuple[Schedule, Clock],
    static: PyTree,
    settings: Settings,
    checked: bool,
    mesh: Mesh,
) -> TrainState:
    arrays, fixed = eqx.partition((timing, static), eqx.is_array)

    def on_device(states: TrainState, stops: Array, data: Array, arrays: PyTree) -> TrainState:
        (schedule, clock), static = eqx.combine(arrays, fixed)

        def run(state: TrainState, stop: Array) -> TrainState:
            return _run_replicate(state, stop, data, schedule, static, settings, checked, clock)

        def run_unless_done(args: tuple[TrainState, Array]) -> TrainState:
            state, stop = args
            return jax.lax.cond(state.step < stop, run, lambda state, _: state, state, stop)

        if mesh.devices.flat[0].platform != "cpu":
            return jax.vmap(run)(states, stops)
        if len(stops) > 1:
            return jax.lax.map(run_unless_done, (states, stops))
        # The compiler would turn a loop over one replicate into another program, with different
        # rounding. With an idle copy, a replicate is bit-for-bit the same whatever runs beside it.
        twice, stops = _with_idle(states, 1), jnp.concatenate([stops, states.step])
        return _first_states(jax.lax.map(run_unless_done, (twice, stops)), 1)

    split, whole = PartitionSpec("replicate"), PartitionSpec()
    return jax.shard_map(
        on_device,
        mesh=mesh,
        in_specs=(split, split, whole, whole),
        out_specs=split,
        check_vma=False,  # the loops start from constants, which are the same on every device
    )(state, stop, data, arrays)
