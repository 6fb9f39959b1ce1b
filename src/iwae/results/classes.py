"""A conditional model as a classifier, and as a judge of what is none of its data, for a record."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Unpack

import jax
import numpy as np

from iwae.data import Dataset, load_dataset, test_sha256
from iwae.errors import UserError
from iwae.evaluation.classes import (
    auroc,
    class_log_likelihood_slabs,
    confusion_matrix,
    label_log_probabilities,
    marginal_log_likelihoods,
)
from iwae.evaluation.diagnostics import test_sample_error
from iwae.results.measure import Measured, Replicate, SplitOptions, measure
from iwae.results.records import (
    Subject,
    chosen_examples,
    make_subject,
    mean_and_error,
    number,
    record_name,
    shared_record,
)
from iwae.results.schema import Document, Method
from iwae.results.unfinished import Slab
from iwae.runs.folder import run_config

CAUTION = (
    "likelihoods alone are a weak test of whether examples are of the same kind: other, simpler "
    "data can have higher ones (Nalisnick et al. 2019)"
)
"""The caution beside every number that compares likelihoods of different data."""


class Others(NamedTuple):
    """Examples of other data, on which the run was not trained.

    Attributes:
        name: of the data.
        data: `[m, d]` in the model's units, without labels.
        places: `[m]` where they are in the test split.
        subset: whether they are not all of it.
        identity: of the data, for the record.
    """

    name: str
    data: np.ndarray
    places: np.ndarray
    subset: bool
    identity: dict[str, Any]


def classify_run(
    run: Path, *, k: int = 100, against: str | None = None, **options: Unpack[SplitOptions]
) -> Document:
    """Every replicate of a conditional run as a classifier, by the likelihood of every label.

    L_k of log p(x|y) gives log p(y|x) by Bayes' rule, with p(y) of the training data, and
    log p(x) = log sum_y p(y) p(x|y). Writes `RUN/evaluations/NAME.json` (the record, which is also
    returned) and `NAME.npz`: for R replicates, n examples and C labels `index [n]` in the split,
    `label [n]`, `log_likelihood [R, n, C]` of log p(x|y) and `marginal [R, n]` of log p(x), nats;
    with `against`, the same of the others as `others_index`, `others_log_likelihood` and
    `others_marginal`. A call that was stopped continues when it is repeated.

    Args:
        k: importance samples for each example and label.
        against: other data, a name or a file, of examples of the same shape. The record then says
            how often log p(x) of an example is above that of one of their test examples (AUROC).
        options: see `SplitOptions`; conditional models are not pruned. `examples` is also the
            largest number of examples of the other data.

    Raises:
        UserError: if the run, its weights or data are not there, it is not conditional, or the
            other data have examples of another shape or kind.
        FloatingPointError: if a number is nan.
    """
    run = Path(run)
    if not run_config(run).conditional:
        raise UserError(f"{run} knows no labels: train with --conditional to classify")
    subject = make_subject(run, **options)
    arrays = {"index": subject.places, "label": _labels(subject)}
    words = ["classify", f"k{k}"]
    others = None
    if against is not None:
        others = _others(subject, against, options.get("examples"), options.get("data_dir"))
        arrays["others_index"] = others.places
        words += ["against", _file_word(others.name)]
    return measure(
        subject,
        partial(_measure, others=others, k=k),
        file=record_name(subject, *words),
        shared={**shared_record(subject, Method.CLASSIFICATION), "k": k, **_about(others)},
        arrays=arrays,
    )


def _labels(subject: Subject) -> np.ndarray:
    """The label of each example, `[n]`."""
    return getattr(subject.dataset.labels, subject.split)[subject.places]


def _measure(one: Replicate, others: Others | None, k: int) -> Measured:
    subject, shares = one.subject, np.asarray(one.model.frequencies)
    own = _scores(one, subject.data[:, : subject.dataset.n_values], _OWN, k, "")
    record = {"k": k, **_summary(own["log_likelihood"], _labels(subject), shares)}
    if others is None:
        return Measured(record, own)
    theirs = _scores(one, others.data, _OTHERS, k, f", {others.name}")
    record |= _separation(own["marginal"], theirs["marginal"])
    return Measured(record, {**own, **{f"others_{name}": v for name, v in theirs.items()}})


def _scores(
    one: Replicate, rows: np.ndarray, stream: int, k: int, name: str
) -> dict[str, np.ndarray]:
    """log p(x|y) of rows under every label, `[n, C]`, and log p(x), `[n]`, nats."""
    model, subject = one.model, one.subject
    key = jax.random.fold_in(jax.random.key(subject.seed), stream)

    def slabs(first: int) -> Iterator[Slab]:
        return class_log_likelihood_slabs(
            model, rows, key, k=k, batch_size=subject.batch_size, first=first
        )

    given = one.values(
        f"{model.n_classes} labels, k={k}{name}",
        slabs,
        len(rows),
        method=Method.CLASSIFICATION,
        k=k,
        rows=test_sha256(np.ascontiguousarray(rows)),
        stream=stream,
    )["log_likelihood"]
    shares = np.asarray(model.frequencies)
    return {"log_likelihood": given, "marginal": marginal_log_likelihoods(given, shares)}


_OWN, _OTHERS = 0, 1
"""Numbers folded into the seed's key, so that no noise is used twice."""


