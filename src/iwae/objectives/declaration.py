"""Names and descriptions of objectives and gradients, and which combinations are valid.

No JAX here: the command line lists and checks names before anything is computed.
`iwae.objectives.catalogue` turns names into functions.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from math import inf
from typing import Any, Literal, NamedTuple, get_args

from iwae.errors import UserError


class Described(NamedTuple):
    """The description of an objective.

    Attributes:
        formula: the quantity to maximise, for one example; w_i = p(x, z_i) / q(z_i|x).
        bounds: the quantity that it bounds.
        source: the paper.
        gradients: the valid estimators, the default first.
        options: its options besides k; those without a default in `DEFAULTS` must be given.
    """

    formula: str
    bounds: str
    source: str
    gradients: tuple[str, ...]
    options: tuple[str, ...] = ()


_LOWER = "log p(x) from below"
_VIMCO = ("vimco", "vimco-arithmetic")
_ALL, _OF_ELBO = (
    ("reparam", "stl", "dreg", "gdreg", *_VIMCO),
    ("reparam", "stl", "gdreg", "reinforce"),
)

OBJECTIVES: dict[str, Described] = {
    "elbo": Described("mean_i log w_i", _LOWER, "Kingma & Welling 2014", _OF_ELBO),
    "vae": Described(
        "mean_i log w_i (another name for elbo)", _LOWER, "Kingma & Welling 2014", _OF_ELBO
    ),
    "elbo-analytic": Described(
        "mean_i log p(x|z_i) - KL(q(z|x) || p(z)), one stochastic layer",
        _LOWER,
        "Kingma & Welling 2014",
        ("reparam",),
    ),
    "iwae": Described(
        "log mean_i w_i",
        _LOWER,
        "Burda et al. 2016",
        ("reparam", "stl", "dreg", "dreg-alpha", "gdreg", *_VIMCO, "vimco-star", "ovis"),
    ),
    "miwae": Described(
        "mean_m log mean_k w_mk (m groups of k)", _LOWER, "Rainforth et al. 2018", _ALL, ("m",)
    ),
    "piwae": Described(
        "decoder: log mean of all m k weights; encoder: miwae",
        _LOWER,
        "Rainforth et al. 2018",
        ("reparam", "stl", "dreg", *_VIMCO),
        ("m",),
    ),
    "ciwae": Described(
        "beta mean_i log w_i + (1 - beta) log mean_i w_i",
        _LOWER,
        "Rainforth et al. 2018",
        _ALL,
        ("beta",),
    ),
    "vr-iwae": Described(
        "log(mean_i w_i^(1 - alpha)) / (1 - alpha)",
        "log p(x) from below for 0 <= alpha <= 1",
        "Li & Turner 2016; Daudel et al. 2023",
        _ALL,
        ("alpha",),
    ),
    "vr-max": Described(
        "max_i log w_i", "nothing: it may exceed log p(x)", "Li & Turner 2016", ("reparam", "stl")
    ),
    "tvo": Described(
        "sum_t (beta_{t+1} - beta_t) E_{beta_t}[log w]",
        _LOWER,
        "Masrani et al. 2019; Brekelmans et al. 2020",
        ("reparam", "score", "dreg", "gdreg"),
        ("temperatures", "beta_schedule"),
    ),
    "dais": Described(
        "log mean_i of p(x, z_T) / q(z_0|x) times momentum densities; leapfrog without rejection",
        _LOWER,
        "Zhang et al. 2021; Geffner & Domke 2021 (UHA)",
        ("reparam",),
        ("temperatures", "leapfrog"),
    ),
    "rws": Described(
        "decoder: sum_i w~_i grad log p(x, z_i); encoder: sum_i w~_i grad log q(z_i|x), or sleep",
        "log p(x) from below (the reported value is log mean_i w_i)",
        "Bornschein & Bengio 2015; Le et al. 2019",
        ("score", "rws-dreg"),
        ("phase",),
    ),
    "aiwae": Described(
        "decoder: sum_i w~_i grad log p(x, z_i) on annealed z_i; encoder: elbo",
        "log p(x) from below (the reported value is log mean of the annealed weights)",
        "Ding & Freedman 2019",
        ("reparam",),
        ("temperatures", "leapfrog", "encoder_objective"),
    ),
}
"""Every objective that has a name."""

GRADIENTS: dict[str, tuple[str, str, str]] = {
    "reparam": ("path a_i, score a_i: the plain gradient", "the bound", "Kingma & Welling 2014"),
    "stl": ("path a_i, no score", "elbo; biased for others with k > 1", "Roeder et al. 2017"),
    "dreg": ("path a_i - h_i, no score; for iwae w~_i^2", "the bound", "Tucker et al. 2019"),
    "dreg-alpha": (
        "path alpha w~_i + (1 - 2 alpha) w~_i^2, no score",
        "(1 - alpha) iwae + alpha wake-phi",
        "Tucker et al. 2019",
    ),
    "rws-dreg": ("path w~_i - w~_i^2, no score", "wake-phi", "Tucker et al. 2019"),
    "gdreg": (
        "dreg, and the same for the prior networks between layers",
        "the bound",
        "Bauer & Mnih 2021",
    ),
    "score": (
        "score of q at fixed draws; for tvo from covariances",
        "wake-phi; tvo as k grows",
        "Bornschein & Bengio 2015; Masrani et al. 2019",
    ),
    "reinforce": (
        "score of q times log w_i less the mean of the others",
        "the bound",
        "Mnih & Rezende 2016; Kool et al. 2019",
    ),
    "vimco": (
        "score of q times the bound less that with the geometric mean of the others for w_i",
        "the bound",
        "Mnih & Rezende 2016",
    ),
    "vimco-arithmetic": (
        "the same with the arithmetic mean: reinforce with the bound of the others",
        "the bound",
        "Mnih & Rezende 2016",
    ),
    "vimco-star": (
        "score of q times -log(1 - w~_i) - w~_i",
        "the bound",
        "Daudel et al. 2026; Lievin et al. 2020",
    ),
    "ovis": (
        "score of q times -log(1 - w~_i) - (1 - gamma) w~_i + gamma log(1 - 1/k)",
        "iwae + gamma wake-phi",
        "Lievin et al. 2020",
    ),
}
"""Gradient -> (coefficients of the encoder, objective that it is unbiased for, source).

