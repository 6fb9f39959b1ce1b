"""The published experiments as configurations, each with the number to compare it with.

Published negative log-likelihoods are in nats, on the test set, with 5,000 importance samples.
"""

import difflib
import logging
from collections.abc import Iterable
from fnmatch import fnmatch
from typing import Any, NamedTuple, NoReturn

from iwae.config.experiment import TrainConfig, make_config
from iwae.config.recipes import (
    FEW,
    LONGER,
    fast_recipe,
    recipe_gradient,
    recipe_last_stage,
    recipe_stages,
)
from iwae.errors import UserError

log = logging.getLogger("iwae")

BURDA = "Burda, Grosse & Salakhutdinov 2016 (arXiv 1509.00519v3)"
RAINFORTH = "Rainforth et al. 2018 (arXiv 1802.04537)"
DING = "Ding & Freedman 2019 (arXiv 1906.04904)"
TUCKER = "Tucker et al. 2019 (arXiv 1810.04152)"

FAST = "fast/"
"""Prefix of the names of cells with a fast recipe."""


class Preset(NamedTuple):
    """A published experiment.

    Attributes:
        values: the settings that it fixes in a configuration.
        nll: the published negative log-likelihood, nats; None without one.
        active: the published active units per layer.
        source: paper and table.
        needs: for a warm start, the preset of the run that `init_from` must name.
        nll_64: the published negative L_64, where the paper reports it.
        is_fast: whether it is trained with a fast recipe instead of as published.
        beside: without a published number, the preset that it is compared with.
    """

    values: dict[str, Any]
    nll: float | None = None
    active: tuple[int, ...] = ()
    source: str = ""
    needs: str | None = None
    nll_64: float | None = None
    is_fast: bool = False
    beside: str | None = None

    def config(self, **changes: Any) -> TrainConfig:
        """The configuration, with changes."""
        return make_config({**self.values, **changes}, "preset")


_TABLES: dict[tuple[int, str, int], Any] = {
    (1, "mnist", 1): [
        ("vae", 1, 86.76, (19,)),
        ("vae", 5, 86.47, (20,)),
        ("vae", 50, 86.35, (20,)),
        ("iwae", 5, 85.54, (22,)),
        ("iwae", 50, 84.78, (25,)),
    ],
    (1, "mnist", 2): [
        ("vae", 1, 85.33, (16, 5)),
        ("vae", 5, 85.01, (17, 5)),
        ("vae", 50, 84.78, (17, 5)),
        ("iwae", 5, 83.89, (21, 5)),
        ("iwae", 50, 82.90, (26, 7)),
    ],
    (1, "omniglot", 1): [
        ("vae", 1, 108.11, (28,)),
        ("vae", 5, 107.62, (28,)),
        ("vae", 50, 107.80, (28,)),
        ("iwae", 5, 106.12, (34,)),
        ("iwae", 50, 104.67, (41,)),
    ],
    (1, "omniglot", 2): [
        ("vae", 1, 107.58, (28, 4)),
        ("vae", 5, 106.31, (30, 5)),
        ("vae", 50, 106.30, (30, 5)),
        ("iwae", 5, 104.79, (38, 6)),
        ("iwae", 50, 103.38, (44, 7)),
    ],
    (3, "mnist-static", 1): [
        ("vae", 1, 88.71, (19,)),
        ("vae", 5, 88.83, (19,)),
        ("vae", 50, 89.05, (20,)),
        ("iwae", 5, 87.63, (22,)),
        ("iwae", 50, 87.10, (24,)),
    ],
    (3, "mnist-static", 2): [
        ("vae", 1, 88.08, (16, 5)),
        ("vae", 5, 87.63, (17, 5)),
        ("vae", 50, 87.86, (17, 6)),
        ("iwae", 5, 86.17, (21, 5)),
        ("iwae", 50, 85.32, (24, 7)),
    ],
}
"""Table, data set and layers -> rows of (objective, k, NLL, active units)."""


