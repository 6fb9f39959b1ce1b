"""Save an estimator to a folder, as safetensors and JSON, and load it."""

from pathlib import Path
from typing import Any, TypeVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from iwae.data import as_json
from iwae.errors import UserError
from iwae.models.latent_kinds import latent_kinds
from iwae.models.vae import VAE
from iwae.runs.model_files import load_model, read_model_facts, save_model
from iwae.sklearn.data_frames import (
    data_frame_from_json,
    data_frame_json,
    set_data_frame_columns,
    stored_data_frame_form,
    takes_data_frames,
)
from iwae.sklearn.parameters import (
    check_parameters,
    hidden_sizes_parameter,
    kind_from_parameters,
    plain_parameters,
)

E = TypeVar("E")

_ARRAYS = ("shift_", "scale_")
_LEARNT = (
    *_ARRAYS,
    *("_key_", "n_iter_", "loss_curve_", "validation_scores_", "best_validation_score_"),
)
"""Attributes of every fitted estimator."""

_NAMES = "feature_names_in_"


def save_estimator(estimator: Any, folder: str | Path) -> None:
    """Write a fitted estimator to a folder.

    Raises:
        ValueError: as for `ImportanceWeightedAutoencoder.save`.
    """
    if not _describes(estimator, estimator.model_):
        raise ValueError("parameters of the model were changed after fit: fit it again")
    if not isinstance(estimator.random_state, int | np.integer | None):
        raise ValueError("random_state is a generator, which cannot be saved: set it to an int")
    parameters = estimator.get_params(deep=False)
    if not takes_data_frames(estimator.observation):
        parameters["observation"] = as_json(kind_from_parameters(estimator))
    learnt = {name: getattr(estimator, name) for name in _LEARNT}
    if hasattr(estimator, _NAMES):
        learnt[_NAMES] = estimator.feature_names_in_
    learnt["_labels_"] = estimator._labels_
    if estimator._form_ is not None:
        learnt["frame"] = data_frame_json(getattr(estimator, "columns_", ()), estimator._form_)
    facts = plain_parameters({"parameters": parameters, "learnt": learnt})
    save_model(estimator.model_, folder, estimator=facts)


def load_estimator(cls: type[E], folder: str | Path) -> E:
    """Read an estimator of a class that `save_estimator` wrote.

    Raises:
        UserError: if it cannot be read, is damaged, or is not an estimator.
    """
    model, facts = load_model(folder), read_model_facts(folder).get("estimator", {})
    try:
        found: Any = cls(**facts["parameters"])
        _set_learnt(found, dict(facts["learnt"]), model)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise UserError(f"there is no estimator in {folder}: {error}") from error
    if model.log_scale is None:  # saved by a version whose models were of scaled columns
        log_scale = jnp.asarray(np.log(found.scale_), jnp.float32)
        model = eqx.tree_at(
            lambda m: m.log_scale, model, log_scale, is_leaf=lambda node: node is None
        )
    found.model_, found.n_features_in_ = model, model.n_data
    found._n_features_out = model.widths[0]
    return found


def _set_learnt(estimator: Any, learnt: dict[str, Any], model: VAE) -> None:
    """Set the learnt attributes of an estimator; ValueError unless they fit its model."""
    d = model.n_data
    estimator._form_ = None
    for name in _LEARNT:
        setattr(estimator, name, learnt[name])
    estimator.shift_, estimator.scale_ = (_one_each(learnt[name], d) for name in _ARRAYS)
    check_parameters(estimator)
    if takes_data_frames(estimator.observation):
        set_data_frame_columns(estimator, *data_frame_from_json(learnt["frame"]))
    elif "frame" in learnt:
        estimator._form_ = stored_data_frame_form(learnt["frame"], ())
        _check_names([*map(str, estimator._form_.names)], d)
    if not _describes(estimator, model):
        raise ValueError("its parameters do not agree with its model")
    if not isinstance(estimator._key_, int) or not 0 <= estimator._key_ < 2**31:
        raise ValueError(f"its key is {estimator._key_!r}, not a seed below 2**31")
    if not (estimator.scale_ > 0).all():
        raise ValueError("a scale is not positive")
    labels = learnt["_labels_"]
    estimator._labels_ = None if labels is None else _check_names(labels, d)
    if _NAMES in learnt:
        estimator.feature_names_in_ = np.asarray(_check_names(learnt[_NAMES], d), object)


def _describes(estimator: Any, model: VAE) -> bool:
    """Whether the parameters agree with the model, as far as it records them."""
    if takes_data_frames(estimator.observation) != hasattr(estimator, "columns_"):
        return False
    declared = (
        (estimator.n_components,),
        *(hidden_sizes_parameter(estimator), kind_from_parameters(estimator)),
        *(estimator.missing, estimator.activation, estimator.prior, estimator.posterior),
        latent_kinds(estimator.latents, 1),
    )
    recorded = (
        *(model.latent_sizes, model.hidden_sizes[0], model.kind),
        *(model.missing, model.activation, str(model.prior_name), str(model.posterior_name)),
        model.latents,
    )
    return bool(declared == recorded)


def _one_each(values: Any, d: int) -> np.ndarray:
    """Numbers from a file, float64; ValueError unless each of d columns has a finite one."""
    array = np.asarray(values, np.float64)
    if array.shape != (d,) or not np.isfinite(array).all():
        raise ValueError(f"expected {d} finite numbers")
    return array


def _check_names(values: Any, d: int) -> list[str]:
    """Names from a file; ValueError unless there is one for each of d columns."""
    named = isinstance(values, list) and all(isinstance(name, str) for name in values)
    if not named or len(values) != d:
        raise ValueError(f"expected {d} column names")
    return values
