"""The card of a shared model: what it is and how good, written from records."""

import json
import logging
import shlex
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FunctionLoader, StrictUndefined

from iwae.config.experiment import TrainConfig, make_config, stages_text
from iwae.data.kinds import is_discrete
from iwae.models.conditional import ConditionalVAE, Model, without_labels
from iwae.objectives.declaration import OBJECTIVES
from iwae.reports.gallery import are_pictures, layout_of
from iwae.results.ordering import read_records
from iwae.results.records import model_sha256
from iwae.results.text import each_model

log = logging.getLogger(__name__)

SAMPLED, ANNEALED = "importance sampling", "annealed importance sampling"
BIDIRECTIONAL, CLASSIFICATION = "bidirectional Monte Carlo", "classification"

HUB_DATASETS = {"mnist": "ylecun/mnist", "fashion": "zalando-datasets/fashion_mnist"}
"""Where the hub has the data that some names stand for."""


class Estimate(NamedTuple):
    """A number of a record.

    Attributes:
        name: such as L_5000 or AIS_500.
        rank: estimates of higher rank are tighter.
        value: mean over examples, nats; None if it is not finite.
        stderr: of the mean, from the choice of examples.
        bits: bits per dimension and their standard error, where the data are levels.
        n: examples.
        subset: whether they are not all of the test set.
        meaning: what kind of number it is.
        record: all the rest.
        of: the part of the record that is about this model.
    """

    name: str
    rank: tuple[bool, int]
    value: float | None
    stderr: float | None
    bits: tuple[float, float | None] | None
    n: int
    subset: bool
    meaning: str
    record: Mapping[str, Any]
    of: Mapping[str, Any]


def model_card(
    run: Path,
    model: Model,
    about: Mapping[str, Any],
    weights: str,
    replicate: int,
    licence: str | None,
) -> str:
    """The card as Markdown, with the front matter that the Hugging Face hub reads.

    Args:
        run: the folder with the records.
        about: what goes with the model: its data, its configuration, its epoch.
        weights: "final" or "best".
        replicate: which of the run's models.
        licence: of the model; None if it is not known.
    """
    data = about.get("dataset", {})
    config = make_config(about["config"], "the model")
    final = config.final()
    layout, vae = layout_of(model, about), without_labels(model)
    found = list(_measured(run, weights, replicate))
    options = ["--weights", weights] if weights != "final" else []
    return _template().render(
        title=f"{data.get('name', run.name)}: {final.objective}, k = {final.k}",
        name=data.get("name", "unknown"),
        data=data,
        hub_dataset=HUB_DATASETS.get(data.get("name", "")),
        pictures=are_pictures(layout),
        about=about,
        config=config,
        final=final,
        stages=stages_text(config.stages or ()),
        model=vae,
        labels=_labels(model, layout.classes) if isinstance(model, ConditionalVAE) else None,
        objective=OBJECTIVES[final.objective],
        gradient=_gradient(final),
        discrete=is_discrete(vae.kind),
        estimates=_estimates(found),
        gaps=[_gap(one, record) for record, one in found if record["method"] == BIDIRECTIONAL],
        classified=_classified(found),
        truth=_first(found, "true_log_likelihood"),
        active=_active_units(found),
        licence=licence,
        weights={"final": "last", "best": "best"}[weights],
        measure=shlex.join(["iwae", "evaluate", "RUN", *options]),
        classify=shlex.join(["iwae", "classify", "RUN", *options]),
        sha256=model_sha256(run, weights, replicate),
        version=version("iwae"),
    )


class Labels(NamedTuple):
    """What a card says of labels.

    Attributes:
        named: the first ones, `NAMED` at most, with their shares of the training data in words.
        total: how many there are.
        prior: what p(z) is, given a label.
    """

    named: Sequence[tuple[str, str]]
    total: int
    prior: str


NAMED = 50
"""Labels that a card names."""


def _labels(model: ConditionalVAE, names: Sequence[str]) -> Labels:
    shares = [f"{share:.1%}" for share in model.frequencies.tolist()]
    named = list(zip(names, shares, strict=True))[:NAMED]
    learned = model.tops is not None
    prior = "a Gaussian for each label, learned" if learned else "N(0, I) for all labels"
    return Labels(named, model.n_classes, prior)


_NEEDED = {
    SAMPLED: {"n", "subset", "by_k"},
    ANNEALED: {"n", "subset", "by_temperatures", "annealing", "verdict"},
    BIDIRECTIONAL: {"n", "gap", "gap_stderr"},
    CLASSIFICATION: {"n", "k", "accuracy", "accuracy_stderr"},
}
"""What a record of each method has to have."""

Found = tuple[Mapping[str, Any], Mapping[str, Any]]
"""A record, and the part of it that is about one model."""


