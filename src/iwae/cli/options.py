"""Options as tyro shows them: in groups, optional values without `None`, defaults in words."""

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
"""Groups of the configuration's options -> the first option of each, in the order of `TrainConfig`.

A new field is in the group of the field before it."""

_SEEN = object()  # a marker: the rule has been applied, and tyro's own comes next


def registry(hidden: Collection[str] = ()) -> ConstructorRegistry:
    """tyro's rules for types, and these.

    Args:
        hidden: options to leave out.
    """
    rules = ConstructorRegistry()
    rules.primitive_rule(_optional)
    rules.struct_rule(_in_words(hidden))
    rules.struct_rule(_grouped)
    return rules


def _optional(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[Any] | None:
    """An optional value: the help lists no `None`, but the word is understood."""
    kinds = get_args(info.type)
    if type(None) not in kinds:
        return None
    kind = reduce(or_, (one for one in kinds if one is not type(None)))
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
    """The rule that describes the default of each option of a dataclass."""

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
    """A field whose text ends with its default: the value, or words of its own if there is none.

    Args:
        own: the default for a user's own data, if it is another one.
    """
    given = field.default is not None and field.default != ()
    # Of positional ones that may be several, tyro says that none is the default.
    more = f"; {own}" if own else ""
    hint = (lambda label: f"(default: {label}{more})." if label else "(required)") if given else ""
    marks = (tyro.conf.Suppress,) if field.name in hidden else ()
    kind: Any = Annotated[(field.type, tyro.conf.arg(help_behavior_hint=hint), *marks)]

    def text() -> str:
        words = _text(field)
        if given:
            return re.sub(r"( \((no default|default: [^()]*)\))?\.$", "", words)
        return re.sub(r"\)\.$", f"{more}).", words)

    return dataclasses.replace(field, type=kind, helptext=text)


def _text(field: StructFieldSpec) -> str:
    """The text of a field in one paragraph."""
    text = field.helptext() if callable(field.helptext) else field.helptext
    return " ".join((text or "").split())


def _grouped(info: StructTypeInfo) -> StructConstructorSpec | None:
    """The rule that lists the options of a configuration in groups."""
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
    entries = [(f.name, f.type, dataclasses.field(metadata={"help": _text(f)})) for f in fields]
    kind = dataclasses.make_dataclass(title, entries, frozen=True, namespace={"__doc__": ""})
    values = kind(**{field.name: field.default for field in fields})
    shown: Any = Annotated[kind, tyro.conf.OmitArgPrefixes, tyro.conf.arg(help="")]
    return StructFieldSpec(title, shown, values)
