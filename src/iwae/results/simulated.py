"""Bounds from both sides on examples that the model makes itself, for a record."""

import time
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from iwae.errors import UserError
from iwae.evaluation.diagnostics import (
    Bidirectional,
    bdmc_importance_slabs,
    bdmc_slabs,
    join_bounds,
)
from iwae.evaluation.examples import check_positive
from iwae.models.conditional import Model
from iwae.results.annealed import PILOT_EXAMPLES, Annealing, annealing_keys, tune
from iwae.results.records import (
    Record,
    Subject,
    Track,
    how,
    make_subject,
    mean_and_error,
    origin,
    untracked,
    write_record,
)
from iwae.results.unfinished import Slab, Unfinished

BIDIRECTIONAL = "bidirectional Monte Carlo"


def bdmc_run(
    run: Path,
    *,
    annealing: Annealing | None = None,
    weights: str = "final",
    examples: int = 100,
    k: int = 5000,
    pruned: bool = False,
    seed: int = 0,
    batch_size: int | None = None,
    data_dir: Path | None = None,
    track: Track = untracked,
) -> Record:
    """Lower and upper bounds on log p(x) of examples drawn from every replicate's model.

    Of a conditional model they are on log p(x|y) of pairs (x, y) that it makes.

    Forward chains bound from below, reverse chains that leave the true latent from above (Grosse,
    Ghahramani & Adams 2015); the same is done with k importance samples, the true latent among
    them. Step sizes are tuned on other examples of the model. Writes `RUN/evaluations/NAME.json`
    (the record, which is also returned) and `NAME.npz`: `lower`, `upper`, `acceptance`,
    `importance_lower` and `importance_upper` `[R, n]`, and `step_sizes_R [T-1]`. What a stopped
    call had done is kept, and the same call goes on from there.

    Args:
        annealing: how to anneal; by default `Annealing()`.
        examples: how many to draw.
        k: importance samples.
        pruned, seed, batch_size, track: as for `anneal_run`.

    Raises:
        UserError: if the run or its weights are not there, or an option makes no sense.
    """
    annealing, run = annealing or Annealing(), Path(run)
    annealing.check()
    check_positive("examples", examples)
    if k < 2:
        raise UserError(f"k is {k}; the true latent and at least one proposal make 2")
    subject = make_subject(
        run, weights=weights, pruned=pruned, seed=seed, labels=True, data_dir=data_dir
    )
    unfinished = Unfinished(run)
    each, arrays = [], {}
    for replicate, model in subject.models():
        begin = time.perf_counter()
        annealed, sizes = _anneal(
            subject, replicate, model, annealing, examples, batch_size, unfinished, track
        )
        importance = _sample(
            subject, replicate, model, annealing, examples, k, batch_size, unfinished, track
        )
        arrays[f"step_sizes_{replicate}"] = sizes
        each.append(
            (
                {
                    **_bounds(annealed),
                    "acceptance_mean": float(annealed.acceptance.mean()),
                    "importance": {"k": k, **_bounds(importance)},
                    "seconds": time.perf_counter() - begin,
                    **origin(subject, replicate),
                },
                annealed,
                importance,
            )
        )
    records = [one for one, _, _ in each]
    for name in ("lower", "upper", "acceptance"):
        arrays[name] = np.stack([getattr(annealed, name) for _, annealed, _ in each])
    for name in ("lower", "upper"):
        arrays[f"importance_{name}"] = np.stack([getattr(one, name) for _, _, one in each])
    record: Record = {
        **(records[0] if len(records) == 1 else {"replicates": records}),
        "n": examples,
        "split": "simulated",
        "dataset": f"drawn from the model of {subject.dataset.name}",
        "annealing": annealing.values(),
        **how(subject, BIDIRECTIONAL),
    }
    words = ["simulated", weights, *["pruned"] * pruned, "bdmc", *annealing.words()]
    name = "-".join([*words, f"n{examples}", *([f"seed{seed}"] if seed else [])])
    write_record(run, name, record, arrays)
    unfinished.forget()
    return record


_PILOT_STREAM = 1  # folded into the seed's key; annealing folds in T >= 20


def _anneal(
    subject: Subject,
    replicate: int,
    model: Model,
    annealing: Annealing,
    examples: int,
    batch_size: int | None,
    unfinished: Unfinished,
    track: Track,
) -> tuple[Bidirectional, np.ndarray]:
    """One replicate, and the step sizes it was done with."""
    length = annealing.temperatures
    pilot_key, key = annealing_keys(subject.seed, length)
    settings = subject.settings(replicate, simulated=examples, **annealing.values())
    sizes = unfinished.array(
        {**settings, "method": "step sizes"},
        lambda: tune(model, _simulate(model, subject.seed), pilot_key, annealing, length),
    )

    def slabs(first: int) -> Iterator[Slab]:
        return bdmc_slabs(
            model,
            key,
            n_examples=examples,
            chains=annealing.chains,
            betas=annealing.betas(length),
            step_size=sizes,
            n_leapfrog=annealing.leapfrog,
            start=annealing.start,
            batch_size=batch_size,
            first=first,
        )

    kept = unfinished.slabs({**settings, "method": BIDIRECTIONAL}, slabs)
    label = f"replicate {replicate}, both ways"
    return join_bounds(iter(track(kept, examples, label))), sizes


def _sample(
    subject: Subject,
    replicate: int,
    model: Model,
    annealing: Annealing,
    examples: int,
    k: int,
    batch_size: int | None,
    unfinished: Unfinished,
    track: Track,
) -> Bidirectional:
    """The same examples of one replicate by importance sampling."""
    length = annealing.temperatures  # the examples are a function of the key of this length

    def slabs(first: int) -> Iterator[Slab]:
        return bdmc_importance_slabs(
            model,
            annealing_keys(subject.seed, length)[1],
            n_examples=examples,
            k=k,
            batch_size=batch_size,
            first=first,
        )

    settings = subject.settings(replicate, simulated=examples, k=k, temperatures=length)
    kept = unfinished.slabs({**settings, "method": f"{BIDIRECTIONAL}, samples"}, slabs)
    return join_bounds(iter(track(kept, examples, f"replicate {replicate}, {k} samples")))


def _simulate(model: Model, seed: int) -> np.ndarray:
    """Examples of the model to tune step sizes on."""
    key = jax.random.fold_in(jax.random.key(seed), _PILOT_STREAM)
    draws = jax.vmap(lambda key: model.sample(key)[1])(jax.random.split(key, PILOT_EXAMPLES))
    return np.asarray(draws, jnp.float32)


def _bounds(found: Bidirectional) -> Record:
    """Means and standard errors of both bounds and of their gap, nats."""
    record = {}
    for name, values in (("lower", found.lower), ("upper", found.upper), ("gap", found.gap)):
        record[name], record[f"{name}_stderr"] = mean_and_error(values)
    return record