def _cells(number: int) -> dict[str, Preset]:
    """The cells of a table."""
    return {
        f"table{number}/{dataset}/{layers}l/{name}-k{k}": Preset(
            {"dataset": dataset, "layers": layers, "objective": name, "k": k},
            nll,
            active,
            f"{BURDA}, Table {number}",
        )
        for (table, dataset, layers), rows in _TABLES.items()
        for name, k, nll, active in rows
        if table == number
    }


_TABLE_1_CELLS = _cells(1)

_OMNIGLOT = "table1/omniglot/2l/vae-k1"
"""The only cell at k = 1 for which the paper reports another number for IWAE, the same bound."""

_TABLE_1_CELLS[_OMNIGLOT] = _TABLE_1_CELLS[_OMNIGLOT]._replace(
    source=f"{BURDA}, Table 1 (as IWAE: 107.56, 30+5 active)"
)

AS_PUBLISHED_CODE: dict[str, Any] = {
    "optimizer": "authors",
    "schedule": "authors",
    "shuffle": False,
    "validation": "authors",
}
"""Settings of the paper's published code that differ from the paper."""


_AUTHORS = {
    name.replace("table1", "authors", 1): entry._replace(
        values={**entry.values, **AS_PUBLISHED_CODE},
        source=f"{entry.source}, as its code trains",
    )
    for name, entry in _TABLE_1_CELLS.items()
}

_WARM_START = {"dataset": "mnist", "schedule": "constant", "learning_rate": 1e-4, "epochs": 3**7}

_TABLE_2 = {
    f"table2/{start}-to-{name}": Preset(
        {**_WARM_START, "objective": name, "k": k}, nll, active, f"{BURDA}, Table 2", needs
    )
    for start, needs, name, k, nll, active in (
        ("vae", "table1/mnist/1l/vae-k1", "iwae", 50, 84.88, (22,)),
        ("iwae", "table1/mnist/1l/iwae-k50", "vae", 1, 86.02, (23,)),
    )
}

_SYNTHETIC: dict[str, Any] = {
    "batch_size": 100,
    "schedule": "paper",
    "epochs": 200,
    "learning_rate": 5e-3,
}


def _synthetic(dataset: str, latent: int, hidden: int, objective: str, k: int) -> Preset:
    sizes = {"latent_sizes": (latent,), "hidden_sizes": ((hidden, hidden),)}
    values = {**_SYNTHETIC, **sizes, "dataset": dataset, "objective": objective, "k": k}
    return Preset(values, source="synthetic data with a known density")


_RAINFORTH: dict[str, tuple[dict[str, Any], float | None, float | None]] = {
    "iwae-k64": ({"objective": "iwae", "k": 64}, 84.52, 86.11),
    "m4-k16": ({"objective": "miwae", "m": 4, "k": 16}, 84.56, 85.60),
    "m8-k8": ({"objective": "miwae", "m": 8, "k": 8}, 84.97, 85.69),
    "m16-k4": ({"objective": "miwae", "m": 16, "k": 4}, None, None),
    "piwae-m8-k8": ({"objective": "piwae", "m": 8, "k": 8}, 84.46, 85.74),
    "ciwae-beta0.05": ({"objective": "ciwae", "k": 64, "beta": 0.05}, 84.57, None),
    "ciwae-beta0.5": ({"objective": "ciwae", "k": 64, "beta": 0.5}, 85.24, 86.08),
    "vae-k64": ({"objective": "vae", "k": 64}, 86.21, 86.69),
}
"""With M K = 64: settings of a row, its NLL, and its negative L_64."""

_MIWAE = {
    f"miwae/{name}": Preset({"dataset": "mnist", **values}, nll, source=RAINFORTH, nll_64=nll_64)
    for name, (values, nll, nll_64) in _RAINFORTH.items()
}

_S5: dict[str, Any] = {"layers": 1, "k": 5, "batch_size": 128}
"""Five chains or samples; AIWAE is compared with an IWAE in the same batches."""

_DING: dict[str, dict[str, Any]] = {
    "iwae-s5": {"objective": "iwae"},
    "s5-t5": {"objective": "aiwae", "temperatures": 5, "leapfrog": 5},
    "s5-t10": {"objective": "aiwae", "temperatures": 10, "leapfrog": 5},
}

