"""The rate-distortion curve of a run, for a record and a figure."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Unpack

import numpy as np

from iwae.errors import UserError
from iwae.evaluation.examples import check_positive
from iwae.evaluation.posterior import rate_distortion_slabs
from iwae.inference.step_sizes import tune_step_size
from iwae.results.annealed import (
    PILOT_CHAINS,
    PILOT_EXAMPLES,
    annealing_keys,
    pilot_examples,
    pilot_split,
)
from iwae.results.measure import Measured, Replicate, SplitOptions, measure
from iwae.results.records import make_subject, mean_and_error, record_name, shared_record
from iwae.results.schema import Document, Method
from iwae.results.unfinished import Slab

KEPT = 101
"""Points of the curve that are kept, evenly along the schedule."""

END = 4.0
"""The curve continues beyond beta = 1, the posterior, to where less distortion costs more rate."""


def curve_betas(temperatures: int) -> np.ndarray:
    """T temperatures from the prior to the posterior, dense near the prior, and T / 4 beyond."""
    below = np.linspace(0, 1, temperatures) ** 4
    return np.append(below, np.geomspace(1, END, temperatures // 4 + 1)[1:])


def rate_distortion_run(
    run: Path,
    *,
    temperatures: int = 500,
    chains: int = 16,
    leapfrog: int = 10,
    **options: Unpack[SplitOptions],
) -> Document:
    """Rate and distortion of every replicate along the path from the prior (Huang et al. 2020).

    Writes `RUN/evaluations/NAME.json` (the record, which is also returned) and `NAME.npz`:
    `betas [m]`, `index [n]` in the split, and `rate` and `distortion` `[R, n, m]`, nats. A call
    that was stopped continues when it is repeated.

    Args:
        temperatures: from the prior to the posterior; a quarter as many continue from there.
        chains, leapfrog: as for `Annealing`.
        options: see `SplitOptions`.

    Raises:
        UserError: if the run, its weights, its data or the split are not there, or an option makes
            no sense.
    """
    if temperatures < 2:
        raise UserError(f"temperatures is {temperatures}; a curve needs at least 2")
    check_positive("chains", chains)
    subject, betas = make_subject(Path(run), **options), curve_betas(temperatures)
    kept = np.append(np.linspace(0, len(betas) - 1, KEPT).astype(int), temperatures - 1)
    kept = np.unique(kept)
    words = (f"T{temperatures}", f"c{chains}", f"l{leapfrog}")
    return measure(
        subject,
        partial(
            _measure,
            betas=betas,
            at_one=temperatures - 1,
            kept=kept,
            chains=chains,
            leapfrog=leapfrog,
        ),
        file=record_name(subject, *words) + f"-{Method.CURVE}",
        shared={
            **shared_record(subject, Method.CURVE),
            "annealing": {"temperatures": temperatures, "chains": chains, "leapfrog": leapfrog},
            "pilot": {"split": pilot_split(subject), "examples": PILOT_EXAMPLES},
        },
        arrays={"betas": betas[kept], "index": subject.places},
    )


def _measure(
    one: Replicate,
    betas: np.ndarray,
    at_one: int,
    kept: np.ndarray,
    chains: int,
    leapfrog: int,
) -> Measured:
    """One replicate. `at_one`: the place of beta = 1. `kept`: those of the points to keep."""
    subject = one.subject
    pilot_key, key = annealing_keys(subject.seed, len(betas))
    settings = {"betas": betas.tolist(), "chains": chains, "leapfrog": leapfrog}

    def tuned() -> np.ndarray:
        return tune_step_size(
            one.model,
            pilot_examples(subject),
            pilot_key,
            betas=betas,
            end=None,
            n_leapfrog=leapfrog,
            chains=PILOT_CHAINS,
            start="prior",
        )

    sizes = one.array(tuned, method="step sizes", **settings)

    def slabs(first: int) -> Iterator[Slab]:
        return rate_distortion_slabs(
            one.model,
            subject.data,
            key,
            betas=betas,
            step_size=sizes,
            n_leapfrog=leapfrog,
            chains=chains,
            batch_size=subject.batch_size,
            first=first,
        )

    curve = one.values("curve", slabs, method=Method.CURVE, **settings)
    mean, stderr = mean_and_error(-(curve["rate"][:, at_one] + curve["distortion"][:, at_one]))
    record = {
        "log_likelihood": mean,
        "stderr": stderr,
        "k": chains,
        "acceptance_mean": float(curve["acceptance"].mean()),
    }
    return Measured(record, {name: curve[name][:, kept] for name in ("rate", "distortion")})
