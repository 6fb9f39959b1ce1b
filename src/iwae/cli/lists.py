"""`iwae objectives`, `presets` and `data`: list what is available."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Literal

import tyro

from iwae.cli import parsing
from iwae.config.presets import PRESETS, matching
from iwae.errors import UserError
from iwae.objectives.declaration import GRADIENTS, MODIFIERS, NOT_THROUGH_FEW, OBJECTIVES


@dataclasses.dataclass(frozen=True)
class Objectives:
    """List the objectives and their gradient estimators."""

    pattern: tyro.conf.Positional[str] = "*"
    """Only those whose names match, e.g. '*iwae'."""


def objectives_command(arguments: Sequence[str]) -> int:
    """`iwae objectives`."""
    options = parsing.parse(Objectives, "objectives", arguments)
    for name in parsing.matching(OBJECTIVES, options.pattern, "objective"):
        entry = OBJECTIVES[name]
        print(f"{name:15} {entry.formula}")
        print(f"{'':15} bounds {entry.bounds}; {entry.source}")
        needed = [f"--{o.replace('_', '-')}" for o in ("k", *entry.options)]
        print(f"{'':15} gradients {', '.join(entry.gradients)}; options {' '.join(needed)}")
    print("\ngradient estimators (a_i, h_i: first and second derivatives of the bound in log w_i)")
    for name, (description, unbiased, source) in GRADIENTS.items():
        print(f"{name:15} {description}; unbiased for {unbiased}; {source}")
    print("\nmodified log weights in training, with any objective but rws")
    for name, (description, fits, source) in MODIFIERS.items():
        option = f"--{name.replace('_', '-')}"
        print(f"{option:15} {description}; with the gradients {', '.join(fits)}; {source}")
    print("\ngradients through a subset of the particles, with the same expectation")
    excluded = ", ".join(NOT_THROUGH_FEW)
    print(f"{'--backward':15} with any objective but {excluded}, and any gradient but gdreg")
    return 0


@dataclasses.dataclass(frozen=True)
class Presets:
    """List the published experiments that `iwae train --preset NAME` runs."""

    pattern: tyro.conf.Positional[str] = "*"
    """Only those whose names match, e.g. 'table1/mnist/*'."""


def presets_command(arguments: Sequence[str]) -> int:
    """`iwae presets`."""
    options = parsing.parse(Presets, "presets", arguments)
    for name in matching([options.pattern]):
        entry = PRESETS[name]
        published = "-" if entry.nll is None else f"{entry.nll:.2f}"
        active = "+".join(map(str, entry.active)) or "-"
        needs = f"; --init-from a run of {entry.needs}" if entry.needs else ""
        print(f"{name:36} NLL {published:>7}  active {active:>5}  {entry.source}{needs}")
    return 0


@dataclasses.dataclass(frozen=True)
class Data:
    """List, fetch or verify data sets."""

    action: Annotated[
        Literal["list", "fetch", "verify"],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="{list,fetch,verify}"),
    ]
    """List all data sets, fetch one, or verify its files."""
    name: tyro.conf.Positional[str | None] = None
    """Data set to fetch or verify."""
    data_dir: parsing.DataDir = None


def data_command(arguments: Sequence[str]) -> int:
    """`iwae data`."""
    from iwae.data import fetch, list_datasets, verify

    options = parsing.parse(Data, "data", arguments)
    if options.action == "list":
        if options.name is not None:
            raise UserError("iwae data list takes no name")
        for row in list_datasets(options.data_dir):
            sizes = "/".join(f"{size:,}" for size in row.sizes)
            print(f"{row.name:15} {sizes:>22}  {row.binarization:8} {row.description}")
            print(f"{'':15} {row.where or f'not found; get it with: iwae data fetch {row.name}'}")
        return 0
    if options.name is None:
        raise UserError(f"name the data set: iwae data {options.action} NAME")
    if options.action == "fetch":
        paths = fetch(options.name, options.data_dir)
        for path in paths:
            print(path)
        if not paths:
            print(f"{options.name} comes with iwae: there is nothing to fetch")
        return 0
    rows = verify(options.name, options.data_dir)
    for name, valid, description in rows:
        print(f"{'ok ' if valid else 'BAD'} {name}: {description}")
    return 0 if all(valid for _, valid, _ in rows) else parsing.FAILURE
