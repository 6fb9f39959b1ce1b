"""The card of a shared model: what it is and how good, written from records."""

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
from iwae.data.kinds import is_discrete
from iwae.models.conditional import ConditionalVAE, Model, without_labels
from iwae.objectives.declaration import OBJECTIVES
from iwae.reports.estimates import tighter_gap
from iwae.reports.figures.style import minus
from iwae.reports.gallery import are_pictures, layout_of
from iwae.results.completing import read_completed
from iwae.results.reading import Estimate, estimates_of, widest
from iwae.results.records import model_sha256
from iwae.results.schema import Method, Record
from iwae.results.text import error_words, plus_minus

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
        gradient=final.declaration().gradient,
        discrete=is_discrete(vae.kind),
        estimates=list(widest(_estimates(found)).values()),
        gaps=[one for one in found if one.method == Method.BIDIRECTIONAL],
        classified=_most(found, "accuracy", "k"),
        truth=_most(found, "true_log_likelihood"),
        active=_most(found, "active_units", "active_units"),
        licence=licence,
        weights={"final": "last", "best": "best"}[weights],
        measure=shlex.join(["iwae", "evaluate", "RUN", *options]),
        classify=shlex.join(["iwae", "classify", "RUN", *options]),
        sha256=model_sha256(run, weights, replicate),
        version=version("iwae"),
    )


NAMED = 50
"""Labels that a card names."""


def _labels(model: ConditionalVAE, names: Sequence[str]) -> dict[str, Any]:
    """The first labels with their shares of the training data, their number, and p(z) given one."""
    shares = [f"{share:.1%}" for share in model.frequencies.tolist()]
    named = list(zip(names, shares, strict=True))[:NAMED]
    words = {"normal": "N(0, I) for all labels", "vamp": "a VampPrior that sees the label"}
    prior = words.get(model.vae.prior_name.name, f"{model.vae.prior_name} for all labels")
    prior = prior if model.tops is None else "a Gaussian for each label, learned"
    if model.vae.latents[-1].is_discrete:
        prior = f"learned, {'the same' if model.tops is None else 'separate'} for all labels"
    return {"named": named, "total": model.n_classes, "prior": prior}


_TOLD = (Method.IMPORTANCE, Method.ANNEALED, Method.BIDIRECTIONAL, Method.CLASSIFICATION)
"""The methods that a card tells of."""


def _measured(run: Path, weights: str, replicate: int) -> Iterator[Record]:
    """The records of the model that is there now; damaged ones are omitted."""
    digest = model_sha256(run, weights, replicate)
    for path, record in read_completed(run, _TOLD):
        wanted = "simulated" if record.method == Method.BIDIRECTIONAL else "test"
        if (record.split, record.weights, record.pruned) != (wanted, weights, False):
            continue
        if record.digests[replicate : replicate + 1] == [digest]:
            yield record.only(replicate)
        else:
            log.warning("%s is of other weights than these and is omitted", path)


def _estimates(found: list[Record]) -> Iterator[Estimate]:
    """The estimates, loosest first; of annealing the longest, as the other is for the verdict."""
    for one in found:
        bounds = [estimate for estimate in estimates_of(one) if estimate.is_bound]
        yield from bounds[-1:] if one.method == Method.ANNEALED else bounds


def _meaning(one: Estimate) -> str:
    """The kind of number that an estimate is."""
    budget = one.rank[1]
    how, found = one.record.annealing, one.record.verdict
    if how is not None and found is not None:
        return (
            f"lower bound by annealed importance sampling, {budget:,} temperatures and "
            f"{how.chains} chains; {found.word}"
        )
    if budget == 1:
        return "the ELBO, a lower bound"
    return f"lower bound by {budget:,} importance samples"


def _most(found: list[Record], name: str, *ties: str) -> Record | None:
    """The record of the most examples that has a value by this name; `ties` decide by size."""
    having = [one for one in found if getattr(one, name) not in (None, ())]
    return max(having, key=lambda one: [getattr(one, each) for each in ("n", *ties)], default=None)


# --- the template ---------------------------------------------------------------------------


def _template() -> Any:
    environment = Environment(  # noqa: S701 - Markdown is no HTML; names from outside are quoted
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
        "errors": lambda one: "; ".join(error_words(one.row)),
        "pm": lambda mean, error: minus(plus_minus(mean, error)),
        "gap": lambda one: minus(plus_minus(*one.mean(tighter_gap([one])))),
    }
    return environment.get_template("card.md.jinja")


def _quoted(value: Any) -> str:
    """A string of YAML, which JSON's is."""
    return json.dumps(str(value))


def _code(value: Any) -> str:
    """A name from outside as inline code, which no name can leave."""
    return "`" + " ".join(str(value).replace("`", "'").split()).replace("|", "/") + "`"
