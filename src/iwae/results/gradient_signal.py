"""Signal, noise and bias of the gradients of a trained model."""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache, partial
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from iwae.errors import UserError
from iwae.evaluation.gradient_signal import (
    Draw,
    check_gradient_draws,
    gradient_bias_threshold,
    gradient_biases,
    gradient_moments,
    gradient_signal_sample,
    gradient_signal_slope,
    gradient_signals,
)
from iwae.models.vae import VAE
from iwae.objectives import declaration as objectives
from iwae.objectives.building import build_objective
from iwae.objectives.compatibility import check_compatibility, compatible_gradients
from iwae.objectives.declaration import Declaration
from iwae.precision import float32
from iwae.results.formatting import format_estimator
from iwae.results.record_files import write_record
from iwae.results.schema import Document, Gradient, Method, Slope
from iwae.results.subjects import (
    Track,
    make_subject,
    subject_facts,
    subject_model_facts,
    subject_record_name,
)
from iwae.results.summaries import summary_number
from iwae.runs.folder import folder_config
from iwae.runs.measurement_progress import no_progress

log = logging.getLogger(__name__)

NONE = "none"
"""The option `reference` for no biases."""

TIMED = 5
"""Number of draws to time, one by one; the median counts."""


@float32
def gradients_run(
    run: Path,
    *,
    ks: Sequence[int] = (1, 10, 100),
    gradients: Sequence[str] | None = None,
    backward: Sequence[int] = (),
    objective: str | None = None,
    reference: str | None = None,
    m: int | None = None,
    alpha: float | None = None,
    beta: float | None = None,
    gamma: float | None = None,
    slope_from: int = 1,
    examples: int = 20,
    draws: int = 200,
    split: str = "train",
    weights: str = "final",
    seed: int = 0,
    data_dir: Path | None = None,
    track: Track = no_progress,
) -> Document:
    """Mean, variance, signal-to-noise ratio and bias of gradients, for each k and estimator.

    Of the first replicate. One draw is the gradient of the mean objective over the same batch of
    examples. Arrays that an objective learns or tunes beside the model have their initial values,
    and KL warm-up and free bits are omitted. Writes `RUN/evaluations/NAME.json` (the record, which
    is also returned) and `NAME.npz` with the ratios `[k]` by estimator and group (NaN where an
    estimator does not go with that k).

    Args:
        ks: particles (of each group, where the objective has groups).
        gradients: names of estimators; if None, those that suit the objective and the number
            of particles, and need no further option.
        backward: numbers S of particles: beside each estimator, the same one carried by S of them,
            at every k with more particles. Estimators without such a gradient are omitted.
        objective: the run's own if None.
        reference: the estimator that biases are measured against; the objective's plain one
            if None, and no biases if "none", which takes a third of the time.
        m, alpha, beta, gamma: of the objective or estimator; the run's own if None.
        slope_from: the least k of the fit that gives the power of k with which a ratio grows.
        examples: of the batch, a seeded random subset of the split.
        draws: of each estimator for its signal, and as many again for its bias.

    Raises:
        UserError: for an estimator that does not fit, too few draws, a `backward` that goes with
            none of the estimators, a `slope_from` with fewer than two k, or as `evaluate_run`.
    """
    _check_options(Path(run), ks, slope_from, draws)
    subject = make_subject(
        Path(run), split=split, weights=weights, examples=examples, seed=seed, data_dir=data_dir
    )
    trained, kinds = subject.config.final(), subject.config.kinds()
    name = objective or trained.objective
    own = {option: getattr(trained, option) for option in objectives.OPTIONS}
    given = {"m": m, "alpha": alpha, "beta": beta, "gamma": gamma}
    own |= {option: value for option, value in given.items() if value is not None}
    layers, discrete = len(kinds), any(kind.is_discrete for kind in kinds)
    reference = reference or compatible_gradients(name, discrete=discrete)[0]
    declared = partial(_declared, name, own=own, layers=layers, discrete=discrete)
    names, counts = gradients or _fitting(name, own, discrete=discrete), sorted(set(backward))
    chosen = _chosen(declared, sorted(set(ks)), names, counts, layers, all_named=bool(gradients))
    known = {} if reference == NONE else {k: declared(reference, k) for k in chosen}
    references = {k: _draw(one, layers) for k, one in known.items()}
    replicate, model = next(subject.models())
    xs = jnp.asarray(subject.data, jnp.float32)
    rows = (
        {"row": [_estimator_row(one, layers, references.get(k), model, xs, seed, draws)]}
        for k, declarations in chosen.items()
        for one in declarations
    )
    total = sum(map(len, chosen.values()))
    found = [slab["row"][0] for slab in track(rows, total, "gradients")]
    record = {
        **subject_facts(subject, Method.GRADIENTS),
        **subject_model_facts(subject, replicate),
        "objective": name,
        "reference": None if reference == NONE else reference,
        "draws": draws,
        "biased_above": gradient_bias_threshold(draws),
        "rows": [row.document() for row in found],
        "slopes": [slope.document() for slope in _slopes(found, slope_from)],
        "slope_from": slope_from,
    }
    words = [Method.GRADIENTS, *([objective] if objective else []), f"k{max(ks)}"]
    words += [f"backward{max(backward)}"] if backward else []
    file = subject_record_name(subject, *words)
    arrays = {"k": np.array(list(chosen)), "index": subject.places, **_ratios(found)}
    return write_record(subject.run, file, record, arrays)


