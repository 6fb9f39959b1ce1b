"""A conditional model as a classifier and as a detector of other data."""

import re
from functools import partial
from pathlib import Path
from typing import NamedTuple, Unpack

import jax
import numpy as np

from iwae.data import Dataset, choose, load_dataset, test_sha256
from iwae.errors import UserError
from iwae.evaluation.classification import (
    class_log_likelihood_slabs,
    confusion_matrix,
    label_log_probabilities,
    marginalise_classes,
)
from iwae.evaluation.scores import auroc
from iwae.results.measure import Measured, Replicate, SplitOptions, measure
from iwae.results.schema import Document, Method
from iwae.results.subjects import (
    Subject,
    check_subject_split,
    make_subject,
    subject_examples,
    subject_record_name,
)
from iwae.results.summaries import summarise_means, summary_number
from iwae.runs.folder import folder_config

CAUTION = (
    "likelihoods alone are a weak test of whether examples are of the same kind: other, simpler "
    "data can have higher ones (Nalisnick et al. 2019)"
)
"""A caution beside every comparison of likelihoods of different data."""


class Others(NamedTuple):
    """Test examples `[m, d]` of other data than the run's, without labels, and their places."""

    dataset: Dataset
    data: np.ndarray
    places: np.ndarray


def classify_run(
    run: Path, *, k: int = 100, against: str | None = None, **options: Unpack[SplitOptions]
) -> Document:
    """Every replicate of a conditional run as a classifier, by the likelihood of each label.

    L_k of log p(x|y) gives log p(y|x) by Bayes' rule, with p(y) of the training data, and
    log p(x) = log sum_y p(y) p(x|y). Writes `RUN/evaluations/NAME.json` (the record, which is also
    returned) and `NAME.npz`: for R replicates, n examples and C labels `index [n]` in the split,
    `label [n]`, `log_likelihood [R, n, C]` of log p(x|y) and `marginal [R, n]` of log p(x), nats;
    with `against`, the same of the others as `others_index`, `others_log_likelihood` and
    `others_marginal`. A call that was stopped continues when it is repeated.

    Args:
        k: importance samples for each example and label.
        against: other data, a name or a file, with examples of the same shape. The record then has
            the share of pairs in which log p(x) of an example is above that of one of their test
            examples (AUROC).
        options: see `SplitOptions`; conditional models are not pruned. `examples` is also the
            maximum number of examples of the other data.

    Raises:
        UserError: if the run, its weights or data are missing, it is not conditional, or the other
            data have examples of another shape or kind.
        FloatingPointError: if a number is nan.
    """
    run = Path(run)
    if not folder_config(run).conditional:
        raise UserError(f"{run} knows no labels: train with --conditional to classify")
    subject = make_subject(run, **options)
    arrays = {"index": subject.places, "label": _labels_of(subject)}
    words = ["classify", f"k{k}"]
    others = None
    if against is not None:
        others = _other_data(subject, against, options.get("examples"), options.get("data_dir"))
        arrays["others_index"] = others.places
        words += ["against", re.sub(r"[^\w.-]|_", "_", others.dataset.name)]
    return measure(
        subject,
        Method.CLASSIFICATION,
        partial(_measure, others=others, k=k),
        file=subject_record_name(subject, *words),
        shared={"k": k, **_about(others)},
        arrays=arrays,
    )


def _labels_of(subject: Subject) -> np.ndarray:
    """The label of each example, `[n]`."""
    return getattr(subject.dataset.labels, subject.split)[subject.places]


def _measure(one: Replicate, others: Others | None, k: int) -> Measured:
    subject, shares = one.subject, np.asarray(one.model.frequencies)
    own = _scores(one, subject.data[:, : subject.dataset.n_values], _OWN, k, "")
    record = {"k": k, **_class_summary(own["log_likelihood"], _labels_of(subject), shares)}
    if others is None:
        return Measured(record, own)
    other = _scores(one, others.data, _OTHERS, k, f", {others.dataset.name}")
    area, error = auroc(own["marginal"], other["marginal"])
    record |= {"auroc": area, "auroc_stderr": summary_number(error)}
    record |= summarise_means(others_marginal_log_likelihood=other["marginal"])
    return Measured(record, {**own, **{f"others_{name}": v for name, v in other.items()}})


def _scores(
    one: Replicate, rows: np.ndarray, stream: int, k: int, name: str
) -> dict[str, np.ndarray]:
    """log p(x|y) of rows under every label, `[n, C]`, and log p(x), `[n]`, nats."""
    model, key = one.model, jax.random.fold_in(jax.random.key(one.subject.seed), stream)
    slabs = partial(class_log_likelihood_slabs, model, rows, key, k=k)
    settings = {"method": Method.CLASSIFICATION, "k": k, "stream": stream}
    settings["rows"] = test_sha256(np.ascontiguousarray(rows))
    label = f"{model.n_classes} labels, k={k}{name}"
    given = one.values(label, slabs, len(rows), **settings)["log_likelihood"]
    shares = np.asarray(model.frequencies)
    return {"log_likelihood": given, "marginal": marginalise_classes(given, shares)}


_OWN, _OTHERS = 0, 1
"""Numbers folded into the seed's key, so that the two use different noise."""


def _other_data(subject: Subject, name: str, examples: int | None, data_dir: Path | None) -> Others:
    """Test examples of other data, prepared as those of the run are."""
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
    own = subject.dataset
    if dataset.shape != own.shape:
        raise UserError(
            f"examples of {dataset.name} have the shape {list(dataset.shape)}, those of {own.name} "
            f"{list(own.shape)}: only examples of the same shape can be scored"
        )
    if dataset.identity["test_sha256"] == own.identity["test_sha256"]:
        raise UserError(f"against {dataset.name}: these are the run's own data; name others")
    total = check_subject_split(dataset, "test", None)
    places = choose(total, min(examples or total, total), seed=subject.seed)
    return Others(dataset, np.asarray(subject_examples(dataset, "test", places)), places)


def _class_summary(scores: np.ndarray, labels: np.ndarray, shares: np.ndarray) -> Document:
    """Summary of the scores `[n, C]` of labelled examples, with standard errors."""
    log_p = label_log_probabilities(scores, shares)
    found = log_p.argmax(axis=1)
    own = np.arange(len(labels)), labels
    right = (found == labels).astype(np.float64)
    return {
        **summarise_means(
            log_likelihood=scores[own],  # of x given its own label
            accuracy=right,
            label_log_probability=log_p[own],
            marginal_log_likelihood=marginalise_classes(scores, shares),
        ),
        "confusion": confusion_matrix(labels, found, len(shares)).tolist(),
    }


def _about(others: Others | None) -> Document:
    """The facts about the other data, for a record."""
    if others is None:
        return {"others": None}
    return {
        "others": others.dataset.name,
        "others_n": len(others.data),
        "others_subset": len(others.data) < len(others.dataset.test),
        "others_data": others.dataset.identity,
        "others_examples_sha256": test_sha256(np.ascontiguousarray(others.data)),
        "caution": CAUTION,
    }
