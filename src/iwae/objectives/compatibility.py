"""Valid combinations of an objective, a gradient and their options. No JAX here."""

from collections.abc import Iterator
from math import inf
from typing import Any, get_args

from iwae.errors import UserError, require_known_name
from iwae.objectives import declaration as names
from iwae.objectives.declaration import Declaration

_UNFIT: dict[str, str] = {
    "reparam": "this objective holds its draws of q fixed, so no gradient flows through them",
    "stl": "it drops the score, which this objective needs or does not have",
    "dreg": "it needs a smooth bound of reparameterised draws of q, and for the elbo it is stl",
    "dreg-alpha": "it mixes wake-phi with iwae only",
    "rws-dreg": "it is the gradient of wake-phi, which only rws uses",
    "gdreg": "it needs one smooth bound of importance samples for both decoder and encoder",
    "score": "the encoder of this objective learns through reparameterised draws of q",
    "reinforce": "it is the gradient of the elbo, and of other bounds vimco",
    "vimco": "it needs a bound of importance samples, and for the elbo is reinforce",
    "vimco-arithmetic": "it needs a bound of importance samples, and for the elbo is reinforce",
    "vimco-star": "its baseline is known for iwae only",
    "ovis": "its baseline is known for iwae only",
}
"""Gradient -> the reason why an objective may not allow it."""


def compatible_gradients(name: str, *, discrete: bool) -> tuple[str, ...]:
    """The valid gradients of an objective, the default first.

    Args:
        discrete: whether the model has bernoulli or categorical latents.

    Raises:
        UserError: if there are none.
    """
    every = names.declaration_entry(name).gradients
    found = tuple(g for g in every if g in names.FIXED_DRAWS) if discrete else every
    if not found:
        others = [
            other
            for other, its in names.OBJECTIVES.items()
            if {*its.gradients} & {*names.FIXED_DRAWS}
        ]
        raise UserError(
            f"{name} needs gradients through the draws of q, which bernoulli and categorical "
            f"latents do not have: use {', '.join(others)}"
        )
    return found


def check_compatibility(
    declaration: Declaration, layers: int | None = None, *, discrete: bool = False
) -> Declaration:
    """Check a declaration and fill in its defaults.

    Args:
        layers: number of stochastic layers of the model, if known.
        discrete: whether the model has bernoulli or categorical latents.

    Raises:
        UserError: for an invalid combination, with the reason.
    """
    name, entry = declaration.objective, names.declaration_entry(declaration.objective)
    needed = entry.options + names.GRADIENT_OPTIONS.get(declaration.gradient or "", ())
    for option in names.OPTIONS:
        if getattr(declaration, option) is not None and option not in needed:
            raise UserError(f"{option} does not apply to {name}; it applies to {_takers(option)}")
    filled = {
        option: value
        for option, value in names.DEFAULTS.get(name, {}).items()
        if getattr(declaration, option) is None
    }
    fitting = compatible_gradients(name, discrete=discrete)
    gradient = require_known_name(declaration.gradient or fitting[0], names.GRADIENTS, "gradient")
    declaration = declaration._replace(**filled, gradient=gradient)
    for option in needed:
        if getattr(declaration, option) is None and option != "encoder_objective":
            raise UserError(f"{name} needs {option}, e.g. {names.OPTIONS[option]}")
    if gradient not in entry.gradients:
        takers = [other for other, its in names.OBJECTIVES.items() if gradient in its.gradients]
        raise UserError(
            f"the gradient {gradient} does not work with {name}: {_UNFIT[gradient]}; use it with "
            f"{', '.join(takers)}, or {name} with {', '.join(entry.gradients)}"
        )
    if gradient not in fitting:
        raise UserError(
            f"the gradient {gradient} goes through the draws of q, and those of bernoulli and "
            f"categorical latents have no gradient: use {name} with {', '.join(fitting)}"
        )
    _check_ranges(declaration)
    if clash := next(_clashes(declaration, layers), None):
        raise UserError(clash)
    return declaration


def _takers(option: str) -> str:
    objectives = [name for name, entry in names.OBJECTIVES.items() if option in entry.options]
    gradients = [name for name, its in names.GRADIENT_OPTIONS.items() if option in its]
    return ", ".join(objectives + [f"the gradient {name}" for name in gradients])