def _check_options(run: Path, ks: Sequence[int], slope_from: int, draws: int) -> None:
    """Raise UserError for options that make no sense, or a run without such gradients."""
    check_gradient_draws(draws)
    if not ks:
        raise UserError("name at least one k")
    if slope_from > 1 and len({k for k in ks if k >= slope_from}) < 2:
        raise UserError(
            f"slope_from is {slope_from}, and a slope needs two k from there on: give a smaller "
            "one, or more k"
        )
    if folder_config(run).conditional:
        raise UserError(
            f"{run} is conditional, and gradients of such models are not measured: use evaluate or "
            "classify"
        )


def _declared(
    objective: str, gradient: str, k: int, *, own: dict[str, Any], layers: int, discrete: bool
) -> Declaration:
    """An objective with an estimator and those of the run's options that apply to them."""
    of_gradient = objectives.GRADIENT_OPTIONS.get(gradient, ())
    known = {*objectives.declaration_entry(objective).options, *of_gradient}
    options = {option: value for option, value in own.items() if option in known}
    declaration = Declaration(objective, k, gradient, **options)
    return check_compatibility(declaration, layers, discrete=discrete)


def _chosen(
    declared: Callable[[str, int], Declaration],
    ks: Sequence[int],
    gradients: Sequence[str],
    counts: Sequence[int],
    layers: int,
    *,
    all_named: bool,
) -> dict[int, list[Declaration]]:
    """The estimators of each k: all that are named, or those that suit its number of particles.

    Each is followed by the same estimator carried by `counts` of its particles, where possible.

    Raises:
        UserError: for a named estimator that does not go with one of the k, if no estimator goes
            with any k, or a count with any estimator.
    """
    chosen: dict[int, list[Declaration]] = {}
    reasons: dict[int | None, UserError] = {}
    for k, gradient in product(ks, dict.fromkeys(gradients)):
        is_first = k not in chosen
        for count in (None, *counts):
            try:
                one = declared(gradient, k)
                chosen.setdefault(k, []).append(_through(one, count, layers))
            except UserError as reason:
                if all_named and count is None:
                    raise
                log.info("omitted: %s with k = %d: %s", gradient, k, reason)
                if count not in reasons or (is_first and count is not None):
                    reasons[count] = reason
                if count is None:
                    break
    possible = {one.backward for estimators in chosen.values() for one in estimators}
    for count in (None, *counts):
        if count not in possible:
            raise reasons[count]
    return chosen


def _through(full: Declaration, count: int | None, layers: int) -> Declaration:
    """An estimator carried by `count` of its particles; UserError if it has no such gradient."""
    few = check_compatibility(full._replace(backward=count), layers)
    if count is not None and count >= objectives.declared_particles(full):
        raise UserError(
            f"backward is {count}, and there are {objectives.declared_particles(full)} particles: "
            "give a smaller backward, or a larger k"
        )
    return few


def _fitting(
    objective: str, own: Mapping[str, Any] = MappingProxyType({}), *, discrete: bool = False
) -> tuple[str, ...]:
    """The estimators that go with an objective and need no option besides `own`.

    Score-function estimators with baselines are included for discrete latents only.
    """
    return tuple(
        name
        for name in compatible_gradients(objective, discrete=discrete)
        if all(own.get(option) is not None for option in objectives.GRADIENT_OPTIONS.get(name, ()))
        and (discrete or name not in objectives.BASELINES)
    )


@lru_cache
def _draw(declaration: Declaration, layers: int) -> Draw:
    return gradient_signal_sample(build_objective(declaration, layers))


