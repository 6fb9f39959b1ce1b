"""Names and descriptions of objectives, of gradients and of their options.

No JAX here: the command line lists and checks names before anything is computed.
`iwae.objectives.compatibility` checks a declaration, and `iwae.objectives.building` turns it into
functions.
"""

from typing import Any, Literal, NamedTuple

from iwae.errors import require_known_name


class Described(NamedTuple):
    """The description of an objective.

    Attributes:
        formula: the quantity to maximise, for one example; w_i = p(x, z_i) / q(z_i|x).
        bounds: the quantity that it bounds.
        source: the paper.
        gradients: the valid estimators, the default first.
        options: the options besides k; those without a default in `DEFAULTS` are required.
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
"""Score-function gradients with baselines, far noisier than gradients through the draws."""

FIXED_DRAWS = ("score", *BASELINES)
"""Gradients that hold the draws of q fixed, as bernoulli and categorical latents require."""

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
"""Modification of the weights in training -> (effect, compatible gradients, source)."""

NOT_THROUGH_FEW = {
    "elbo-analytic": ", whose particles all count equally: use a smaller k",
    "tvo": ", whose derivatives in the log weights may be negative and so cannot be "
    "probabilities: leave it out",
    "dais": ", whose gradient goes through every chain: leave it out",
    "aiwae": ", whose chains carry no gradient anyway: leave it out",
}
"""Objectives whose gradient cannot go through a few of the particles, and why."""

DEFAULTS: dict[str, dict[str, Any]] = {
    "tvo": {"temperatures": 6, "beta_schedule": "log"},
    "dais": {"temperatures": 5, "leapfrog": 1},
    "rws": {"phase": "wake"},
    "aiwae": {"temperatures": 5, "leapfrog": 5, "encoder_objective": None},
}
"""Default values of optional options."""

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
"""Options that only some objectives have, each with an example."""

ALL_OPTIONS = (*OPTIONS, *MODIFIERS, "backward")
"""All options that change an objective or its gradient, besides k and the gradient's name."""

Phase = Literal["wake", "sleep", "both"]
BetaSchedule = Literal["linear", "log", "moments"]
EncoderObjective = Literal["elbo", "elbo-analytic"]


class Declaration(NamedTuple):
    """An objective and its gradient by name; `building` makes an `Objective` of it."""

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


def declaration_entry(name: str) -> Described:
    """The description of an objective; UserError with the nearest name if it is unknown."""
    return OBJECTIVES[require_known_name(name, OBJECTIVES, "objective")]


def unmodified_declaration(declaration: Declaration) -> Declaration:
    """The objective without the options that apply in training only, as in validation."""
    return declaration._replace(kl_warmup_steps=0, free_bits=0.0, backward=None)


def declared_particles(declaration: Declaration) -> int:
    """Number of particles per example in one step."""
    return declaration.k * (declaration.m or 1)
