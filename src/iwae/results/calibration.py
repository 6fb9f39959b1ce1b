"""Calibration of the encoder on pairs drawn from the model."""

from functools import partial
from pathlib import Path
from typing import Unpack

import jax
import numpy as np

from iwae.errors import UserError, require_positive
from iwae.evaluation.calibration import KINDS, rank_coverage, rank_slabs
from iwae.evaluation.ecdf_bands import Bands, uniform_bands
from iwae.precision import float32
from iwae.results.measure import Measured, Options, Replicate, measure
from iwae.results.schema import Document, Method
from iwae.results.subjects import SIMULATED, make_subject, subject_record_name
from iwae.results.summaries import summarise_means

LEVELS = (0.5, 0.8, 0.95)
"""Levels of the central intervals."""

FEWEST = 10
"""Minimum pairs: with fewer, a calibration band is uninformative."""

BAND = 0.95
"""Probability that the ranks of an exactly calibrated unit lie inside the band everywhere."""

WORST = 3
"""Worst units of each layer to list in a record."""


@float32
def calibrate_run(
    run: Path, *, examples: int = 1000, k: int = 1000, **options: Unpack[Options]
) -> Document:
    """Simulation-based calibration of q(z|x), of every replicate of a run (Talts et al. 2018).

    Draws pairs (z, x) from the model, ranks each unit of z among k draws of q(z|x) and in the
    distribution of the same draws with self-normalised weights, and compares the ranks with uniform
    numbers: coverage of central intervals, and simultaneous bands of their distribution function
    (Säilynoja, Bürkner & Vehtari 2022). Discrete units have ranks too, ties broken at random.
    Writes `RUN/evaluations/NAME.json` (the record, which is also returned) and `NAME.npz`: for each
    replicate R `q_R` and `snis_R` `[n, units]`, the relative ranks, and `layers_R [units]`, the
    layer of each unit from 1. A call that was stopped continues when it is repeated.

    Args:
        examples: pairs to draw.
        k: draws of q(z|x) for each.
        options: those of `Options`; no data are measured.

    Raises:
        UserError: if the run or its weights are not there, or an option makes no sense.
    """
    if examples < FEWEST:
        raise UserError(f"examples is {examples}; to calibrate, give at least {FEWEST}")
    require_positive("k", k)
    subject = make_subject(Path(run), **options)._replace(split=SIMULATED)
    return measure(
        subject,
        Method.CALIBRATION,
        partial(_measure, examples=examples, k=k, bands=uniform_bands(examples, BAND)),
        file=subject_record_name(subject, Method.CALIBRATION, f"k{k}", f"n{examples}"),
        shared={"n": examples, "k": k, "band_level": BAND},
    )


def _measure(one: Replicate, examples: int, k: int, bands: Bands) -> Measured:
    key = jax.random.key(one.subject.seed)
    slabs = partial(rank_slabs, one.model, key, n_examples=examples, k=k)
    settings = {"simulated": examples, "k": k}
    found = one.values("ranks", slabs, examples, method=Method.CALIBRATION, **settings)
    # The layer, from 1, of each number of a flat latent; a categorical unit has C of them.
    leaves = jax.tree.leaves(jax.eval_shape(one.model.sample, jax.random.key(0))[0])
    layers = np.repeat(np.arange(1, len(leaves) + 1), [leaf.size for leaf in leaves])
    rows = [
        _layer_row(found[kind][:, layers == layer], layer, kind, bands)
        for layer in np.unique(layers).tolist()
        for kind in KINDS
    ]
    own = {f"{kind}_{one.number}": found[kind].astype(np.float32) for kind in KINDS}
    return Measured({"calibration": rows}, {}, {**own, f"layers_{one.number}": layers})


def _layer_row(ranks: np.ndarray, layer: int, kind: str, bands: Bands) -> Document:
    """The part of a record about one layer, from ranks `[n, units]`."""
    tails = bands.smallest_tail(ranks)
    worst = np.argsort(tails, kind="stable")[:WORST]
    shares = {one: rank_coverage(ranks, one) for one in LEVELS}
    levels = [{"level": one, **summarise_means(coverage=share)} for one, share in shares.items()]
    return {
        "layer": layer,
        "of": kind,
        "units": len(tails),
        "outside": int(np.count_nonzero(tails <= bands.critical)),
        "coverage": levels,
        "worst": [_unit_facts(ranks[:, i], int(i), bands.p_value(tails[i])) for i in worst],
    }


def _unit_facts(ranks: np.ndarray, number: int, p_value: float) -> Document:
    """Facts about one unit; a uniform variable has mean 1/2 and standard deviation 1/sqrt(12)."""
    mean, spread = float(ranks.mean()), float(ranks.std() * np.sqrt(12))
    return {"unit": number, "p_value": p_value, "mean_rank": mean, "spread": spread}