_AIWAE = {
    f"aiwae/{dataset}/{name}": Preset({"dataset": dataset, **_S5, **values}, source=DING)
    for dataset in ("mnist", "omniglot")
    for name, values in _DING.items()
}

_DREG = {
    f"dreg/mnist/1l/k{k}": Preset(
        {"dataset": "mnist", "layers": 1, "objective": "iwae", "k": k, "gradient": "dreg"},
        source=TUCKER,
    )
    for k in (1, 5, 50)
}

_SBN: dict[str, tuple[dict[str, Any], str]] = {
    "vimco": ({"gradient": "vimco"}, "Mnih & Rezende 2016 (arXiv 1602.06725)"),
    "ovis": ({"gradient": "ovis", "gamma": 1.0}, "Lievin et al. 2020 (arXiv 2008.01998)"),
}
"""Settings of a gradient, and its paper."""

_SBN_LENGTHS: dict[int, dict[str, Any]] = {
    5: {"learning_rate": 3e-3, "schedule": "constant-linear", "epochs": 300},
    50: {"learning_rate": 1e-3, "schedule": "linear", "epochs": 30},
}
"""Schedules for k; 50 samples train the finished model of five further, at ten times the cost."""

_SBN_CELLS = {
    f"sbn/{dataset}/3l/{name}-k{k}": Preset(
        {
            "dataset": dataset,
            "latent_sizes": (200, 200, 200),
            "hidden_sizes": ((), (), ()),
            "latents": ("bernoulli",),
            "objective": "iwae",
            "k": k,
            **values,
            "batch_size": 100,
            **length,
        },
        source=f"{source}: sigmoid belief network, trained by our settings",
        needs=None if k == 5 else f"sbn/{dataset}/3l/{name}-k5",
    )
    for dataset in ("mnist-static", "mnist")
    for name, (values, source) in _SBN.items()
    for k, length in _SBN_LENGTHS.items()
}

_DIGITS: dict[str, Any] = {"dataset": "digits", "validation": 200, "learning_rate": 5e-3}

_EXPERIMENTS = {
    "camel/vae-k1": _synthetic("camel", 1, 5, "vae", 1),
    "camel/iwae-k20": _synthetic("camel", 1, 5, "iwae", 20),
    "two-clusters/iwae-k20": _synthetic("two-clusters", 2, 20, "iwae", 20),
    "linear-2d/iwae-k20": _synthetic("linear-2d", 1, 20, "iwae", 20),
    "four-gaussians/iwae-k20": _synthetic("four-gaussians", 2, 20, "iwae", 20),
    "circle/iwae-k20": _synthetic("circle", 2, 20, "iwae", 20),
    "digits/iwae-k20": Preset(
        {
            **_DIGITS,
            "latent_sizes": (20,),
            "hidden_sizes": ((100, 100),),
            "k": 20,
            "epochs": 200,
        },
        source="scikit-learn's bundled digits: the demonstration",
    ),
    "sbn/digits/vimco-k5": Preset(
        {
            **_DIGITS,
            "latent_sizes": (50, 50),
            "hidden_sizes": ((), ()),
            "latents": ("bernoulli",),
            "k": 5,
            "gradient": "vimco",
            "epochs": 100,
        },
        source="scikit-learn's bundled digits: a sigmoid belief network of two layers",
    ),
}

_WARM_STAGES = {
    "table2/vae-to-iwae": ("vae k=1", 1, "iwae k=50", 50),
    "table2/iwae-to-vae": ("iwae k=50", 50, "vae k=1", 1),
}
"""Table 2 in one run: objective and k of the first stage, then of the last."""


def _fast(name: str, entry: Preset) -> Preset:
    """A cell with its fast recipe, which needs no other run."""
    values, stages = entry.values, None
    if name in _WARM_STAGES:
        first, few, then, many = _WARM_STAGES[name]
        values = {key: values[key] for key in ("dataset", "objective", "k")}
        start = recipe_stages(first.split()[0], few, first)
        end = recipe_last_stage(then, many, recipe_gradient(then))
        stages = f"{start}, {end} fresh=true"
    elif name in _AIWAE:  # the same ending for both objectives
        stages = recipe_stages("aiwae", 5, times=LONGER.get(values["dataset"], 1))
    elif name in _MIWAE:  # a table of what gradient estimators do
        stages = recipe_stages(values["objective"], FEW + 1, plain=True)
    source = f"{entry.source}, by a fast recipe"
    fast = fast_recipe(values, stages)
    return entry._replace(values=fast, source=source, needs=None, is_fast=True)


