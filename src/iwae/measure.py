"""Measure the models of a run: records, with the per-example values beside them.

A record says what was measured, on which examples, by which model, how, and how sure the number
is; tables are made from records alone.
"""

import json
import time
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from iwae._types import UserError, atomic_write
from iwae.checkpoint import read_about
from iwae.config import TrainConfig, config_values, read_config
from iwae.data import Dataset, choose, test_sha256
from iwae.evaluate import (
    ActiveUnits,
    active_units,
    authors_active_units,
    gather,
    log_likelihood_slabs,
    prune,
)
from iwae.jobs import load_config_dataset, model_folder, run_model, split_examples
from iwae.model import VAE

Track = Callable[[Iterable, int, str], Iterable]

SPLITS = ("train", "validation", "test")
WEIGHTS = ("final", "best")


def untracked(items: Iterable, total: int, label: str) -> Iterable:  # noqa: ARG001
    """No progress bar."""
    return items


class Measurement(NamedTuple):
    """What one model scores on the examples.

    Attributes:
        log_likelihood: `[len(ks), n]` float64, nats.
        ess: `[len(ks), n]` effective sample sizes.
        units: active units on the same examples.
        authors_units: active units by the authors' definition.
        about: where the model comes from.
        seconds: what the likelihoods took.
    """

    log_likelihood: np.ndarray
    ess: np.ndarray
    units: ActiveUnits
    authors_units: ActiveUnits
    about: dict[str, Any]
    seconds: float


def evaluate_run(
    run: Path,
    *,
    split: str = "test",
    weights: str = "final",
    ks: Sequence[int] = (5000,),
    examples: int | None = None,
    pruned: bool = False,
    seed: int = 0,
    batch_size: int | None = None,
    data_dir: Path | None = None,
    track: Track = untracked,
) -> dict[str, Any]:
    """Importance sampled log-likelihoods and active units of every replicate of a run.

    Writes `RUN/evaluations/NAME.json` (the record, which is also returned) and `NAME.npz` (the
    values behind it): for R replicates, m numbers of samples and n examples `k [m]`, `index [n]` in
    the split, `log_likelihood` and `ess` `[R, m, n]`, and `variances_R_L` of the units of each
    replicate R (from 0) and layer L (from 1). A number that is not finite is null in the record.

    Args:
        ks: numbers of importance samples; the record leads with the largest.
        examples: a seeded random subset of the split instead of all of it.
        pruned: measure the models with their inactive units removed.
        seed: of the importance samples and of the subset.
        track: wraps an iterable of slabs, its length and a label into a progress bar.

    Raises:
        UserError: if the run, its weights, its data or the split are not there.
    """
    if not ks:
        raise UserError("name at least one k")
    if not 0 <= seed < 2**31:
        raise UserError(f"seed is {seed}; it must be between 0 and {2**31 - 1}")
    config = _run_config(run)
    dataset = load_config_dataset(config, data_dir)
    data, index = _examples(dataset, split, examples, seed)
    ks = sorted(set(ks))
    measured = [
        _measure(run, weights, replicate, data, dataset, ks, pruned, seed, batch_size, track)
        for replicate in range(config.replicates)
    ]
    shared = {
        "dataset": dataset.name,
        "split": split,
        "n": len(data),
        "subset": None if examples is None else {"examples": len(data), "seed": seed},
        "test_sha256": dataset.identity["test_sha256"],
        "examples_sha256": test_sha256(np.ascontiguousarray(data)),
        "method": "importance sampling",
        "proposal": "posterior",
        "unit": "nats",
        "weights": weights,
        "pruned": pruned,
        "seed": seed,
        "dtype": "float32",
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "versions": {"iwae": version("iwae"), "jax": jax.__version__},
        "true_log_likelihood": _truth(dataset, data),
        "data": dataset.identity,
        "config": config_values(config),
    }
    record = _record(measured, ks, shared)
    name = f"{split}-{weights}{'-pruned' if pruned else ''}-k{ks[-1]}"
    name += "" if examples is None else f"-n{len(data)}"
    name += "" if seed == 0 else f"-seed{seed}"
    _write(run / "evaluations" / name, record, measured, ks, index)
    return record


def _run_config(run: Path) -> TrainConfig:
    if not (run / "config.toml").is_file():
        raise UserError(f"{run} holds no run: config.toml is missing")
    return read_config(run / "config.toml")


