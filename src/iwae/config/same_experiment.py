"""Whether a run is the experiment of a preset, and the published number if so."""

import json
from collections.abc import Iterator, Mapping, Set
from functools import lru_cache
from typing import Any

from iwae.config.experiment import TrainConfig, make_config
from iwae.config.presets import PRESETS, Preset
from iwae.data import DATASETS

_PLACES = {"dataset", "init_from", "log_every", "layers"}
"""Settings that are locations, logging intervals, or implied by other settings."""

RECIPE = {"stages", "gradient", "backward", "batch_size", "optimizer", "learning_rate", "schedule"}
"""Settings that a fast recipe replaces."""

LENGTH = {"epochs", "seed", "replicates", "validate_every", "data_seed"}
"""Settings in which a run may differ from a preset and still be the same experiment."""


def differing_settings(wanted: TrainConfig, found: TrainConfig) -> list[str]:
    """The settings of a run that differ from the wanted ones.

    A setting left to the data is that of a known data set; for a file, it may have any value.
    """
    expected, actual = dict(_resolved(wanted)), _resolved(found)
    expected |= {name: value for name, value in _left_to_data(wanted) if actual[name] is not None}
    known = {name: value for name, value in expected.items() if value is not None}
    return [name for name, value in known.items() if actual[name] != value]


def _left_to_data(config: TrainConfig) -> Iterator[tuple[str, Any]]:
    """The settings that a known data set decides."""
    data = DATASETS.get(config.dataset)
    if data is None:
        return
    if config.validation is None:
        yield "validation", data.validation
    if config.binarization is None and config.observation is None:  # one follows from the other
        yield from (("binarization", data.binarization), ("observation", data.observation))


@lru_cache(512)
def _resolved(config: TrainConfig) -> dict[str, Any]:
    """All settings except `_PLACES`, with the defaults of the objective filled in."""
    latent_sizes, hidden_sizes = config.sizes()
    values = {**config.model_dump(), "latent_sizes": latent_sizes, "hidden_sizes": hidden_sizes}
    values["latents"] = tuple(map(str, config.kinds()))
    declared = config.final().declaration()._asdict()
    values |= {name: value for name, value in declared.items() if name in values}
    if config.k * (config.m or 1) == 1 and config.objective in ("vae", "elbo", "iwae"):
        values["objective"] = "elbo"  # with one sample these bounds are the same
    return {name: value for name, value in values.items() if name not in _PLACES}


@lru_cache(512)
def _parsed(values: str) -> TrainConfig:
    """A configuration from JSON, cached because a run is compared with every preset."""
    return make_config(json.loads(values), "the configuration of a run")


def same_cell_experiment(entry: Preset, config: Mapping[str, Any]) -> bool:
    """Whether a run is the experiment of a cell.

    A fast cell may be trained in any stages to the same model and objective, so that a number stays
    when its recipe is improved.
    """
    in_stages = entry.is_fast and config.get("stages") is not None
    return same_experiment(entry, config, LENGTH | (RECIPE if in_stages else set()))


def same_experiment(entry: Preset, config: Mapping[str, Any], free: Set[str] = LENGTH) -> bool:
    """Whether a run's resolved configuration is that of a preset but for the `free` settings."""
    published, found = (
        _parsed(json.dumps(values, sort_keys=True, default=str))
        for values in (entry.values, config)
    )
    return (
        found.dataset == published.dataset
        and (found.init_from is None) == (entry.needs is None)
        and found.patience is None
        and not set(differing_settings(published, found)) - free
    )


def published_nll(config: dict[str, Any]) -> str:
    """The published NLL of an experiment, its active units and epochs; "-" if there is none."""
    for entry in PRESETS.values():
        if entry.nll is not None and same_cell_experiment(entry, config):
            notes = [f"{'+'.join(map(str, entry.active))} active"] if entry.active else []
            epochs = f"{entry.config().epochs:,} epochs"
            notes.append("not as published" if entry.is_fast else epochs)
            return f"{entry.nll:.2f} ({', '.join(notes)})"
    return "-"
