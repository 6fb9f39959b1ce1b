"""Bounds from both sides on examples drawn from the model itself."""

from functools import partial
from pathlib import Path
from typing import Unpack

import jax
import jax.numpy as jnp
import numpy as np

from iwae.errors import UserError, require_positive
from iwae.evaluation.bdmc import Bidirectional, bdmc_importance_slabs, bdmc_slabs
from iwae.models.conditional import Model
from iwae.precision import float32
from iwae.results.ais import PILOT_EXAMPLES, Annealing, ais_keys, freeze_ais
from iwae.results.likelihood import DEFAULT_K
from iwae.results.measure import Measured, Options, Replicate, measure
from iwae.results.schema import MIXED, Document, Method
from iwae.results.subjects import SIMULATED, make_subject, subject_record_name
from iwae.results.summaries import summarise_means


@float32
def bdmc_run(
    run: Path,
    *,
    annealing: Annealing | None = None,
    examples: int = 100,
    k: int = DEFAULT_K,
    **options: Unpack[Options],
) -> Document:
    """Bounds on log p(x) of examples drawn from every replicate's model.

    For a conditional model they are bounds on log p(x|y) of pairs (x, y) drawn from it.

    Forward chains bound from below, reverse chains that leave the true latent from above (Grosse,
    Ghahramani & Adams 2015), and so does a reverse chain among forward ones, `mixed_upper`
    (Brekelmans et al. 2022). The same is done with k importance samples, the true latent among
    them. Step sizes are tuned on other examples of the model. Writes `RUN/evaluations/NAME.json`
    (the record, which is also returned) and `NAME.npz`: `lower`, `upper`, `mixed_upper`,
    `acceptance`, `importance_lower` and `importance_upper` `[R, n]`, `betas_R [T]` and
    `step_sizes_R [T-1]`. A call that was stopped continues when it is repeated.

    Args:
        annealing: temperatures, chains and moves; by default `Annealing()`.
        examples: how many to draw.
        k: importance samples.
        options: those of `Options` but for `split`, as nothing of the data is measured.

    Raises:
        UserError: if the run or its weights are not there, or an option makes no sense.
    """
    annealing = annealing or Annealing()
    annealing.check()
    require_positive("examples", examples)
    if k < 2:
        raise UserError(f"k is {k}; the true latent and at least one proposal make 2")
    subject = make_subject(Path(run), **options)._replace(split=SIMULATED)
    words = [*annealing.words(), *[f"k{k}"] * (k != DEFAULT_K), f"n{examples}"]
    return measure(
        subject,
        Method.BIDIRECTIONAL,
        partial(_measure, annealing=annealing, examples=examples, k=k),
        file=subject_record_name(subject, "bdmc", *words),
        shared={"n": examples, "annealing": annealing.values()},
    )


_PILOT_STREAM = 1  # folded into the seed's key; annealing folds in T >= 20


def _measure(one: Replicate, annealing: Annealing, examples: int, k: int) -> Measured:
    subject, length = one.subject, annealing.temperatures
    key, method = ais_keys(subject.seed, length)[1], Method.BIDIRECTIONAL
    path = freeze_ais(
        one, annealing, length, lambda: _simulate(one.model, subject.seed), simulated=examples
    )
    moves = annealing.moves(annealing.chains, **path._asdict())
    chains = partial(bdmc_slabs, one.model, key, n_examples=examples, **moves)
    settings = {"simulated": examples, "mixed": True, **annealing.values()}
    found = one.values("both ways", chains, examples, method=method, **settings)
    annealed = Bidirectional(**found)
    samples = partial(bdmc_importance_slabs, one.model, key, n_examples=examples, k=k)
    settings = {"simulated": examples, "k": k, "temperatures": length}  # which the key depends on
    found = one.values(f"{k} samples", samples, examples, method=f"{method}, samples", **settings)
    sampled = Bidirectional(**found)
    both = {name: getattr(annealed, name) for name in ("lower", "upper", "gap", *MIXED)}
    means = summarise_means(lower=sampled.lower, upper=sampled.upper, gap=sampled.gap)
    record = {
        **summarise_means(**both),
        "acceptance_mean": float(annealed.acceptance.mean()),
        "importance": {"k": k, **means},
    }
    values = annealed._asdict()
    values |= {f"importance_{name}": getattr(sampled, name) for name in ("lower", "upper")}
    return Measured(record, values, path.arrays(str(one.number)))


def _simulate(model: Model, seed: int) -> np.ndarray:
    """Examples drawn from the model, for tuning step sizes."""
    key = jax.random.fold_in(jax.random.key(seed), _PILOT_STREAM)
    with jax.debug_nans(False):  # gaps of a model of missing values
        draws = jax.vmap(lambda key: model.sample(key)[1])(jax.random.split(key, PILOT_EXAMPLES))
    return np.asarray(draws, jnp.float32)