_CELLS = {**_TABLE_1_CELLS, **_TABLE_2, **_cells(3), **_MIWAE, **_AIWAE, **_DREG}

_LEARNED = {
    "1l/vae-k1": ("mixture:500", "vamp:500", "flow:4"),
    "2l/iwae-k50": ("vamp:500",),
}
"""Layers, objective and k of a cell of table 1 -> learned priors that replace its own."""


def _learned(data: str, cell: str, prior: str) -> tuple[str, Preset]:
    """A cell of table 1 with a learned prior: no paper has this network with it."""
    values = {**_TABLE_1_CELLS[f"table1/{data}/{cell}"].values, "prior": prior}
    source = f"the network of {BURDA}, Table 1, with another prior, by a fast recipe"
    name = f"{FAST}prior/{data}/{cell}-{prior.replace(':', '')}"
    beside = f"{FAST}table1/{data}/{cell}"
    return name, Preset(fast_recipe(values), source=source, is_fast=True, beside=beside)


_FAST = {f"{FAST}{name}": _fast(name, entry) for name, entry in _CELLS.items()}

PRESETS: dict[str, Preset] = {
    **_TABLE_1_CELLS,
    **_AUTHORS,
    **_CELLS,
    **_SBN_CELLS,
    **_EXPERIMENTS,
    **_FAST,
    **dict(
        _learned(data, cell, prior)
        for data in ("mnist", "omniglot")
        for cell, priors in _LEARNED.items()
        for prior in priors
    ),
}


def preset(name: str) -> Preset:
    """The experiment called `name`.

    Raises:
        UserError: names the nearest ones, if there is no such preset.
    """
    return PRESETS[name] if name in PRESETS else _refuse_unknown(name)


def preset_cells(patterns: Iterable[str], recipe: str) -> list[str]:
    """The matching cells, trained as published (`published`) or with their `fast` recipes.

    Both include the cells of no paper, which have fast recipes only.

    Raises:
        UserError: if one of the patterns matches none.
    """
    matched = matching(patterns)
    ours = [name for name in matched if PRESETS[name].beside is not None]
    names = [name for name in matched if name in ours or not PRESETS[name].is_fast]
    if recipe == "published" or not names:
        return names or matched
    fast = {name: name if name in ours else f"{FAST}{name}" for name in names}
    found = [cell for cell in fast.values() if cell in PRESETS]
    others = [name for name, cell in fast.items() if cell not in PRESETS]
    if found and others and list(patterns) != ["*"]:
        log.warning("left out, as they have no fast recipe: %s", ", ".join(others))
    if not found:
        raise UserError(f"{names[0]} has no fast recipe; list all with `iwae presets '{FAST}*'`")
    return found


def presets_with_baselines(names: Iterable[str]) -> list[str]:
    """The cells, with each baseline before the first cell that is compared with it.

    A baseline is omitted if its published counterpart is among the cells.
    """
    names = list(names)
    found: dict[str, None] = {}
    for name in names:
        beside = PRESETS[name].beside
        if beside is not None and beside.removeprefix(FAST) not in names:
            found[beside] = None
        found[name] = None
    return list(found)


def matching(patterns: Iterable[str]) -> list[str]:
    """The experiments that have such a name, are below it or match the pattern, in order.

    Raises:
        UserError: if one of the patterns matches none.
    """
    found: set[str] = set()
    for pattern in patterns:
        named = {n for n in PRESETS if fnmatch(n, pattern) or n.startswith(f"{pattern}/")}
        found |= named or {_refuse_unknown(pattern)}
    return [name for name in PRESETS if name in found]


def _refuse_unknown(name: str) -> NoReturn:
    near = difflib.get_close_matches(name, PRESETS, 3, cutoff=0.3)
    raise UserError(
        f"unknown preset {name!r}; nearest: {', '.join(near) or 'none'}; "
        "list all with `iwae presets`"
    )
