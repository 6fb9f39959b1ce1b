"""The rate-distortion curve of a run, for a record and a figure."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from iwae.errors import UserError
from iwae.evaluation.examples import check_positive, gather
from iwae.evaluation.posterior import rate_distortion_slabs
from iwae.inference.step_sizes import tune_step_size
from iwae.models.vae import VAE
from iwae.results.annealed import (
    PILOT_CHAINS,
    PILOT_EXAMPLES,
    annealing_keys,
    pilot_examples,
    pilot_split,
)
from iwae.results.records import (
    Record,
    Subject,
    Track,
    make_subject,
    mean_and_error,
    origin,
    record_name,
    shared_record,
    untracked,
    write_record,
)
from iwae.results.unfinished import Slab, Unfinished

CURVE = "rate-distortion"

KEPT = 101
"""Points of the curve that are kept, evenly along the schedule."""

END = 4.0
"""The curve goes on beyond the posterior, at beta = 1, to where less distortion costs more rate."""


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
    split: str = "test",
    weights: str = "final",
    examples: int | None = None,
    pruned: bool = False,
    seed: int = 0,
    batch_size: int | None = None,
    data_dir: Path | None = None,
    track: Track = untracked,
) -> Record:
    """Rate and distortion of every replicate along the path from the prior (Huang et al. 2020).

    Writes `RUN/evaluations/NAME.json` (the record, which is also returned) and `NAME.npz`:
    `betas [m]`, `index [n]` in the split, and `rate` and `distortion` `[R, n, m]`, nats. What a
    stopped call had done is kept, and the same call goes on from there.

    Args:
        temperatures: from the prior to the posterior; a quarter as many go on from there.
        chains, leapfrog: as for `Annealing`.
        split, weights, examples, pruned, seed, batch_size, track: as for `anneal_run`.

    Raises:
        UserError: if the run, its weights, its data or the split are not there, or an option makes
            no sense.
    """
    if temperatures < 2:
        raise UserError(f"temperatures is {temperatures}; a curve needs at least 2")
    check_positive("chains", chains)
    subject = make_subject(
        Path(run),
        split=split,
        weights=weights,
        examples=examples,
        pruned=pruned,
        seed=seed,
        data_dir=data_dir,
    )
    betas, unfinished = curve_betas(temperatures), Unfinished(subject.run)
    each, curves = [], []
    for replicate, model in subject.models():
        begin = time.perf_counter()
        curve = _curve(
            subject, replicate, model, betas, chains, leapfrog, batch_size, unfinished, track
        )
        at_one = curve["rate"][:, temperatures - 1] + curve["distortion"][:, temperatures - 1]
        mean, stderr = mean_and_error(-at_one)
        each.append(
            {
                "log_likelihood": mean,
                "stderr": stderr,
                "k": chains,
                "acceptance_mean": float(curve["acceptance"].mean()),
                "seconds": time.perf_counter() - begin,
                **origin(subject, replicate),
            }
        )
        curves.append(curve)
    record = {
        **(each[0] if len(each) == 1 else {"replicates": each}),
        **shared_record(subject, CURVE),
        "annealing": {"temperatures": temperatures, "chains": chains, "leapfrog": leapfrog},
        "pilot": {"split": pilot_split(subject), "examples": PILOT_EXAMPLES},
    }
    kept = np.append(np.linspace(0, len(betas) - 1, KEPT).astype(int), temperatures - 1)
    kept = np.unique(kept)
    arrays = {"betas": betas[kept], "index": subject.places}
    for name in ("rate", "distortion"):
        arrays[name] = np.stack([curve[name][:, kept] for curve in curves])
    words = (f"T{temperatures}", f"c{chains}", f"l{leapfrog}")
    write_record(subject.run, record_name(subject, *words) + f"-{CURVE}", record, arrays)
    unfinished.forget()
    return record


def _curve(
    subject: Subject,
    replicate: int,
    model: VAE,
    betas: np.ndarray,
    chains: int,
    leapfrog: int,
    batch_size: int | None,
    unfinished: Unfinished,
    track: Track,
) -> dict[str, np.ndarray]:
    """One replicate: `rate` and `distortion` `[n, T]`, and the `acceptance`."""
    pilot_key, key = annealing_keys(subject.seed, len(betas))
    settings = subject.settings(replicate, betas=betas.tolist(), chains=chains, leapfrog=leapfrog)
    sizes = unfinished.array(
        {**settings, "method": "step sizes"},
        lambda: tune_step_size(
            model,
            pilot_examples(subject),
            pilot_key,
            betas=betas,
            end=None,
            n_leapfrog=leapfrog,
            chains=PILOT_CHAINS,
            start="prior",
        ),
    )

    def slabs(first: int) -> Iterator[Slab]:
        return rate_distortion_slabs(
            model,
            subject.data,
            key,
            betas=betas,
            step_size=sizes,
            n_leapfrog=leapfrog,
            chains=chains,
            batch_size=batch_size,
            first=first,
        )

    kept = unfinished.slabs({**settings, "method": CURVE}, slabs)
    return gather(iter(track(kept, len(subject.data), f"replicate {replicate}, curve")))