def _measured(run: Path, weights: str, replicate: int) -> Iterator[Found]:
    """What was measured of the model that is there now, without records that are damaged."""
    digest = model_sha256(run, weights, replicate)
    for path, record in read_records(run, tuple(_NEEDED)):
        wanted = "simulated" if record["method"] == BIDIRECTIONAL else "test"
        if (record["split"], record["weights"], record["pruned"]) != (wanted, weights, False):
            continue
        each = each_model(record)
        one = each[replicate] if replicate < len(each) else {}
        if one.get("model_sha256") != digest:
            log.warning("%s is of other weights than these and is left out", path)
        elif missing := _NEEDED[record["method"]] - {*record, *one}:
            log.warning("%s is no record (no %s) and is left out", path, min(missing))
        else:
            yield record, one


def _estimates(found: list[Found]) -> list[Estimate]:
    """The estimates, loosest first; of two by one name that of the most examples."""
    chosen: dict[str, Estimate] = {}
    for record, one in found:
        for estimate in _rows(record, one):
            if estimate.name not in chosen or estimate.n >= chosen[estimate.name].n:
                chosen[estimate.name] = estimate
    return sorted(chosen.values(), key=lambda estimate: estimate.rank)


def _rows(record: Mapping[str, Any], one: Mapping[str, Any]) -> Iterator[Estimate]:
    for row in one.get("by_k", ()):
        k = row["k"]
        words = "the ELBO, a lower bound" if k == 1 else f"lower bound by {k:,} importance samples"
        yield _estimate(f"L_{k}", (False, k), row, words, record, one)
    for row in one.get("by_temperatures", ())[-1:]:  # the others are for the verdict
        length, chains = row["temperatures"], record["annealing"]["chains"]
        words = (
            f"lower bound by annealed importance sampling, {length:,} temperatures and {chains} "
            f"chains; {one['verdict']['word']}"
        )
        yield _estimate(f"AIS_{length}", (True, length), row, words, record, one)


def _estimate(
    name: str,
    rank: tuple[bool, int],
    row: Mapping[str, Any],
    meaning: str,
    record: Mapping[str, Any],
    one: Mapping[str, Any],
) -> Estimate:
    bits = row.get("bits_per_dimension")
    return Estimate(
        name,
        rank,
        row["log_likelihood"],
        row["stderr"],
        None if bits is None else (bits, row["bits_per_dimension_stderr"]),
        record["n"],
        record["subset"] is not None,
        meaning,
        record,
        one,
    )


def _gap(one: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any]:
    """How far annealing can be off on examples that the model made."""
    return {"n": record["n"], "gap": one["gap"], "gap_stderr": one["gap_stderr"]}


def _classified(found: list[Found]) -> dict[str, Any] | None:
    """How often the model names the label, on the most examples and with the most samples."""
    each = [
        {**{name: one[name] for name in ("accuracy", "accuracy_stderr", "k")}, "n": record["n"]}
        for record, one in found
        if record["method"] == CLASSIFICATION
    ]
    return max(each, key=lambda one: (one["n"], one["k"]), default=None)


def _first(found: list[Found], name: str) -> Any:
    """What the record of the most examples says under a name, if it says it."""
    named = [record for record, _ in found if record.get(name) is not None]
    return max(named, key=lambda record: record["n"])[name] if named else None


def _active_units(found: list[Found]) -> str | None:
    """Counts per layer, of the most examples that they were counted on."""
    counted = [(record["n"], one["active_units"]) for record, one in found if "active_units" in one]
    return "+".join(map(str, max(counted)[1])) if counted else None


def _gradient(config: TrainConfig) -> str:
    return config.gradient or OBJECTIVES[config.objective].gradients[0]


# --- the template ---------------------------------------------------------------------------


def _template() -> Any:
    environment = Environment(  # noqa: S701 - Markdown is no HTML; names from outside are quoted
        loader=FunctionLoader(lambda name: (files("iwae.reports") / name).read_text("utf-8")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"quoted": _quoted, "code": _code, "pm": _with_error, "signed": _number}
    return environment.get_template("card.md.jinja")


def _quoted(value: Any) -> str:
    """A string of YAML, which JSON's is."""
    return json.dumps(str(value))


def _code(value: Any) -> str:
    """A name from outside as inline code, which no name can leave."""
    return "`" + " ".join(str(value).replace("`", "'").split()).replace("|", "/") + "`"


def _number(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def _with_error(value: float | None, error: float | None, digits: int = 3) -> str:
    """A mean and its standard error, as far as they exist."""
    if value is None:
        return "not finite"
    return _number(value, digits) + ("" if error is None else f" ± {error:.{digits}f}")