def _examples(
    dataset: Dataset, split: str, count: int | None, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """The examples of a split in the model's units, and their indices in it."""
    if split not in SPLITS:
        raise UserError(f"no split {split!r}; known: {', '.join(SPLITS)}")
    total = len(getattr(dataset, split))
    if total == 0:
        raise UserError(f"the {split} split of {dataset.name} is empty")
    index = np.arange(total)
    if count is not None:
        if not 1 <= count <= total:
            raise UserError(f"examples is {count}; the {split} split has {total}")
        index = np.sort(choose(total, count, seed=seed))
    return split_examples(dataset, split)[index], index


def _truth(dataset: Dataset, data: np.ndarray) -> float | None:
    """The mean log density of the examples under the distribution that they come from, nats."""
    if dataset.log_density is None:
        return None
    return float(dataset.log_density(np.asarray(data, np.float64)).mean())


def _measure(
    run: Path,
    weights: str,
    replicate: int,
    data: np.ndarray,
    dataset: Dataset,
    ks: Sequence[int],
    pruned: bool,
    seed: int,
    batch_size: int | None,
    track: Track,
) -> Measurement:
    """One replicate."""
    model, key = run_model(run, weights, replicate, dataset), jax.random.key(seed)
    if pruned:
        model = prune(model, active_units(model, split_examples(dataset, "train"), key).masks)
    start = time.perf_counter()
    results = [
        _likelihoods(model, data, key, k, batch_size, track, f"replicate {replicate}, k={k}")
        for k in ks
    ]
    seconds = time.perf_counter() - start
    return Measurement(
        np.stack([result["log_likelihood"] for result in results]),
        np.stack([result["ess"] for result in results]),
        active_units(model, data, key),
        authors_active_units(model, split_examples(dataset, "train", 500), key),
        read_about(model_folder(run, weights, replicate)),
        seconds,
    )


def _likelihoods(
    model: VAE,
    data: np.ndarray,
    key: jax.Array,
    k: int,
    batch_size: int | None,
    track: Track,
    label: str,
) -> dict[str, np.ndarray]:
    slabs = log_likelihood_slabs(model, data, key, k=k, batch_size=batch_size)
    return gather(iter(track(slabs, len(data), label)))


# --- records --------------------------------------------------------------------------------


def summary(values: np.ndarray) -> dict[str, float | None]:
    """Mean over examples and its standard error from the sample of examples, nats."""
    if not np.isfinite(values).all():
        return {"log_likelihood": None, "stderr": None}
    n = len(values)
    error = float(values.std(ddof=1) / np.sqrt(n)) if n > 1 else None
    return {"log_likelihood": float(values.mean()), "stderr": error}


def _record(
    measured: Sequence[Measurement], ks: Sequence[int], shared: dict[str, Any]
) -> dict[str, Any]:
    """One record for all replicates; `replicates` has each one's own."""
    each = [_one_record(one, ks) for one in measured]
    if len(measured) == 1:
        return {**each[0], **shared}
    total = summary(np.mean([one.log_likelihood[-1] for one in measured], axis=0))
    finite = total["log_likelihood"] is not None
    spread = np.std([one["log_likelihood"] for one in each], ddof=1) if finite else None
    what = {name: shared[name] for name in ("dataset", "split", "n", "test_sha256")}
    return {
        **total,
        "k": ks[-1],
        "between_replicates_sd": None if spread is None else float(spread),
        **{name: _mean_counts(each, name) for name in ("active_units", "active_units_authors")},
        **shared,
        "replicates": [{**one, **what} for one in each],
    }


def _mean_counts(each: Sequence[dict[str, Any]], name: str) -> list[float]:
    """Units per layer, averaged over replicates; a layer pruned away has none."""
    layers = zip_longest(*(one[name] for one in each), fillvalue=0)
    return [float(np.mean(counts)) for counts in layers]


def _one_record(one: Measurement, ks: Sequence[int]) -> dict[str, Any]:
    by_k = [
        {"k": k, **summary(values), "ess_mean": float(ess.mean()), "ess_min": float(ess.min())}
        for k, values, ess in zip(ks, one.log_likelihood, one.ess, strict=True)
    ]
    return {
        **by_k[-1],
        "by_k": by_k,
        "active_units": list(one.units.counts),
        "active_units_authors": list(one.authors_units.counts),
        "threshold": one.units.threshold,
        "seconds": one.seconds,
        "replicate": one.about.get("replicate"),
        "epoch": one.about.get("epoch"),
    }


def _write(
    stem: Path,
    record: dict[str, Any],
    measured: Sequence[Measurement],
    ks: Sequence[int],
    index: np.ndarray,
) -> None:
    """The record and the values behind it."""
    arrays = {
        "k": np.asarray(ks),
        "index": index,
        "log_likelihood": np.stack([one.log_likelihood for one in measured]),
        "ess": np.stack([one.ess for one in measured]),
    }
    for replicate, one in enumerate(measured):
        for layer, variances in enumerate(one.units.variances, start=1):
            arrays[f"variances_{replicate}_{layer}"] = variances
    with atomic_write(stem.with_name(stem.name + ".npz")) as path:
        np.savez_compressed(path, allow_pickle=False, **arrays)
    with atomic_write(stem.with_name(stem.name + ".json")) as path:
        path.write_text(json.dumps(record, indent=1, default=str) + "\n")