a_i and h_i are the first and second derivatives of the bound in log w_i; w~ is w normalised.
"""

BASELINES = ("reinforce", "vimco", "vimco-arithmetic", "vimco-star", "ovis")
"""Score-function gradients with baselines: far noisier than those through the draws."""

FIXED_DRAWS = ("score", *BASELINES)
"""Gradients that hold the draws of q fixed: those for bernoulli and categorical latents."""

GRADIENT_OPTIONS = {"dreg-alpha": ("alpha",), "ovis": ("gamma",)}
"""Options that a gradient needs, whatever the objective."""

MODIFIERS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "kl_warmup": (
        "the weight of log p(z) - log q(z|x) rises from 0 to 1 over this many epochs",
        ("reparam", "stl", "dreg"),
        "Sonderby et al. 2016",
    ),
    "free_bits": (
        "a latent unit with a divergence of at most this many nats counts as exactly that many",
        ("reparam", "stl"),
        "Kingma et al. 2016",
    ),
}
"""Changes of the weights in training -> (effect, gradients that they work with, source)."""

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
"""Gradient -> why an objective may not allow it."""

DEFAULTS: dict[str, dict[str, Any]] = {
    "tvo": {"temperatures": 6, "beta_schedule": "log"},
    "dais": {"temperatures": 5, "leapfrog": 1},
    "rws": {"phase": "wake"},
    "aiwae": {"temperatures": 5, "leapfrog": 5, "encoder_objective": None},
}
"""Values of options that need not be given."""

OPTIONS: dict[str, str] = {
    "m": "m = 8",
    "alpha": "alpha = 0.5",
    "beta": 'beta = 0.5, or beta = "learned"',
    "gamma": "gamma = 1.0",
    "temperatures": "temperatures = 5",
    "leapfrog": "leapfrog = 5",
    "beta_schedule": 'beta_schedule = "log"',
    "phase": 'phase = "wake"',
    "encoder_objective": 'encoder_objective = "elbo"',
}
"""Options of some objectives only, each with an example."""

ALL_OPTIONS = (*OPTIONS, *MODIFIERS, "backward")
"""Everything that changes an objective or its gradient, besides k and the gradient's name."""