def _others(subject: Subject, name: str, examples: int | None, data_dir: Path | None) -> Others:
    """Test examples of other data, made ready as those of the run are."""
    config = subject.config
    grey = config.binarization in ("static", "threshold")  # `dynamic` draws test sets once as well
    dataset = load_dataset(
        name,
        binarization=config.binarization if grey else None,
        binarization_seed=config.binarization_seed,
        observation=config.kind(),
        missing=config.missing is not None,
        data_dir=data_dir,
    )
    _check_others(subject, dataset)
    total = len(dataset.test)
    count = None if examples is None or examples >= total else examples
    data, places = chosen_examples(dataset, "test", count, subject.seed)
    return Others(dataset.name, np.asarray(data), places, count is not None, dataset.identity)


def _check_others(subject: Subject, dataset: Dataset) -> None:
    """Raise UserError if examples of other data are none that the run's models can score."""
    own = subject.dataset
    if dataset.shape != own.shape:
        raise UserError(
            f"examples of {dataset.name} have the shape {list(dataset.shape)}, those of {own.name} "
            f"{list(own.shape)}: only examples of the same shape can be scored"
        )
    if dataset.identity["test_sha256"] == own.identity["test_sha256"]:
        raise UserError(f"against {dataset.name}: these are the run's own data; name others")


def _summary(scores: np.ndarray, labels: np.ndarray, shares: np.ndarray) -> Document:
    """Summary of the scores `[n, C]` of examples with these labels, with standard errors."""
    log_p = label_log_probabilities(scores, shares)
    found = log_p.argmax(axis=1)
    own = np.arange(len(labels)), labels
    right = (found == labels).astype(np.float64)
    likelihood, stderr = mean_and_error(scores[own])
    return {
        "log_likelihood": likelihood,  # of x given its own label
        "stderr": stderr,
        "accuracy": float(right.mean()),
        "accuracy_stderr": number(test_sample_error(right)),
        **_named("label_log_probability", log_p[own]),
        **_named("marginal_log_likelihood", marginal_log_likelihoods(scores, shares)),
        "confusion": confusion_matrix(labels, found, len(shares)).tolist(),
    }


def _separation(own: np.ndarray, others: np.ndarray) -> Document:
    """How well log p(x) separates examples from other data: AUROC."""
    area, error = auroc(own, others)
    return {
        "auroc": area,
        "auroc_stderr": number(error),
        **_named("others_marginal_log_likelihood", others),
    }


def _named(name: str, values: np.ndarray) -> Document:
    mean, error = mean_and_error(values)
    return {name: mean, f"{name}_stderr": error}


def _about(others: Others | None) -> Document:
    """The facts about the other data, for a record."""
    if others is None:
        return {"others": None}
    return {
        "others": others.name,
        "others_n": len(others.data),
        "others_subset": others.subset,
        "others_data": others.identity,
        "others_examples_sha256": test_sha256(np.ascontiguousarray(others.data)),
        "caution": CAUTION,
    }


def _file_word(name: str) -> str:
    """The name of data as a part of a file's name."""
    return "".join(letter if letter.isalnum() or letter in "-." else "_" for letter in name)