def _estimator_row(
    declaration: Declaration,
    layers: int,
    against: Draw | None,
    model: VAE,
    xs: Array,
    seed: int,
    draws: int,
) -> Gradient:
    """The row of a record for one estimator at one k."""
    draw = _draw(declaration, layers)
    first_key, second_key = jax.random.split(jax.random.key(seed))
    found = gradient_signals(model, gradient_moments(draw, model, xs, first_key, draws), draws)
    biases: Mapping[str, Any] = {}
    if against is not None and draw is not against:
        biases = gradient_biases(draw, against, model, xs, second_key, draws)
    groups: Document = {}
    for name, one in found.items():
        groups[name] = {field: summary_number(getattr(one, field)) for field in _NUMBERS}
        groups[name]["snr_without"] = [summary_number(ratio) for ratio in one.snr_without]
        groups[name]["parameters"] = one.parameters
        bias = biases[name]._asdict() if biases else None
        groups[name]["bias"] = bias and {field: summary_number(bias[field]) for field in bias}
    row = {"k": declaration.k, "gradient": declaration.gradient, "backward": declaration.backward}
    return Gradient.model_validate({**row, "groups": groups, **_cost_of(draw, model, xs)})


_NUMBERS = ("mean_norm", "variance", "snr", "snr_stderr")
"""Fields of a `Signal` that a record has unchanged."""


def _cost_of(draw: Draw, model: VAE, xs: Array) -> Document:
    """Seconds of one draw, and the memory of its program besides its arguments."""
    arrays, static = eqx.partition(model, eqx.is_array)

    def step(arrays: Any, xs: Array, key: Array) -> Any:
        return eqx.filter(draw(eqx.combine(arrays, static), xs, key), eqx.is_array)

    compiled = jax.jit(step).lower(arrays, xs, jax.random.key(0)).compile()
    jax.block_until_ready(compiled(arrays, xs, jax.random.key(0)))
    times = []
    for i in range(TIMED):
        begin = time.perf_counter()
        jax.block_until_ready(compiled(arrays, xs, jax.random.key(i)))
        times.append(time.perf_counter() - begin)
    memory = compiled.memory_analysis()
    return {
        "seconds_per_draw": float(np.median(times)),
        "memory_bytes": int(memory.temp_size_in_bytes) if memory is not None else None,
    }


def _by_estimator(rows: Sequence[Gradient]) -> dict[str, list[Gradient]]:
    found: dict[str, list[Gradient]] = {}
    for row in rows:
        found.setdefault(format_estimator(row), []).append(row)
    return found


Curve = tuple[list[int], list[float], list[float]]


def gradient_signal_curves(rows: Sequence[Gradient]) -> dict[str, dict[str, Curve]]:
    """group -> estimator -> (k, ratios of signal to noise, their standard errors)."""
    curves: dict[str, dict[str, Curve]] = {}
    for name, same in _by_estimator(rows).items():
        ks = [row.k for row in same]
        for group in same[0].groups:
            cells = [row.groups[group] for row in same]
            ratios = [cell.snr or 0.0 for cell in cells]
            errors = [cell.snr_stderr or 0.0 for cell in cells]
            curves.setdefault(group, {})[name] = (ks, ratios, errors)
    return curves


def _slopes(rows: Sequence[Gradient], least: int) -> list[Slope]:
    """The powers of k with which the ratios grow, fitted to k from `least` on."""
    rows = [row for row in rows if row.k >= least]
    by_estimator = _by_estimator(rows)
    slopes = []
    for group, curves in gradient_signal_curves(rows).items():
        for name, curve in curves.items():
            same = by_estimator[name]
            without = [[ratio or 0.0 for ratio in row.groups[group].snr_without] for row in same]
            if (fitted := gradient_signal_slope(*curve, without)) is not None:
                slope, stderr = fitted
                which = {"group": group, "gradient": same[0].gradient, "backward": same[0].backward}
                slopes.append(Slope.model_validate({**which, "slope": slope, "stderr": stderr}))
    return slopes


def gradient_signal_powers(slopes: Iterable[Slope]) -> dict[str, dict[str, tuple[float, float]]]:
    """group -> estimator -> (power of k, its standard error)."""
    powers: dict[str, dict[str, tuple[float, float]]] = {}
    for one in slopes:
        powers.setdefault(one.group, {})[format_estimator(one)] = (one.slope, one.stderr)
    return powers


def _ratios(rows: Sequence[Gradient]) -> dict[str, np.ndarray]:
    """The ratios `[k]` by estimator and group, NaN where there is none."""
    all_ks = sorted({row.k for row in rows})
    found = {}
    for group, curves in gradient_signal_curves(rows).items():
        for name, (ks, ratios, _) in curves.items():
            known = dict(zip(ks, ratios, strict=True))
            found[f"{name}, {group}"] = np.array([known.get(k, np.nan) for k in all_ks])
    return found
