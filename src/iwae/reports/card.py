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
from iwae.results.reading import Estimate, Method, each_model, estimates_of, read_records, widest
from iwae.results.records import model_sha256

log = logging.getLogger(__name__)

HUB_DATASETS = {"mnist": "ylecun/mnist", "fashion": "zalando-datasets/fashion_mnist"}
"""Where the hub has the data that some names stand for."""


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
        estimates=list(widest(_estimates(found)).values()),
        gaps=[_gap(*each) for each in found if each[0]["method"] == Method.BIDIRECTIONAL],
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


_TOLD = (Method.IMPORTANCE, Method.ANNEALED, Method.BIDIRECTIONAL, Method.CLASSIFICATION)
"""The methods that a card tells of."""

Found = tuple[Mapping[str, Any], Mapping[str, Any]]
"""A record, and the part of it that is about one model."""


def _measured(run: Path, weights: str, replicate: int) -> Iterator[Found]:
    """What was measured of the model that is there now, without records that are damaged."""
    digest = model_sha256(run, weights, replicate)
    for path, record in read_records(run, _TOLD):
        wanted = "simulated" if record["method"] == Method.BIDIRECTIONAL else "test"
        if (record["split"], record["weights"], record["pruned"]) != (wanted, weights, False):
            continue
        each = each_model(record)
        one = each[replicate] if replicate < len(each) else {}
        if one.get("model_sha256") != digest:
            log.warning("%s is of other weights than these and is left out", path)
        else:
            yield record, one


def _estimates(found: list[Found]) -> Iterator[Estimate]:
    """The estimates, loosest first; of annealing the longest, as the other is for the verdict."""
    for record, one in found:
        of_record = list(estimates_of(record, one))
        yield from of_record[-1:] if record["method"] == Method.ANNEALED else of_record


def _meaning(one: Estimate) -> str:
    """The kind of number that an estimate is."""
    budget = one.rank[1]
    if one.record["method"] == Method.ANNEALED:
        return (
            f"lower bound by annealed importance sampling, {budget:,} temperatures and "
            f"{one.record['annealing']['chains']} chains; {one.part['verdict']['word']}"
        )
    if budget == 1:
        return "the ELBO, a lower bound"
    return f"lower bound by {budget:,} importance samples"


def _gap(record: Mapping[str, Any], one: Mapping[str, Any]) -> dict[str, Any]:
    """How far annealing can be off on examples that the model made."""
    return {"n": record["n"], "gap": one["gap"], "gap_stderr": one["gap_stderr"]}


def _classified(found: list[Found]) -> dict[str, Any] | None:
    """How often the model names the label, on the most examples and with the most samples."""
    each = [
        {**{name: one[name] for name in ("accuracy", "accuracy_stderr", "k")}, "n": record["n"]}
        for record, one in found
        if record["method"] == Method.CLASSIFICATION
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
    environment.filters |= {"quoted": _quoted, "code": _code, "pm": _with_error}
    environment.filters |= {"signed": _number, "meaning": _meaning}
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