Phase = Literal["wake", "sleep", "both"]
BetaSchedule = Literal["linear", "log", "moments"]
EncoderObjective = Literal["elbo", "elbo-analytic"]


class Declaration(NamedTuple):
    """An objective and its gradient by name; `catalogue.compose` turns it into an `Objective`."""

    objective: str
    k: int = 1
    gradient: str | None = None
    m: int | None = None
    alpha: float | None = None
    beta: float | Literal["learned"] | None = None
    gamma: float | None = None
    temperatures: int | None = None
    leapfrog: int | None = None
    beta_schedule: str | None = None
    phase: str | None = None
    encoder_objective: str | None = None
    kl_warmup_steps: int = 0
    free_bits: float = 0.0
    chunk: int | None = None
    backward: int | None = None


def described(name: str) -> Described:
    """The description of the objective `name`, or UserError with the nearest known name."""
    return OBJECTIVES[_known(name, OBJECTIVES, "objective")]


def _known(name: str, table: Iterable[str], kind: str) -> str:
    if name not in table:
        near = get_close_matches(name.lower(), table, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"no {kind} {name!r}; {hint}known: {', '.join(table)}")
    return name


def gradients_of(name: str, *, discrete: bool) -> tuple[str, ...]:
    """The gradients of an objective, the default first.

    Args:
        discrete: for a model with bernoulli or categorical latents.

    Raises:
        UserError: if there are none.
    """
    every = described(name).gradients
    found = tuple(g for g in every if g in FIXED_DRAWS) if discrete else every
    if not found:
        others = [other for other, its in OBJECTIVES.items() if {*its.gradients} & {*FIXED_DRAWS}]
        raise UserError(
            f"{name} needs gradients through the draws of q, which bernoulli and categorical "
            f"latents do not have: use {', '.join(others)}"
        )
    return found


def check(
    declaration: Declaration, layers: int | None = None, *, discrete: bool = False
) -> Declaration:
    """The declaration with its defaults filled in.

    Args:
        layers: number of stochastic layers of the model, if known.
        discrete: the model has bernoulli or categorical latents.

    Raises:
        UserError: for an invalid combination, with the reason.
    """
    name, entry = declaration.objective, described(declaration.objective)
    needed = entry.options + GRADIENT_OPTIONS.get(declaration.gradient or "", ())
    for option in OPTIONS:
        if getattr(declaration, option) is not None and option not in needed:
            raise UserError(f"{option} does not apply to {name}; it applies to {_takers(option)}")
    filled = {
        option: value
        for option, value in DEFAULTS.get(name, {}).items()
        if getattr(declaration, option) is None
    }
    fitting = gradients_of(name, discrete=discrete)
    gradient = _known(declaration.gradient or fitting[0], GRADIENTS, "gradient")
    declaration = declaration._replace(**filled, gradient=gradient)
    for option in needed:
        if getattr(declaration, option) is None and option != "encoder_objective":
            raise UserError(f"{name} needs {option}, e.g. {OPTIONS[option]}")
    if gradient not in entry.gradients:
        takers = [other for other, its in OBJECTIVES.items() if gradient in its.gradients]
        raise UserError(
            f"the gradient {gradient} does not work with {name}: {_UNFIT[gradient]}; use it with "
            f"{', '.join(takers)}, or {name} with {', '.join(entry.gradients)}"
        )
    if gradient not in fitting:
        raise UserError(
            f"the gradient {gradient} goes through the draws of q, and those of bernoulli and "
            f"categorical latents have no gradient: use {name} with {', '.join(fitting)}"
        )
    _check_values(declaration)
    _check_together(declaration, layers)
    return declaration


