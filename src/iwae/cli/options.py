"""The help of options, by tyro: groups, optional values without `None`, defaults in words."""

import dataclasses
import re
from collections.abc import Callable, Collection
from functools import reduce
from itertools import pairwise
from operator import or_
from typing import Annotated, Any, get_args

import tyro
from tyro.constructors import (
    ConstructorRegistry,
    PrimitiveConstructorSpec,
    PrimitiveTypeInfo,
    StructConstructorSpec,
    StructFieldSpec,
    StructTypeInfo,
)

from iwae.config.defaults import OWN_DEFAULTS
from iwae.config.experiment import TrainConfig

GROUPS = {
    "data": "dataset",
    "model": "layers",
    "objective": "objective",
    "optimisation": "epochs",
    "run": "seed",
}
"""Group of the configuration's options -> its first option, in the order of `TrainConfig`.

A new field joins the group of the field before it."""

_SEEN = object()  # marks a type to which our rule was applied: tyro's own rule comes next


def option_rules(hidden: Collection[str] = ()) -> ConstructorRegistry:
    """tyro's rules for types, extended by those of this module.

    Args:
        hidden: options to omit from the help.
    """
    rules = ConstructorRegistry()
    rules.primitive_rule(_optional)
    rules.struct_rule(_in_words(hidden))
    rules.struct_rule(_grouped)
    return rules


def _optional(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """The rule of optional values: the help lists no `None`, but the parser accepts it."""
    kinds = get_args(info.type)
    if type(None) not in kinds:
        return None
    kind = reduce(or_, (kind for kind in kinds if kind is not type(None)))
    spec = ConstructorRegistry.get_primitive_spec(PrimitiveTypeInfo.make(kind, info.markers))
    if not isinstance(spec, PrimitiveConstructorSpec):
        return None
    read, write, fits = spec.instance_from_str, spec.str_from_instance, spec.is_instance
    return dataclasses.replace(
        spec,
        choices=spec.choices and (*spec.choices, "None"),
        instance_from_str=lambda words: None if words == ["None"] else read(words),
        str_from_instance=lambda value: ["None"] if value is None else write(value),
        is_instance=lambda value: value is None or fits(value),
    )


def _in_words(hidden: Collection[str]) -> Callable[[StructTypeInfo], StructConstructorSpec | None]:
    """The rule of dataclasses: the help of each option ends with its default."""

    def rule(info: StructTypeInfo) -> StructConstructorSpec | None:
        if _SEEN in info.markers or not dataclasses.is_dataclass(info.type):
            return None
        spec, own = _by_tyro(info), OWN_DEFAULTS if info.type.__name__ in GROUPS else {}
        fields = (_described(f, hidden, own.get(f.name, "")) for f in spec.fields)
        return dataclasses.replace(spec, fields=tuple(fields))

    return rule


def _by_tyro(info: StructTypeInfo) -> StructConstructorSpec:
    """tyro's own reading of a type."""
    seen = dataclasses.replace(info, markers=(*info.markers, _SEEN))
    spec = ConstructorRegistry.get_struct_spec(seen)
    assert isinstance(spec, StructConstructorSpec)  # noqa: S101 - dataclasses and pydantic's models
    return spec


def _described(field: StructFieldSpec, hidden: Collection[str], own: str) -> StructFieldSpec:
    """A field whose help ends with its default, unless the text states one.

    Args:
        own: the default for a user's own data, if it differs.
    """
    given = field.default is not None and field.default != ()
    # For repeatable positional options, tyro states an empty default.
    more = f"; {own}" if own else ""
    hint = (lambda label: f"(default: {label}{more})." if label else "(required)") if given else ""
    marks = (tyro.conf.Suppress,) if field.name in hidden else ()
    kind: Any = Annotated[(field.type, tyro.conf.arg(help_behavior_hint=hint), *marks)]

    def text() -> str:
        words = _help(field)
        if given:
            return re.sub(r"( \((no default|default: [^()]*)\))?\.$", "", words)
        return re.sub(r"\)\.$", f"{more}).", words)

    return dataclasses.replace(field, type=kind, helptext=text)


def _help(field: StructFieldSpec) -> str:
    """The text of a field in one paragraph."""
    text = field.helptext() if callable(field.helptext) else field.helptext
    return " ".join((text or "").split())


def _grouped(info: StructTypeInfo) -> StructConstructorSpec | None:
    """The rule of `TrainConfig`: its options are in groups."""
    if _SEEN in info.markers or info.type is not TrainConfig:
        return None
    fields = _by_tyro(info).fields
    names = [field.name for field in fields]
    cuts = [*(names.index(first) for first in GROUPS.values()), len(fields)]
    groups = [
        _group(title, fields[start:stop])
        for title, (start, stop) in zip(GROUPS, pairwise(cuts), strict=True)
    ]

    def made(**values: Any) -> TrainConfig:
        return TrainConfig(**{name: one for v in values.values() for name, one in vars(v).items()})

    return StructConstructorSpec(made, tuple(groups))


def _group(title: str, fields: tuple[StructFieldSpec, ...]) -> StructFieldSpec:
    """A group of options, as a field that holds a dataclass of them."""
    entries = [(f.name, f.type, dataclasses.field(metadata={"help": _help(f)})) for f in fields]
    kind = dataclasses.make_dataclass(title, entries, frozen=True, namespace={"__doc__": ""})
    values = kind(**{field.name: field.default for field in fields})
    shown: Any = Annotated[kind, tyro.conf.OmitArgPrefixes, tyro.conf.arg(help="")]
    return StructFieldSpec(title, shown, values)
