"""A conditional model as a classifier, and as a judge of what is none of its data, for a record."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

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
from iwae.evaluation.examples import gather
from iwae.models.conditional import ConditionalVAE
from iwae.results.records import (
    Record,
    Subject,
    Track,
    chosen_examples,
    make_subject,
    mean_and_error,
    number,
    origin,
    record_name,
    run_config,
    shared_record,
    untracked,
    write_record,
)
from iwae.results.unfinished import Slab, Unfinished

CLASSIFICATION = "classification"

CAUTION = (
    "likelihoods alone are a weak test of whether examples are of the same kind: other, simpler "
    "data can have higher ones (Nalisnick et al. 2019)"
)
"""What goes with every number that compares likelihoods of different data."""


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
    run: Path,
    *,
    split: str = "test",
    weights: str = "final",
    k: int = 100,
    against: str | None = None,
    examples: int | None = None,
    seed: int = 0,
    batch_size: int | None = None,
    data_dir: Path | None = None,
    track: Track = untracked,
) -> Record:
    """Every replicate of a conditional run as a classifier, by the likelihood of every label.

    L_k of log p(x|y) gives log p(y|x) by Bayes' rule, with p(y) of the training data, and
    log p(x) = log sum_y p(y) p(x|y). Writes `RUN/evaluations/NAME.json` (the record, which is also
    returned) and `NAME.npz`: for R replicates, n examples and C labels `index [n]` in the split,
    `label [n]`, `log_likelihood [R, n, C]` of log p(x|y) and `marginal [R, n]` of log p(x), nats;
    with `against`, the same of the others as `others_index`, `others_log_likelihood` and
    `others_marginal`. What a stopped call had done is kept, and the same call goes on from there.

    Args:
        k: importance samples for each example and label.
        against: other data, a name or a file, of examples of the same shape. The record then says
            how often log p(x) of an example is above that of one of their test examples (AUROC).
        examples: a seeded random subset of the split, and of the other data, of at most so many.
        split, weights, seed, batch_size, track: as for `evaluate_run`.

    Raises:
        UserError: if the run, its weights or data are not there, it is not conditional, or the
            other data have examples of another shape or kind.
        FloatingPointError: if a number is nan.
    """
    run = Path(run)
    if not run_config(run).conditional:
        raise UserError(f"{run} knows no labels: train with --conditional to classify")
    subject = make_subject(
        run,
        split=split,
        weights=weights,
        examples=examples,
        seed=seed,
        labels=True,
        data_dir=data_dir,
    )
    others = None if against is None else _others(subject, against, examples, data_dir)
    unfinished = Unfinished(run)
    each, found = zip(
        *(
            _measure(subject, replicate, model, others, k, batch_size, unfinished, track)
            for replicate, model in subject.models()
        ),
        strict=True,
    )
    record: Record = {
        **(each[0] if len(each) == 1 else {"replicates": list(each)}),
        **shared_record(subject, CLASSIFICATION),
        "k": k,
        **_about(others),
    }
    arrays = {name: np.stack([values[name] for values in found]) for name in found[0]}
    arrays |= {"index": subject.places, "label": _labels(subject)}
    words = ["classify", f"k{k}"]
    if others is not None:
        arrays["others_index"] = others.places
        words += ["against", _file_word(others.name)]
    write_record(run, record_name(subject, *words), record, arrays)
    unfinished.forget()
    return record


def _labels(subject: Subject) -> np.ndarray:
    """The label of each example, `[n]`."""
    return subject.dataset.labels(subject.split)[subject.places]


def _measure(
    subject: Subject,
    replicate: int,
    model: ConditionalVAE,
    others: Others | None,
    k: int,
    batch_size: int | None,
    unfinished: Unfinished,
    track: Track,
) -> tuple[Record, dict[str, np.ndarray]]:
    """One replicate: what a record says of it, and the values behind that."""
    begin, shares = time.perf_counter(), np.asarray(model.frequencies)

    def score(rows: np.ndarray, stream: int, name: str) -> dict[str, np.ndarray]:
        slabs = _scores(subject, replicate, model, rows, stream, k, batch_size, unfinished)
        label = f"replicate {replicate}, {model.n_classes} labels, k={k}{name}"
        given = gather(iter(track(slabs, len(rows), label)))["log_likelihood"]
        return {"log_likelihood": given, "marginal": marginal_log_likelihoods(given, shares)}

    own = score(subject.data[:, : subject.dataset.n_values], _OWN, "")
    record = {"k": k, **_summary(own["log_likelihood"], _labels(subject), shares)}
    if others is not None:
        theirs = score(others.data, _OTHERS, f", {others.name}")
        record |= _separation(own["marginal"], theirs["marginal"])
        own |= {f"others_{name}": values for name, values in theirs.items()}
    record |= {"seconds": time.perf_counter() - begin, **origin(subject, replicate)}
    return record, own


_OWN, _OTHERS = 0, 1
"""What the seed's key is folded with, so that no noise is used twice."""


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
    return Others(dataset.name, data, places, count is not None, dataset.identity)


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


def _scores(
    subject: Subject,
    replicate: int,
    model: ConditionalVAE,
    rows: np.ndarray,
    stream: int,
    k: int,
    batch_size: int | None,
    unfinished: Unfinished,
) -> Iterator[Slab]:
    """log p(x|y) of rows under every label by one replicate, `[n, C]` nats, slab by slab."""
    key = jax.random.fold_in(jax.random.key(subject.seed), stream)

    def slabs(first: int) -> Iterator[Slab]:
        return class_log_likelihood_slabs(model, rows, key, k=k, batch_size=batch_size, first=first)

    examples = test_sha256(np.ascontiguousarray(rows))
    settings = subject.settings(replicate, method=CLASSIFICATION, k=k, rows=examples)
    return unfinished.slabs({**settings, "stream": stream}, slabs)


def _summary(scores: np.ndarray, labels: np.ndarray, shares: np.ndarray) -> Record:
    """What the scores `[n, C]` of examples with these labels say, with standard errors."""
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


def _separation(own: np.ndarray, others: np.ndarray) -> Record:
    """How far log p(x) tells examples from those of other data."""
    area, error = auroc(own, others)
    return {
        "auroc": area,
        "auroc_stderr": number(error),
        **_named("others_marginal_log_likelihood", others),
    }


def _named(name: str, values: np.ndarray) -> Record:
    mean, error = mean_and_error(values)
    return {name: mean, f"{name}_stderr": error}


def _about(others: Others | None) -> Record:
    """What a record says of the other data."""
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