def _takers(option: str) -> str:
    names = [name for name, entry in OBJECTIVES.items() if option in entry.options]
    takers = [gradient for gradient, its in GRADIENT_OPTIONS.items() if option in its]
    return ", ".join(names + [f"the gradient {gradient}" for gradient in takers])


def _check_values(d: Declaration) -> None:
    """Raise UserError for a number that is out of range, or an unknown word."""
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
    "beta_schedule": get_args(BetaSchedule),
    "phase": get_args(Phase),
    "encoder_objective": get_args(EncoderObjective),
}


def _check_together(d: Declaration, layers: int | None) -> None:
    """Raise UserError for options that are valid alone but not together."""
    several = layers is not None and layers > 1
    closed_form = "has a closed form for one stochastic layer only"
    wrong = {
        f"elbo-analytic {closed_form}: use elbo": d.objective == "elbo-analytic" and several,
        f"encoder_objective elbo-analytic {closed_form}: use elbo": (
            d.encoder_objective == "elbo-analytic" and several
        ),
        "kl_warmup and free_bits change a bound, but rws maximises none: leave them out": (
            d.objective == "rws" and (d.kl_warmup_steps > 0 or d.free_bits > 0)
        ),
        **{
            f"{option} does not work with {d.objective} and the gradient {d.gradient}, which "
            f"relies on weights p/q; use one of the gradients {', '.join(fits)}": is_given
            and d.gradient not in fits
            and d.objective != "rws"
            for (option, (_, fits, _)), is_given in zip(
                MODIFIERS.items(), (d.kl_warmup_steps > 0, d.free_bits > 0), strict=True
            )
        },
        f"{d.objective} with the gradient {d.gradient} needs k of at least 2: a single "
        "normalised weight is always 1 and carries no information": d.k == 1
        and (d.gradient in ("score", "rws-dreg") and d.phase != "sleep"),
        f"the gradient {d.gradient} needs k of at least 2: its baseline comes from the other "
        "particles": d.k == 1 and d.gradient in FIXED_DRAWS and d.gradient != "score",
        "the gradient rws-dreg belongs to the wake phase: use phase wake or both": (
            d.gradient == "rws-dreg" and d.phase == "sleep"
        ),
        "the gradient dreg does not work with beta_schedule moments, where the temperatures depend "
        "on the weights: use linear or log": (
            d.gradient in ("dreg", "gdreg") and d.beta_schedule == "moments"
        ),
        f"backward does not work with {d.objective}{NOT_THROUGH_FEW.get(d.objective, '')}": (
            d.backward is not None and d.objective in NOT_THROUGH_FEW
        ),
        "backward does not work with the gradient gdreg, which is not a table of coefficients: use "
        "dreg": d.backward is not None and d.gradient == "gdreg",
        f"backward does not work with the gradient {d.gradient}, to which particles of small "
        "weight contribute too: use vimco-star, or leave it out": d.backward is not None
        and d.gradient in ("reinforce", *_VIMCO, "ovis"),
        "chunk does not apply to aiwae, whose chains store nothing for the backward pass: leave "
        "it out": (d.chunk is not None and d.objective == "aiwae"),
    }
    for message, is_wrong in wrong.items():
        if is_wrong:
            raise UserError(message)


NOT_THROUGH_FEW = {
    "elbo-analytic": ", whose particles all count equally: use a smaller k",
    "tvo": ", whose derivatives in the log weights may be negative and so cannot be "
    "probabilities: leave it out",
    "dais": ", whose gradient goes through every chain: leave it out",
    "aiwae": ", whose chains carry no gradient anyway: leave it out",
}
"""Objectives whose gradient cannot go through a few of the particles, and why."""


def unmodified(declaration: Declaration) -> Declaration:
    """The objective without its training-only options, as validation measures it."""
    return declaration._replace(kl_warmup_steps=0, free_bits=0.0, backward=None)


def particles(declaration: Declaration) -> int:
    """Particles per example in one step."""
    return declaration.k * (declaration.m or 1)
