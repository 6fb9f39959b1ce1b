"""The card of a shared model: its description and its results, from records."""

import json
import logging
import shlex
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined

from iwae.config.experiment import make_config
from iwae.config.stages import stages_text
from iwae.data.kinds import is_discrete_kind
from iwae.models.conditional import ConditionalVAE, Model, unconditional_model
from iwae.objectives.declaration import OBJECTIVES
from iwae.reports.gallery import gallery_layout, gallery_shows_pictures
from iwae.results.extrapolation import read_extrapolated_records
from iwae.results.formatting import format_errors, format_minus, plus_minus
from iwae.results.reading import Estimate, read_estimates, read_widest_estimates
from iwae.results.schema import Method, Record, tighter_gap_field
from iwae.runs.trained import trained_model_sha256

log = logging.getLogger(__name__)

HUB_DATASETS = {"mnist": "ylecun/mnist", "fashion": "zalando-datasets/fashion_mnist"}
"""Name of a data set -> its repository on the hub."""


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
        run: folder of the run, with its records.
        model: the model.
        about: its stored description: data, configuration, epoch.
        weights: "final" or "best".
        replicate: index of the model in the run.
        licence: licence of the model; None if it is unknown.
    """
    data = about.get("dataset", {})
    config = make_config(about["config"], "the model")
    final = config.final()
    layout, vae = gallery_layout(model, about), unconditional_model(model)
    found = list(_measured(run, weights, replicate))
    options = ["--weights", weights] if weights != "final" else []
    return _template().render(
        title=f"{data.get('name', run.name)}: {final.objective}, k = {final.k}",
        name=data.get("name", "unknown"),
        data=data,
        hub_dataset=HUB_DATASETS.get(data.get("name", "")),
        pictures=gallery_shows_pictures(layout),
        about=about,
        config=config,
        final=final,
        stages=stages_text(config.stages or ()),
        model=vae,
        labels=_label_facts(model, layout.classes) if isinstance(model, ConditionalVAE) else None,
        objective=OBJECTIVES[final.objective],
        gradient=final.declaration().gradient,
        discrete=is_discrete_kind(vae.kind),
        estimates=list(read_widest_estimates(_estimates(found)).values()),
        gaps=[one for one in found if one.method == Method.BIDIRECTIONAL],
        classified=_widest_with(found, "accuracy", "k"),
        truth=_widest_with(found, "true_log_likelihood"),
        active=_widest_with(found, "active_units", "active_units"),
        licence=licence,
        weights={"final": "last", "best": "best"}[weights],
        measure=shlex.join(["iwae", "evaluate", "RUN", *options]),
        classify=shlex.join(["iwae", "classify", "RUN", *options]),
        sha256=trained_model_sha256(run, weights, replicate),
        version=version("iwae"),
    )


NAMED = 50
"""Maximum number of labels that a card names."""


def _label_facts(model: ConditionalVAE, names: Sequence[str]) -> dict[str, Any]:
    """The first labels with their shares of the training data, the number of labels, and p(z|y)."""
    shares = [f"{share:.1%}" for share in model.frequencies.tolist()]
    named = list(zip(names, shares, strict=True))[:NAMED]
    if model.vae.latents[-1].is_discrete:
        prior = f"learned, {'the same' if model.tops is None else 'separate'} for all labels"
    elif model.tops is not None:
        prior = "a Gaussian for each label, learned"
    else:
        known = {"normal": "N(0, I) for all labels", "vamp": "a VampPrior that sees the label"}
        prior = known.get(model.vae.prior_name.name, f"{model.vae.prior_name} for all labels")
    return {"named": named, "total": model.n_classes, "prior": prior}


_METHODS = (Method.IMPORTANCE, Method.ANNEALED, Method.BIDIRECTIONAL, Method.CLASSIFICATION)
"""The methods whose results a card states."""


def _measured(run: Path, weights: str, replicate: int) -> Iterator[Record]:
    """The records of the present model, without damaged ones."""
    digest = trained_model_sha256(run, weights, replicate)
    for path, record in read_extrapolated_records(run, _METHODS):
        wanted = "simulated" if record.method == Method.BIDIRECTIONAL else "test"
        if (record.split, record.weights, record.pruned) != (wanted, weights, False):
            continue
        if record.digests[replicate : replicate + 1] == [digest]:
            yield record.only(replicate)
        else:
            log.warning("%s is of other weights than these and is omitted", path)


def _estimates(found: list[Record]) -> Iterator[Estimate]:
    """The bounds; of annealing the longer run alone, as the shorter serves its verdict."""
    for record in found:
        bounds = [estimate for estimate in read_estimates(record) if estimate.is_bound]
        yield from bounds[-1:] if record.method == Method.ANNEALED else bounds


def _meaning(one: Estimate) -> str:
    """The definition of an estimate, in words."""
    budget = one.rank[1]
    annealing, verdict = one.record.annealing, one.record.verdict
    if annealing is not None and verdict is not None:
        return (
            f"lower bound by annealed importance sampling, {budget:,} temperatures and "
            f"{annealing.chains} chains; {verdict.word}"
        )
    if budget == 1:
        return "the ELBO, a lower bound"
    return f"lower bound by {budget:,} importance samples"


def _widest_with(found: list[Record], name: str, *ties: str) -> Record | None:
    """The record with the most examples that has the field; the largest `ties` break ties."""
    known = [record for record in found if getattr(record, name) not in (None, ())]
    return max(known, key=lambda one: [getattr(one, field) for field in ("n", *ties)], default=None)


# --- the template ---------------------------------------------------------------------------


def _template() -> Any:
    environment = Environment(  # noqa: S701 - the card is Markdown; external names are quoted
        loader=FunctionLoader(lambda name: (files("iwae.reports") / name).read_text("utf-8")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "quoted": _quoted,
        "code": _code,
        "meaning": _meaning,
        "errors": lambda one: "; ".join(format_errors(one.row)),
        "pm": lambda mean, error: format_minus(plus_minus(mean, error)),
        "gap": lambda one: format_minus(plus_minus(*one.mean(tighter_gap_field([one])))),
    }
    return environment.get_template("card.md.jinja")


def _quoted(value: Any) -> str:
    """A YAML string: JSON strings are valid YAML."""
    return json.dumps(str(value))


def _code(value: Any) -> str:
    """An external name as inline code that it cannot break out of."""
    return "`" + " ".join(str(value).replace("`", "'").split()).replace("|", "/") + "`"