def _check_ranges(d: Declaration) -> None:
    """Raise UserError for a number out of range, or an unknown choice."""
    if isinstance(d.beta, str) and d.beta != "learned":
        raise UserError(f'beta is {d.beta!r}; it must be a number or "learned"')
    steps = 1 if d.objective == "dais" else 2
    ranges: tuple[tuple[str, Any, float, float, str], ...] = (
        ("k", d.k, 1, inf, "an objective needs at least 1 particle"),
        ("m", d.m, 1, inf, "there must be at least 1 group"),
        ("beta", None if d.beta == "learned" else d.beta, 0, 1, "it must lie between 0 and 1"),
        ("alpha", d.alpha, 0, 1, "it must lie between 0 and 1"),
        ("gamma", d.gamma, 0, 1, "it must lie between 0 and 1"),
        ("temperatures", d.temperatures, steps, inf, f"{d.objective} needs at least {steps}"),
        ("leapfrog", d.leapfrog, 1, inf, "a move needs at least 1 step"),
        ("chunk", d.chunk, 1, inf, "it must be at least 1 particle"),
        ("backward", d.backward, 1, inf, "a gradient needs at least 1 particle"),
        ("free_bits", d.free_bits, 0, 1e30, "give a number of nats, 0 for none"),
        ("kl_warmup", d.kl_warmup_steps, 0, inf, "it must not be negative"),
    )
    for name, value, least, most, rule in ranges:
        if value is not None and not least <= value <= most:
            raise UserError(f"{name} is {value}; {rule}")
    for name, allowed in _CHOICES.items():
        value = getattr(d, name)
        if value is not None and value not in allowed:
            raise UserError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")


_CHOICES = {
    "beta_schedule": get_args(names.BetaSchedule),
    "phase": get_args(names.Phase),
    "encoder_objective": get_args(names.EncoderObjective),
}


def _clashes(d: Declaration, layers: int | None) -> Iterator[str]:
    """The reasons why options that are valid alone are not valid together."""
    closed_form = "has a closed form for one stochastic layer only: use elbo"
    if layers is not None and layers > 1:
        if d.objective == "elbo-analytic":
            yield f"elbo-analytic {closed_form}"
        if d.encoder_objective == "elbo-analytic":
            yield f"encoder_objective elbo-analytic {closed_form}"
    yield from _clashes_of_modifiers(d)
    if d.k == 1 and d.gradient in ("score", "rws-dreg") and d.phase != "sleep":
        yield (
            f"{d.objective} with the gradient {d.gradient} needs k of at least 2: a single "
            "normalised weight is always 1 and carries no information"
        )
    if d.k == 1 and d.gradient in names.BASELINES:
        yield (
            f"the gradient {d.gradient} needs k of at least 2: its baseline comes from the other "
            "particles"
        )
    if d.gradient == "rws-dreg" and d.phase == "sleep":
        yield "the gradient rws-dreg belongs to the wake phase: use phase wake or both"
    if d.gradient in ("dreg", "gdreg") and d.beta_schedule == "moments":
        yield (
            "the gradient dreg does not work with beta_schedule moments, where the temperatures "
            "depend on the weights: use linear or log"
        )
    if d.backward is not None:
        yield from _clashes_of_backward(d)
    if d.chunk is not None and d.objective == "aiwae":
        yield (
            "chunk does not apply to aiwae, whose chains store nothing for the backward pass: "
            "leave it out"
        )


def _clashes_of_modifiers(d: Declaration) -> Iterator[str]:
    steps_and_bits = {"kl_warmup": d.kl_warmup_steps, "free_bits": d.free_bits}
    given = [option for option, value in steps_and_bits.items() if value > 0]
    if given and d.objective == "rws":
        yield "kl_warmup and free_bits change a bound, but rws maximises none: leave them out"
    for option in given:
        _, suitable, _ = names.MODIFIERS[option]
        if d.gradient not in suitable:
            yield (
                f"{option} does not work with {d.objective} and the gradient {d.gradient}, which "
                f"relies on weights p/q; use one of the gradients {', '.join(suitable)}"
            )


def _clashes_of_backward(d: Declaration) -> Iterator[str]:
    if d.objective in names.NOT_THROUGH_FEW:
        yield f"backward does not work with {d.objective}{names.NOT_THROUGH_FEW[d.objective]}"
    if d.gradient == "gdreg":
        yield (
            "backward does not work with the gradient gdreg, which is not a table of "
            "coefficients: use dreg"
        )
    if d.gradient in ("reinforce", "vimco", "vimco-arithmetic", "ovis"):
        yield (
            f"backward does not work with the gradient {d.gradient}, to which particles of small "
            "weight contribute too: use vimco-star, or leave it out"
        )
