"""The rate-distortion curve of a run."""

from functools import partial
from pathlib import Path
from typing import Unpack

import numpy as np

from iwae.errors import UserError, require_positive
from iwae.evaluation.rate_distortion import rate_distortion_slabs
from iwae.inference.tuning import tune_step_size
from iwae.results.ais import PILOT_CHAINS, ais_keys, ais_pilot_examples, ais_pilot_facts
from iwae.results.measure import Measured, Replicate, SplitOptions, measure
from iwae.results.schema import Document, Method
from iwae.results.subjects import make_subject, subject_record_name
from iwae.results.summaries import summarise_means

KEPT = 101
"""Points of the curve to keep, evenly along the schedule."""

END = 4.0
"""Largest beta: beyond the posterior, at 1, less distortion costs more rate."""


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
    require_positive("chains", chains)
    subject = make_subject(Path(run), **options)
    below = np.linspace(0, 1, temperatures) ** 4  # dense near the prior
    betas = np.append(below, np.geomspace(1, END, temperatures // 4 + 1)[1:])
    evenly = np.linspace(0, len(betas) - 1, KEPT).astype(int)
    kept = np.unique(np.append(evenly, temperatures - 1))
    settings: Document = {"temperatures": temperatures, "chains": chains, "leapfrog": leapfrog}
    name = subject_record_name(subject, f"T{temperatures}", f"c{chains}", f"l{leapfrog}")
    return measure(
        subject,
        Method.CURVE,
        partial(_measure, betas=betas, kept=kept, **settings),
        file=f"{name}-{Method.CURVE}",
        shared={"annealing": settings, "pilot": ais_pilot_facts(subject)},
        arrays={"betas": betas[kept], "index": subject.places},
    )


def _measure(
    one: Replicate,
    betas: np.ndarray,
    kept: np.ndarray,
    temperatures: int,
    chains: int,
    leapfrog: int,
) -> Measured:
    """The curve of one replicate at the points with indices `kept`."""
    subject = one.subject
    pilot_key, key = ais_keys(subject.seed, len(betas))
    settings = {"betas": betas.tolist(), "chains": chains, "leapfrog": leapfrog}
    moves: Document = {"betas": betas, "n_leapfrog": leapfrog}

    def tuned() -> np.ndarray:
        more = {**moves, "chains": PILOT_CHAINS, "start": "prior", "end": None}
        return tune_step_size(one.model, ais_pilot_examples(subject), pilot_key, **more)

    moves["step_size"] = one.array(tuned, method="step sizes", **settings)
    slabs = partial(rate_distortion_slabs, one.model, subject.data, key, chains=chains, **moves)
    curve = one.values("curve", slabs, method=Method.CURVE, **settings)
    rate, distortion = (curve[name][:, temperatures - 1] for name in ("rate", "distortion"))
    record = {
        **summarise_means(log_likelihood=-(rate + distortion)),  # at beta = 1
        "k": chains,
        "acceptance_mean": float(curve["acceptance"].mean()),
    }
    return Measured(record, {name: curve[name][:, kept] for name in ("rate", "distortion")})
