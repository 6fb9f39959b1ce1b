"""Parameters of the estimator: checks in scikit-learn's words, and what they declare."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_type_hints

import numpy as np
from pydantic import TypeAdapter, ValidationError

from iwae.data.columns import columns_to_kind
from iwae.data.kinds import Kind, as_kind, make_kind
from iwae.models.named_densities import parse_named_posterior, parse_named_prior
from iwae.objectives.declaration import Declaration
from iwae.sklearn.data_frames import takes_data_frames


def check_parameters(estimator: Any) -> None:
    """Raise ValueError for an invalid parameter of an estimator."""
    for name in ("n_components", "k", "max_iter", "n_iter_no_change", "score_k"):
        check_count(name, getattr(estimator, name))
    for size in hidden_sizes_parameter(estimator):
        check_count("hidden_layer_sizes", size)
    if estimator.batch_size != "auto":
        check_count("batch_size", estimator.batch_size)
    for name, legal, words in (
        ("learning_rate_init", lambda value: 0 < value < math.inf, "above 0"),
        ("validation_fraction", lambda value: 0 < value < 1, "between 0 and 1"),
        ("tol", lambda value: 0 <= value < math.inf, "of at least 0"),
        ("ema", lambda value: 0 < value < 1, "between 0 and 1, or None"),
    ):
        value = getattr(estimator, name)
        if name != "ema" or value is not None:
            _check_number(name, value, legal, words)
    _check_hide(estimator.hide, estimator.missing)
    _check_unknown(
        estimator.unknown, estimator.missing, is_frame=takes_data_frames(estimator.observation)
    )
    for name in ("standardize", "early_stopping"):
        if not isinstance(getattr(estimator, name), bool | np.bool_):
            raise ValueError(f"{name} == {getattr(estimator, name)!r}, must be True or False")
    for name in ("prior", "posterior", "objective", "gradient", "activation", "latents"):
        value = getattr(estimator, name)
        if not isinstance(value, str) and not (name == "gradient" and value is None):
            raise ValueError(f"{name} == {value!r}, must be a name")
    parse_named_prior(estimator.prior)
    parse_named_posterior(estimator.posterior)
    if not isinstance(estimator.objective_params, Mapping | None):
        raise ValueError(f"objective_params == {estimator.objective_params!r}, must be a mapping")


def check_count(name: str, value: Any) -> int:
    """The value as an int; ValueError if it is not a whole number of at least 1."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} == {value!r}, must be a whole number of at least 1")
    return int(value)


def _check_number(name: str, value: Any, legal: Callable[[Any], bool], words: str) -> None:
    """Raise ValueError if the value is not a legal number; `words` say which are."""
    if not isinstance(value, int | float | np.number) or not legal(value):
        raise ValueError(f"{name} == {value!r}, must be a number {words}")


def _check_hide(hide: Any, missing: Any) -> None:
    """Raise ValueError for an invalid share of values to hide, or if none are missing at random."""
    is_share = isinstance(hide, int | float | np.number) and 0 <= hide < 1
    if hide is not None and not is_share:
        raise ValueError(f"hide == {hide!r}, must be None or a number from 0 to below 1")
    if hide and missing != "at-random":
        raise ValueError(f"hide == {hide!r} needs missing='at-random'")


def _check_unknown(unknown: Any, missing: Any, *, is_frame: bool) -> None:
    """Raise ValueError for a treatment of unknown words that is invalid or that the model lacks."""
    if not isinstance(unknown, str) or unknown not in ("error", "missing"):
        raise ValueError(f"unknown == {unknown!r}, must be 'error' or 'missing'")
    if unknown == "missing" and (missing is None or not is_frame):
        raise ValueError("unknown == 'missing' needs observation='auto' and missing='at-random'")


def hidden_sizes_parameter(estimator: Any) -> tuple[Any, ...]:
    """Units of the hidden layers; a number is a single layer, as elsewhere in scikit-learn."""
    sizes = estimator.hidden_layer_sizes  # a generator could be read only once
    return tuple(sizes) if isinstance(sizes, Sequence | np.ndarray) else (sizes,)


def kind_from_parameters(estimator: Any) -> Kind:
    """The kind of data that `observation` describes."""
    given = estimator.observation
    if takes_data_frames(given):
        return columns_to_kind(estimator.columns_)
    if isinstance(given, str):
        return make_kind(given)
    if isinstance(given, Kind) or (isinstance(given, Mapping) and "name" in given):
        return as_kind(given)
    if isinstance(given, Sequence) and all(isinstance(one, str) for one in given):
        return make_kind("table", columns=tuple(given))
    raise ValueError(
        f"observation == {given!r}, must be a name, a mapping with a name, or a list of names"
    )


def declaration_from_parameters(estimator: Any) -> Declaration:
    """The declaration of the objective.

    Raises:
        ValueError: for an unknown option in `objective_params`, or one of the wrong type.
    """
    given = dict(estimator.objective_params or {})
    known = sorted(set(Declaration._fields) - {"objective", "k", "gradient"})
    if odd := sorted(set(map(str, given)) - set(known)):
        raise ValueError(f"objective_params has {odd[0]!r}, must be among {', '.join(known)}")
    hints = get_type_hints(Declaration)
    for name, value in (given := plain_parameters(given)).items():
        _check_option(name, value, hints[name])
    return Declaration(estimator.objective, int(estimator.k), gradient=estimator.gradient, **given)


def _check_option(name: str, value: Any, hint: Any) -> None:
    """Raise ValueError for an option of an objective of the wrong type."""
    try:
        TypeAdapter(hint).validate_python(value, strict=True)
    except ValidationError:
        words = getattr(hint, "__name__", None) or str(hint)
        raise ValueError(f"objective_params has {name} == {value!r}, must be {words}") from None


def plain_parameters(value: Any) -> Any:
    """The value as JSON can store it."""
    if isinstance(value, Mapping):
        return {name: plain_parameters(one) for name, one in value.items()}
    if isinstance(value, np.ndarray | list | tuple):
        return [plain_parameters(one) for one in np.asarray(value, object).tolist()]
    return value.item() if isinstance(value, np.generic) else value
