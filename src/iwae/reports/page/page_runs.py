"""The runs on the page: what it states about each, read from its folder."""

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from iwae.config.experiment import TrainConfig
from iwae.errors import UserError
from iwae.results.extrapolation import read_extrapolated_records
from iwae.results.reading import (
    BOUNDING,
    Estimate,
    Known,
    read_bounds,
    read_estimates,
    read_widest_estimates,
)
from iwae.results.schema import Record, Verdict
from iwae.runs.folder import folder_config
from iwae.runs.metrics import read_metrics
from iwae.runs.trained import trained_model_digests


class Run(NamedTuple):
    """A run on the page.

    Attributes:
        path: its folder.
        folder: its folder in commands on the page.
        name: its unique name on the page.
        config: its configuration.
        weights: which of its models, "final" or "best".
        bounds: bounds by name, each from the record with the most examples.
        records: records on the test set, of these weights and the present models.
        stale: whether there are also records of other models.
        others: the other weights, "final" or "best", that have records on the test set.
        trained: whether all models exist.
        metrics: the logged epochs.
    """

    path: Path
    folder: str
    name: str
    config: TrainConfig
    weights: str
    bounds: Mapping[str, Estimate]
    records: Sequence[Record]
    stale: bool
    others: set[str]
    trained: bool
    metrics: Sequence[Mapping[str, Any]]

    @property
    def test_sets(self) -> set[str]:
        """Digests of the test sets that the run was measured on."""
        return {str(record.test_sha256) for record in self.records}

    @property
    def best(self) -> Estimate | None:
        """The tightest bound."""
        return max(self.bounds.values(), key=lambda one: one.rank, default=None)

    def known(self) -> list[Known]:
        """The bounds of the present models, example by example."""
        found = read_bounds(self.path, split="test", weights=self.weights, pruned=False)
        ours = [record.digests for record in self.records]
        return [one for one in found if one.record.digests in ours]


def read_page_run(path: Path, folder: str, weights: str, name: str | None = None) -> Run:
    """Read the configuration, records and metrics of a run; its default name is its folder."""
    config = folder_config(path)
    all_weights = [
        record
        for _, record in read_extrapolated_records(path, BOUNDING)
        if record.split == "test" and not record.pruned
    ]
    records = [record for record in all_weights if record.weights == weights]
    digests = trained_model_digests(path, weights, config.replicates)
    ours = [one for one in records if digests is None or one.digests == digests]
    return Run(
        path,
        folder,
        name or folder,
        config,
        weights,
        read_widest_estimates(one for record in ours for one in read_estimates(record)),
        ours,
        len(ours) < len(records),
        {record.weights for record in all_weights} - {weights},
        digests is not None,
        read_metrics(path),
    )


def page_run_names(paths: Sequence[Path]) -> list[str]:
    """The names of the folders, each with as many parent folders as make it unique.

    A folder named by its seeds alone includes its parent, which names the experiment.

    Raises:
        UserError: if there are none, or one is named twice.
    """
    if not paths:
        raise UserError("there are no runs to report on: name the folder of at least one")
    resolved = [path.resolve() for path in paths]
    for number, path in enumerate(resolved):
        if path in resolved[:number]:
            raise UserError(f"{paths[number]} is named twice: name each run once")
    names = [
        "/".join(path.parts[-2:]) if re.fullmatch(r"seeds?-[\d-]+", path.name) else path.name
        for path in resolved
    ]
    for number, path in enumerate(resolved):
        marks = [i for i, part in enumerate(path.parts) if part.startswith("shortened-")]
        if marks:  # so that nobody mistakes it for a reproduction
            names[number] = "/".join(path.parts[marks[0] :])
    length = 1
    while len(set(names)) < len(names):
        length += 1
        names = [
            "/".join(path.parts[-length:]) if names.count(name) > 1 else name
            for path, name in zip(resolved, names, strict=True)
        ]
    return names


def page_run_annealing(run: Run) -> Estimate | None:
    """The tightest bound of a run, if it is by annealing."""
    best = run.best
    return best if best is not None and best.record.annealing is not None else None


def page_run_verdicts(bound: Estimate) -> list[Verdict]:
    """The verdicts of an annealing run, one for each seed."""
    return [one.verdict for one in bound.record.models if one.verdict is not None]


def page_run_khat_share(run: Run) -> tuple[Estimate, float] | None:
    """The bound with the most samples, and the share of examples whose k-hat is too large."""
    sampled = [one for one in run.bounds.values() if one.record.by_k]
    if not sampled:
        return None
    most = sampled[-1]
    shares = [
        row.pareto_k_unreliable
        for one in most.record.models
        for row in one.by_k
        if row.k == most.rank[1] and row.pareto_k_unreliable is not None
    ]
    return (most, sum(shares) / len(shares)) if shares else None


def page_runs_by_test_set(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The measured runs by the digest of their test set; a run may have several."""
    digests = dict.fromkeys(digest for run in runs for digest in sorted(run.test_sets))
    return {digest: [run for run in runs if digest in run.test_sets] for digest in digests}


def page_run_command(name: str, run: Run) -> str:
    """A command line for a run."""
    more = "" if run.weights == "final" else f" --weights {run.weights}"
    return f"iwae {name} {shlex.quote(run.folder)}{more}"
