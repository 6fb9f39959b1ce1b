"""Objectives by name: the only place that turns a declaration into functions."""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, TypeVar, cast

from iwae.objectives import bounds, score_function
from iwae.objectives.aiwae import aiwae
from iwae.objectives.bounds import Reduction
from iwae.objectives.compatibility import check_compatibility
from iwae.objectives.dais import dais
from iwae.objectives.declaration import Declaration, Phase, declared_particles
from iwae.objectives.gdreg import gdreg
from iwae.objectives.gradient_estimators import (
    dreg,
    dreg_alpha,
    piwae_gradient,
    rws_dreg_gradient,
    stl,
)
from iwae.objectives.objective import Objective
from iwae.objectives.particle_objectives import (
    analytic_elbo_objective,
    bound,
    learned_ciwae_objective,
)
from iwae.objectives.penalties import Penalty
from iwae.objectives.surrogates import REPARAM, Estimator
from iwae.objectives.tvo import tvo, tvo_schedule, tvo_score
from iwae.objectives.wake_sleep import WAKE, rws

Option = TypeVar("Option")

LARGE_K, LARGE_CHUNK = 500, 100
"""Above LARGE_K particles, LARGE_CHUNK at a time unless the declaration says otherwise."""

FORWARD_CHUNK = 50
"""Particles at a time if the gradient goes through a few, so that memory does not grow with k."""


def objective(name: str, k: int, **options: Any) -> Objective:
    """The objective called `name` with k particles; equal arguments give the same object.

    Args:
        name: one that `iwae objectives` lists.
        k: particles, or particles per group.
        options: the other fields of `iwae.objectives.declaration.Declaration`.

    Raises:
        UserError: if a name is unknown, a value out of range, or a combination invalid.
    """
    return build_objective(Declaration(name, k, **options))


@lru_cache
def build_objective(declaration: Declaration, layers: int | None = None) -> Objective:
    """The objective of a declaration; see `objective`.

    Args:
        layers: number of stochastic layers of the model, if known.
    """
    return _compose(check_compatibility(declaration, layers), layers)


@lru_cache
def _compose(declaration: Declaration, layers: int | None) -> Objective:
    return _MAKERS.get(declaration.objective, _importance)(declaration, layers)


def _checked(option: Option | None) -> Option:
    """An option whose presence `check_compatibility` guarantees."""
    assert option is not None  # noqa: S101
    return option


def _penalty(d: Declaration) -> Penalty | None:
    if d.kl_warmup_steps == 0 and d.free_bits == 0:
        return None
    return Penalty(d.kl_warmup_steps, d.free_bits)


def _chunk_of(d: Declaration) -> int | None:
    """Particles at a time."""
    if d.backward is not None and d.chunk is None:
        return FORWARD_CHUNK if declared_particles(d) > FORWARD_CHUNK else None
    return d.chunk or (LARGE_CHUNK if declared_particles(d) > LARGE_K else None)


def _options(d: Declaration) -> dict[str, Any]:
    """Options of all objectives of importance samples."""
    return {"penalty": _penalty(d), "chunk": _chunk_of(d)}


def _sampled(d: Declaration) -> dict[str, Any]:
    """Options of bounds whose gradient may go through a few of the importance samples."""
    return {**_options(d), "estimator": build_gradient_estimator(d), "backward": d.backward}


def build_reduction(d: Declaration) -> Reduction:
    """The bound of a declaration, as a function of all its log weights."""
    table: dict[str, Callable[[], Reduction]] = {
        "elbo": lambda: bounds.elbo,
        "vae": lambda: bounds.elbo,
        "iwae": lambda: bounds.iwae,
        "miwae": lambda: partial(bounds.miwae, m=_checked(d.m)),
        "piwae": lambda: partial(bounds.miwae, m=_checked(d.m)),
        "ciwae": lambda: partial(bounds.ciwae, beta=cast("float", d.beta)),
        "vr-iwae": lambda: partial(bounds.renyi, alpha=_checked(d.alpha)),
        "vr-max": lambda: bounds.vr_max,
        "tvo": lambda: partial(tvo, betas=_betas(d)),
    }
    return table[d.objective]()


def _betas(d: Declaration) -> Any:
    return tvo_schedule(_checked(d.beta_schedule), _checked(d.temperatures))


def build_gradient_estimator(d: Declaration) -> Estimator:
    """The gradient estimator of a declaration."""
    table: dict[str, Callable[[], Estimator]] = {
        "reparam": lambda: REPARAM,
        "stl": stl,
        "dreg": dreg,
        "dreg-alpha": lambda: dreg_alpha(_checked(d.alpha)),
        "rws-dreg": rws_dreg_gradient,
        "reinforce": score_function.vimco,  # VIMCO of the ELBO
        "vimco": score_function.vimco,
        "vimco-arithmetic": lambda: score_function.vimco("arithmetic"),
        "vimco-star": lambda: score_function.ovis(0.0),
        "ovis": lambda: score_function.ovis(_checked(d.gamma)),
        "score": lambda: WAKE if d.objective == "rws" else tvo_score(_betas(d)),
    }
    return table[_checked(d.gradient)]()


def _importance(d: Declaration, _: int | None) -> Objective:
    if d.beta == "learned":
        if d.gradient == "gdreg":
            return learned_ciwae_objective(lambda f: gdreg(f, k=d.k, chunk=_chunk_of(d)))
        return learned_ciwae_objective(lambda f: bound(f, k=d.k, **_sampled(d)))
    if d.gradient == "gdreg":
        return gdreg(build_reduction(d), k=declared_particles(d), chunk=_chunk_of(d))
    return bound(build_reduction(d), k=declared_particles(d), **_sampled(d))


def _piwae(d: Declaration, _: int | None) -> Objective:
    options = _sampled(d)
    options["estimator"] = piwae_gradient(bounds.iwae, options["estimator"])
    return bound(build_reduction(d), k=declared_particles(d), **options)


def _rws(d: Declaration, _: int | None) -> Objective:
    phase = cast(Phase, _checked(d.phase))
    sampled = {"chunk": _chunk_of(d), "backward": d.backward}
    return rws(k=d.k, estimator=build_gradient_estimator(d), phase=phase, **sampled)


def _annealing_options(d: Declaration) -> dict[str, Any]:
    return {"temperatures": _checked(d.temperatures), "n_leapfrog": _checked(d.leapfrog)}


def _dais(d: Declaration, _: int | None) -> Objective:
    return dais(k=d.k, **_options(d), **_annealing_options(d))


def _aiwae(d: Declaration, layers: int | None) -> Objective:
    name = d.encoder_objective or ("elbo-analytic" if layers == 1 else "elbo")
    encoder = analytic_elbo_objective if name == "elbo-analytic" else partial(bound, bounds.elbo)
    return aiwae(k=d.k, encoder=encoder(k=1, penalty=_penalty(d)), **_annealing_options(d))


_MAKERS: dict[str, Callable[[Declaration, int | None], Objective]] = {
    "elbo-analytic": lambda d, _: analytic_elbo_objective(k=d.k, **_options(d)),
    "piwae": _piwae,
    "rws": _rws,
    "dais": _dais,
    "aiwae": _aiwae,
}
"""Objectives that are more than a bound and a table of coefficients."""
