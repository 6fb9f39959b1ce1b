"""The facts on the page, read from the folder of a run."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from iwae.config.experiment import TrainConfig
from iwae.errors import UserError
from iwae.results.completing import read_completed
from iwae.results.reading import BOUNDING, Estimate, Known, estimates_of, known_bounds, widest
from iwae.results.records import known_digests
from iwae.results.schema import Record
from iwae.runs.folder import run_config
from iwae.runs.metrics import read_metrics


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
        found = known_bounds(self.path, split="test", weights=self.weights, pruned=False)
        ours = [record.digests for record in self.records]
        return [one for one in found if one.record.digests in ours]


def read_run(path: Path, folder: str, weights: str, name: str | None = None) -> Run:
    """Read the configuration, records and metrics of a run; its default name is its folder."""
    config = run_config(path)
    all_weights = [
        record
        for _, record in read_completed(path, BOUNDING)
        if record.split == "test" and not record.pruned
    ]
    records = [record for record in all_weights if record.weights == weights]
    digests = known_digests(path, weights, config.replicates)
    ours = [one for one in records if digests is None or one.digests == digests]
    return Run(
        path,
        folder,
        name or folder,
        config,
        weights,
        widest(one for record in ours for one in estimates_of(record)),
        ours,
        len(ours) < len(records),
        {record.weights for record in all_weights} - {weights},
        digests is not None,
        read_metrics(path),
    )


def name_runs(paths: Sequence[Path]) -> list[str]:
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
