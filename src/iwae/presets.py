"""The published experiments as configurations, each with the number it is compared with.

Published negative log-likelihoods are in nats, on the test set, by 5,000 importance samples.
"""

import difflib
from typing import Any, NamedTuple

from iwae._types import UserError
from iwae.config import TrainConfig, make_config

BURDA = "Burda, Grosse & Salakhutdinov 2016 (arXiv 1509.00519v3)"


class Preset(NamedTuple):
    """A published experiment.

    Attributes:
        values: what it sets in a configuration.
        nll: the published negative log-likelihood, nats; None where nothing is published.
        active: the published active units per layer.
        source: paper and table.
        needs: the preset whose finished run `init_from` has to name, for warm starts.
    """

    values: dict[str, Any]
    nll: float | None
    active: tuple[int, ...]
    source: str
    needs: str | None = None

    def config(self, **changes: Any) -> TrainConfig:
        """The configuration, with changes."""
        return make_config({**self.values, **changes}, "preset")


_TABLE_1 = {  # data set, layers -> rows of (objective, k, NLL, active units)
    ("mnist", 1): [
        ("vae", 1, 86.76, (19,)),
        ("vae", 5, 86.47, (20,)),
        ("vae", 50, 86.35, (20,)),
        ("iwae", 5, 85.54, (22,)),
        ("iwae", 50, 84.78, (25,)),
    ],
    ("mnist", 2): [
        ("vae", 1, 85.33, (16, 5)),
        ("vae", 5, 85.01, (17, 5)),
        ("vae", 50, 84.78, (17, 5)),
        ("iwae", 5, 83.89, (21, 5)),
        ("iwae", 50, 82.90, (26, 7)),
    ],
    ("omniglot", 1): [
        ("vae", 1, 108.11, (28,)),
        ("vae", 5, 107.62, (28,)),
        ("vae", 50, 107.80, (28,)),
        ("iwae", 5, 106.12, (34,)),
        ("iwae", 50, 104.67, (41,)),
    ],
    ("omniglot", 2): [
        ("vae", 1, 107.58, (28, 4)),
        ("vae", 5, 106.31, (30, 5)),
        ("vae", 50, 106.30, (30, 5)),
        ("iwae", 5, 104.79, (38, 6)),
        ("iwae", 50, 103.38, (44, 7)),
    ],
}

_TABLE_3 = {
    ("mnist-static", 1): [
        ("vae", 1, 88.71, (19,)),
        ("vae", 5, 88.83, (19,)),
        ("vae", 50, 89.05, (20,)),
        ("iwae", 5, 87.63, (22,)),
        ("iwae", 50, 87.10, (24,)),
    ],
    ("mnist-static", 2): [
        ("vae", 1, 88.08, (16, 5)),
        ("vae", 5, 87.63, (17, 5)),
        ("vae", 50, 87.86, (17, 6)),
        ("iwae", 5, 86.17, (21, 5)),
        ("iwae", 50, 85.32, (24, 7)),
    ],
}


def _cells(table: dict, number: int) -> dict[str, Preset]:
    return {
        f"table{number}/{dataset}/{layers}l/{name}-k{k}": Preset(
            {"dataset": dataset, "layers": layers, "objective": name, "k": k},
            nll,
            active,
            f"{BURDA}, Table {number}",
        )
        for (dataset, layers), rows in table.items()
        for name, k, nll, active in rows
    }


_AUTHORS: dict[str, Any] = {
    "optimizer": "authors",
    "schedule": "authors",
    "shuffle": False,
    "validation": "authors",
}
"""What the paper's published code does otherwise than the paper says."""


def _as_published_code(cells: dict[str, Preset]) -> dict[str, Preset]:
    return {
        name.replace("table1", "authors", 1): entry._replace(
            values={**entry.values, **_AUTHORS}, source=f"{entry.source}, as its code trains"
        )
        for name, entry in cells.items()
    }


_WARM_START = {"dataset": "mnist", "schedule": "constant", "learning_rate": 1e-4, "epochs": 3**7}

_TABLE_2 = {
    "table2/vae-to-iwae": Preset(
        {**_WARM_START, "objective": "iwae", "k": 50},
        84.88,
        (22,),
        f"{BURDA}, Table 2",
        "table1/mnist/1l/vae-k1",
    ),
    "table2/iwae-to-vae": Preset(
        {**_WARM_START, "objective": "vae", "k": 1},
        86.02,
        (23,),
        f"{BURDA}, Table 2",
        "table1/mnist/1l/iwae-k50",
    ),
}

_SYNTHETIC: dict[str, Any] = {
    "batch_size": 100,
    "schedule": "paper",
    "epochs": 200,
    "learning_rate": 5e-3,
    "k": 20,
}


def _synthetic(dataset: str, latent: int, hidden: int, objective: str, k: int) -> Preset:
    sizes = {"latent_sizes": (latent,), "hidden_sizes": ((hidden, hidden),)}
    values = {**_SYNTHETIC, **sizes, "dataset": dataset, "objective": objective, "k": k}
    return Preset(values, None, (), "synthetic data with a known density")


_EXPERIMENTS = {
    "camel/vae-k1": _synthetic("camel", 1, 5, "vae", 1),
    "camel/iwae-k20": _synthetic("camel", 1, 5, "iwae", 20),
    "two-clusters/iwae-k20": _synthetic("two-clusters", 2, 20, "iwae", 20),
    "linear-2d/iwae-k20": _synthetic("linear-2d", 1, 20, "iwae", 20),
    "four-gaussians/iwae-k20": _synthetic("four-gaussians", 2, 20, "iwae", 20),
    "circle/iwae-k20": _synthetic("circle", 2, 20, "iwae", 20),
    "digits/iwae-k20": Preset(
        {
            "dataset": "digits",
            "validation": 200,
            "latent_sizes": (20,),
            "hidden_sizes": ((100, 100),),
            "k": 20,
            "epochs": 200,
            "learning_rate": 5e-3,
        },
        None,
        (),
        "scikit-learn's bundled digits: the demonstration",
    ),
}

PRESETS: dict[str, Preset] = {
    **_cells(_TABLE_1, 1),
    **_as_published_code(_cells(_TABLE_1, 1)),
    **_TABLE_2,
    **_cells(_TABLE_3, 3),
    **_EXPERIMENTS,
}


def preset(name: str) -> Preset:
    """The experiment called `name`.

    Raises:
        UserError: names the nearest one.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, 3, cutoff=0.3)
        raise UserError(
            f"no preset {name!r}; near it: {', '.join(near) or 'none'}; all: `iwae presets`"
        )
    return PRESETS[name]
