"""The scikit-learn interface: an estimator built on the other modules.

It follows scikit-learn's conventions: the constructor only stores its arguments, learnt attributes
end in an underscore, rows are examples, and bad input raises a ValueError in scikit-learn's words.
"""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, get_type_hints

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    DensityMixin,
    TransformerMixin,
)
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import Tags, check_array, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from iwae.data import Kind, as_json, as_kind, choose
from iwae.data.columns import observation as columns_kind
from iwae.data.kinds import check_values, make_kind
from iwae.data.sampling import PSEUDO_INPUTS
from iwae.data.scaling import Scaling
from iwae.errors import UserError
from iwae.evaluation.diagnostics import pareto_threshold
from iwae.evaluation.examples import CHAIN_ROWS, ROWS, ExampleFn, gather, map_examples
from iwae.evaluation.imputation import CHAINS, Filling, Imputed, imputed, pilot_annealer
from iwae.evaluation.likelihood import annealed_bound, chunk_length, streamed_bound
from iwae.inference.particles import Sampler, importance_particles
from iwae.inference.step_sizes import tune_step_size
from iwae.inference.temperatures import sigmoid_schedule
from iwae.models.declaration import parse_posterior, parse_prior
from iwae.models.latent_kinds import latent_kinds
from iwae.models.likelihoods import observation
from iwae.models.vae import VAE
from iwae.objectives.catalogue import compose
from iwae.objectives.combinations import check
from iwae.objectives.declaration import Declaration, unmodified
from iwae.precision import float32
from iwae.runs.models import load_model, read_about, save_model
from iwae.sklearn.callbacks import CallbackSupportMixin, with_callbacks, with_tasks
from iwae.sklearn.frames import (
    describe,
    form_from,
    form_of,
    frame_from,
    frame_json,
    frame_values,
    given_back,
    is_auto,
    set_columns,
)
from iwae.sklearn.functions import Likelihood, decoded, drawn, q_mean, weighted_mean
from iwae.sklearn.rows import (
    addresses,
    check_count,
    check_gaps,
    check_hide,
    check_labels,
    check_number,
    check_option,
    check_order,
    check_source,
    check_unknown,
    column_labels,
    names_of_each,
    one_each,
    plain,
    standards,
    warn_doubtful,
)
from iwae.training.hiding import hidden_share
from iwae.training.loop import Best, Plan, Report, init_best, training
from iwae.training.progress import show_training
from iwae.training.schedules import StagedSchedule, adam, staged
from iwae.training.steps import Settings, init_state, replicate_model, weights
from iwae.typing import PRNGKey

AT_A_TIME = 32
"""Rows of one dispatch, padded with copies, so that the result of a row is the same bit for bit
whatever the other rows are."""

LATENTS = ("mean", "snis")

ANNEALING_CHAINS, LEAPFROG, PILOT_ROWS, PILOT_CHAINS = 16, 10, 32, 4
"""Settings of `method="ais"`; its step sizes are tuned on rows drawn from the model."""


class ImportanceWeightedAutoencoder(
    CallbackSupportMixin,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    DensityMixin,
    BaseEstimator,
):
    """Importance weighted autoencoder, as a transformer and a density estimator.

    An encoder and a decoder are trained together by maximising a bound on the log-likelihood (Burda
    et al. 2016, arXiv 1509.00519). `transform` gives a row's posterior mean over a few latent
    variables, `score_samples` its log-likelihood.

    Parameters:
        n_components: number of latent variables.
        hidden_layer_sizes: units of each layer between data and latents.
        latents: the kind of latent variables: "normal", "bernoulli" for bits, or "categorical:C"
            for one-hot vectors of C categories, each of which makes C columns of `transform`.
        observation: the kind of data: "gaussian", "gaussian-shared", "bernoulli", "poisson",
            "negative-binomial", "logistic-mixture", "discretised-gaussian"; with its parameter,
            `{"name": "categorical", "categories": 4}`; or a list with the kind of each column,
            `["gaussian", "poisson", "categorical:4"]`; or "auto" for a data frame, whose columns
            are taken for what `columns_` then shows.
        missing: "at-random" if values may be missing (NaN), in `fit` and afterwards: the bounds are
            then on the observed values (Mattei & Frellsen 2019). "not-at-random" if whether a
            Gaussian value is missing may depend on the value (Ipsen et al. 2021),
            "not-at-random-high" or "-low" if it is known which values are; the bounds are then on
            the observed values and on which values are observed.
        hide: with "at-random", the probability of hiding each observed value whenever training
            visits its row, so that the encoder learns to read gaps; None for 0.1 if the rows of
            `fit` have no gaps, otherwise 0.
        unknown: with "auto", what a word that `fit` has not seen is afterwards: "error" to refuse
            it, "missing" to take it for a missing value.
        objective: the bound to maximise; `iwae objectives` lists them.
        objective_params: further options of the objective, such as `{"m": 4}` for "miwae" or
            `{"beta": 0.5}` for "ciwae".
        k: importance samples per row and training step.
        gradient: the gradient estimator; the objective's own if None.
        activation: nonlinearity of the hidden layers.
        prior: p(z): "normal", or learned: "mixture:K" of K Gaussians, "vamp:K" of the encoder at K
            pseudo-inputs, which start at random training rows, or "flow:N" of N coupling layers.
        posterior: the encoder's distribution: "normal", or "flow:N".
        standardize: scale Gaussian columns to mean 0 and standard deviation 1 for training.
            Likelihoods, samples and reconstructions are in the units of the data.
        learning_rate_init: initial learning rate of Adam; it falls to 0.3 and 0.1 of this after a
            half and three quarters of `max_iter`.
        ema: decay of a moving average of the weights, over about 1 / (1 - ema) steps, which is what
            is validated and kept; None for no average.
        batch_size: rows per step; "auto" is a fiftieth of the rows, between 16 and 100.
        max_iter: maximum number of passes over the training rows.
        early_stopping: hold out some rows, and stop when their bound no longer rises. The weights
            are then those with the best validation bound. Without it, all rows are for training.
        validation_fraction: fraction of the rows to hold out.
        n_iter_no_change: passes without improvement before training stops.
        tol: minimum improvement of the validation bound that counts, nats.
        score_k: importance samples per row in `score_samples`, `score` and
            `transform(latent="snis")`.
        random_state: an int or a RandomState, for reproducible fits and results.
        verbose: show a progress bar while fitting.

    Attributes:
        model_: the trained `iwae.VAE`, for standardised columns.
        shift_, scale_: `[d]`, mean and standard deviation by which columns are standardised.
        n_iter_: passes over the training rows.
        loss_curve_: minus the mean training bound of each pass, nats per row, in the units of the
            data.
        validation_scores_: the mean validation bound of each pass, in the same units; None without
            early stopping.
        best_validation_score_: the best of them.
        columns_: the name, kind and levels of each column of a frame, and why; with "auto" only.
        n_features_in_, feature_names_in_: as everywhere in scikit-learn.

    Examples:
        >>> from sklearn.datasets import load_wine
        >>> from iwae import ImportanceWeightedAutoencoder
        >>> X = load_wine().data
        >>> density = ImportanceWeightedAutoencoder(3, max_iter=20, random_state=0).fit(X)
        >>> density.transform(X).shape, density.score_samples(X).shape
        ((178, 3), (178,))
    """

    def __init__(
        self,
        n_components: Any = 10,
        *,
        hidden_layer_sizes: Any = (100, 100),
        latents: Any = "normal",
        observation: Any = "gaussian",
        missing: Any = None,
        hide: Any = None,
        unknown: Any = "error",
        objective: Any = "iwae",
        objective_params: Any = None,
        k: Any = 5,
        gradient: Any = None,
        activation: Any = "tanh",
        prior: Any = "normal",
        posterior: Any = "normal",
        standardize: Any = True,
        learning_rate_init: Any = 1e-3,
        ema: Any = 0.99,
        batch_size: Any = "auto",
        max_iter: Any = 400,
        early_stopping: Any = True,
        validation_fraction: Any = 0.1,
        n_iter_no_change: Any = 40,
        tol: Any = 0.0,
        score_k: Any = 1000,
        random_state: Any = None,
        verbose: Any = False,
    ):
        self.n_components = n_components
        self.hidden_layer_sizes = hidden_layer_sizes
        self.latents = latents
        self.observation = observation
        self.missing = missing
        self.hide = hide
        self.unknown = unknown
        self.objective = objective
        self.objective_params = objective_params
        self.k = k
        self.gradient = gradient
        self.activation = activation
        self.prior = prior
        self.posterior = posterior
        self.standardize = standardize
        self.learning_rate_init = learning_rate_init
        self.ema = ema
        self.batch_size = batch_size
        self.max_iter = max_iter
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.tol = tol
        self.score_k = score_k
        self.random_state = random_state
        self.verbose = verbose

    # --- fitting ----------------------------------------------------------------------------

    @with_callbacks
    @float32
    def fit(self, X: Any, y: Any = None) -> "ImportanceWeightedAutoencoder":  # noqa: ARG002 - scikit-learn's signature
        """Train on the rows of X `[n, d]`; y is ignored.

        A second fit to data of the same shape, with the same parameters, compiles nothing. Each
        pass is a task of the callbacks that `set_callbacks` was given (scikit-learn 1.9 or newer);
        one that returns True at its end stops training.

        Raises:
            ValueError: for invalid data or parameters.
            FloatingPointError: if a number in training is not finite.
        """
        self._check_parameters()
        for name in (
            "model_",
            "columns_",
            "_form_",
        ):  # a fit that fails keeps nothing of an earlier one
            self.__dict__.pop(name, None)
        if is_auto(self.observation):
            set_columns(self, *describe(X))
        kind = self._kind()
        rows = self._rows(X, kind, reset=True)
        self._form_ = form_of(X)
        random = check_random_state(self.random_state)
        self._key_ = int(random.randint(2**31 - 1))
        train, validation = self._held_out(rows, random)
        self.shift_, self.scale_ = standards(train, kind, standardize=self.standardize)
        held_out = None if validation is None else self._inwards(validation)
        self._fit(X, kind, self._inwards(train), held_out)
        return self

    def _fit(self, X: Any, kind: Kind, train: np.ndarray, validation: np.ndarray | None) -> None:
        """Make a model and train it; X is what callbacks get."""
        init_key, train_key = jax.random.split(jax.random.key(self._key_))
        blank, batch_size = self._blank(kind, train, init_key), self._batch(len(train))
        declared = check(self._declaration(), 1, discrete=blank.has_discrete)
        share = hidden_share(self.hide, self.missing, gaps=bool(np.isnan(train).any()))
        settings = _settings(declared, batch_size, share, self.ema)
        plan = Plan(
            self.max_iter,
            patience=self.n_iter_no_change if self.early_stopping else None,
            threshold=self.tol,
        )
        schedule = self._schedule(len(train) // batch_size)
        first, reports = init_state([blank], train_key[None], settings), []
        state, best = first, init_best(first)

        def run() -> Iterator[Report]:
            nonlocal state, best
            start = first, best, train, schedule, blank, settings, plan, validation
            for step in training(*start):
                state, best, report = step
                if report.epoch_done:
                    reports.append(report)
                yield report

        def learnt() -> dict[str, Any]:
            chosen = best.params if self.early_stopping else weights(state)
            curves = self._curves(reports, best, validation)
            return {"model_": replicate_model(blank, chosen, 0), **curves}

        self._n_features_out = blank.widths[0]
        show_training(with_tasks(self, X, run(), learnt), quiet=not self.verbose)
        for name, value in learnt().items():
            setattr(self, name, value)
        if validation is not None and self.n_iter_ == self.max_iter:
            self._warn_unless_converged(int(best.waited[0]))

    def _curves(
        self, reports: Sequence[Report], best: Best, validation: np.ndarray | None
    ) -> dict[str, Any]:
        """The attributes that describe the course of training."""
        curves: dict[str, Any] = {
            "n_iter_": len(reports),
            "loss_curve_": [float(-report.bound[0]) for report in reports],
            "validation_scores_": None,
            "best_validation_score_": None,
        }
        if validation is not None:
            values = [report.validation for report in reports if report.validation is not None]
            curves["validation_scores_"] = [float(value[0]) for value in values]
            curves["best_validation_score_"] = float(best.value[0])
        return curves

    def _warn_unless_converged(self, waited: int) -> None:
        if waited < self.n_iter_no_change:
            warnings.warn(
                f"the validation bound was still rising after max_iter={self.max_iter} passes; "
                "raise max_iter, or n_iter_no_change and tol",
                ConvergenceWarning,
                stacklevel=4,
            )

    def _kind(self) -> Kind:
        """The kind of data that `observation` describes."""
        given = self.observation
        if is_auto(self.observation):
            return columns_kind(self.columns_)
        if isinstance(given, str):
            return make_kind(given)
        if isinstance(given, Kind) or (isinstance(given, Mapping) and "name" in given):
            return as_kind(given)
        if isinstance(given, Sequence) and all(isinstance(one, str) for one in given):
            return make_kind("table", columns=tuple(given))
        raise ValueError(
            f"observation == {given!r}, must be a name, a mapping with a name, or a list of names"
        )

    def _hidden(self) -> tuple[Any, ...]:
        """Units of the hidden layers; one number is one layer, as elsewhere in scikit-learn."""
        sizes = self.hidden_layer_sizes  # a generator could be read only once
        return tuple(sizes) if isinstance(sizes, Sequence | np.ndarray) else (sizes,)

    def _declaration(self) -> Declaration:
        given = dict(self.objective_params or {})
        known = sorted(set(Declaration._fields) - {"objective", "k", "gradient"})
        if odd := sorted(set(map(str, given)) - set(known)):
            raise ValueError(f"objective_params has {odd[0]!r}, must be among {', '.join(known)}")
        hints = get_type_hints(Declaration)
        for name, value in (given := plain(given)).items():
            check_option(name, value, hints[name])
        return Declaration(self.objective, int(self.k), gradient=self.gradient, **given)

    def _check_parameters(self) -> None:
        """Raise ValueError for an invalid parameter."""
        hidden = [("hidden_layer_sizes", size) for size in self._hidden()]
        counts = ("n_components", "k", "max_iter", "n_iter_no_change", "score_k")
        for name, value in [*((name, getattr(self, name)) for name in counts), *hidden]:
            check_count(name, value)
        if self.batch_size != "auto":
            check_count("batch_size", self.batch_size)
        for name, legal, words in (
            ("learning_rate_init", lambda value: 0 < value < math.inf, "above 0"),
            ("validation_fraction", lambda value: 0 < value < 1, "between 0 and 1"),
            ("tol", lambda value: 0 <= value < math.inf, "of at least 0"),
        ):
            check_number(name, getattr(self, name), legal, words)
        check_hide(self.hide, self.missing)
        check_unknown(self.unknown, self.missing, is_frame=is_auto(self.observation))
        if self.ema is not None:
            check_number("ema", self.ema, lambda value: 0 < value < 1, "between 0 and 1, or None")
        for name in ("standardize", "early_stopping"):
            if not isinstance(getattr(self, name), bool | np.bool_):
                raise ValueError(f"{name} == {getattr(self, name)!r}, must be True or False")
        for name, parse in (("prior", parse_prior), ("posterior", parse_posterior)):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"{name} == {getattr(self, name)!r}, must be a name")
            parse(getattr(self, name))
        for name, optional in (
            ("objective", False),
            ("gradient", True),
            ("activation", False),
            ("latents", False),
        ):
            value = getattr(self, name)
            if not isinstance(value, str) and not (optional and value is None):
                raise ValueError(f"{name} == {value!r}, must be a name")
        if not isinstance(self.objective_params, Mapping | None):
            raise ValueError(f"objective_params == {self.objective_params!r}, must be a mapping")

    def _held_out(
        self, rows: np.ndarray, random: np.random.RandomState
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Training rows and, with early stopping, validation rows."""
        if not self.early_stopping:
            return rows, None
        count = max(1, round(self.validation_fraction * len(rows)))
        if count >= len(rows):
            raise ValueError(
                f"validation_fraction={self.validation_fraction} of n_samples={len(rows)} leaves "
                "no rows to train on; give more rows, or early_stopping=False"
            )
        order = random.permutation(len(rows))
        train = rows[order[count:]]
        if (empty := np.isnan(train).all(axis=0)).any():
            raise ValueError(
                f"all values of column {empty.argmax() + 1} of X are in held-out rows; set "
                "early_stopping=False, or leave the column out"
            )
        return train, rows[order[:count]]

    def _batch(self, n: int) -> int:
        if isinstance(self.batch_size, str):
            return min(n, max(16, min(100, n // 50)))
        if self.batch_size > n:
            warnings.warn(
                f"Got `batch_size` larger than the {n} training rows. It is going to be clipped.",
                UserWarning,
                stacklevel=4,
            )
        return min(n, int(self.batch_size))

    def _schedule(self, steps_per_epoch: int) -> StagedSchedule:
        """The learning rate, reduced to 0.3 and 0.1 of it after a half and three quarters."""
        ends = np.ceil(np.array([0.5, 0.75, 1.0]) * self.max_iter).astype(int)
        rates = [self.learning_rate_init * share for share in (1.0, 0.3, 0.1)]
        return staged(rates, np.diff(ends, prepend=0).tolist(), steps_per_epoch)

    def _blank(self, kind: Kind, train: np.ndarray, key: PRNGKey) -> VAE:
        """A model before training."""
        likelihood = observation(kind, train.shape[1], self.missing)
        return VAE(
            train.shape[1],
            (self.n_components,),
            (self._hidden(),),
            latents=self.latents,
            observation=kind,
            activation=self.activation,
            output_bias=likelihood.initial_output(train),
            statistics=likelihood.encoding.statistics(train) if likelihood.encoding else None,
            missing=self.missing,
            log_scale=np.log(self.scale_),
            prior=self.prior,
            posterior=self.posterior,
            pseudo_inputs=self._pseudo_inputs(train),
            key=key,
        )

    def _pseudo_inputs(self, train: np.ndarray) -> np.ndarray | None:
        """Random training rows at which those of a VampPrior start."""
        prior = parse_prior(self.prior)
        if prior.name != "vamp":
            return None
        if prior.size > len(train):
            raise ValueError(
                f"prior={self.prior!r} starts at {prior.size} training rows, of which there are "
                f"{len(train)}: choose a smaller number"
            )
        return train[choose(len(train), prior.size, seed=self._key_, stream=PSEUDO_INPUTS)]

    # --- rows in and out --------------------------------------------------------------------

    def _rows(self, X: Any, kind: Kind, *, reset: bool = False) -> np.ndarray:
        """X as an array `[n, d]` of values that are valid for the kind of data.

        Raises:
            ValueError: for anything else.
        """
        missing = self.missing if reset else self.model_.missing
        validate = partial(validate_data, self, reset=reset)
        if hasattr(self, "columns_"):
            gaps = missing is not None
            X = frame_values(X, self.columns_, missing=gaps, unknown=self.unknown)
            validate = partial(check_array, estimator=self, input_name="X")
        check_source(X)
        rows = validate(
            X,
            accept_sparse=("csr", "csc", "coo"),
            dtype=(np.float64, np.float32),
            ensure_all_finite="allow-nan" if missing else True,
            ensure_min_samples=2 if reset else 1,
        )
        # scikit-learn checks the order of named columns only; others may be out of order too.
        if reset:
            self._labels_ = column_labels(X)
        else:
            check_order(column_labels(X), self._labels_)
        rows = rows.toarray() if hasattr(rows, "toarray") else rows
        check_values(rows, kind, "X", missing=missing is not None)
        if reset:
            check_gaps(rows)
        return rows

    def _known_rows(self, X: Any) -> np.ndarray:
        """Rows for a fitted model, in the units of the data."""
        check_is_fitted(self, "model_")
        return self._rows(X, self.model_.kind)

    def _inwards(self, rows: np.ndarray) -> np.ndarray:
        """Rows in the units of the model, from those of the data.

        Raises:
            ValueError: for a value beyond float32.
        """
        return Scaling(self.shift_, self.scale_).inwards(rows, "X")

    def _outwards(self, rows: np.ndarray) -> np.ndarray:
        """Rows in the units of the data, from those of the model."""
        return Scaling(self.shift_, self.scale_).outwards(rows)

    def _map(self, fn: ExampleFn, rows: np.ndarray, batch_size: int, purpose: int) -> Any:
        """Apply a function of one row to each row; its key is derived from the row's values.

        Raises:
            FloatingPointError: if a number is nan in its result, or in the first array of that.
        """
        n, whole = len(rows), AT_A_TIME * jax.local_device_count()
        filled = np.concatenate([rows, np.repeat(rows[-1:], -n % whole, axis=0)])
        key = jax.random.fold_in(jax.random.key(self._key_), purpose)
        slabs = map_examples(
            fn,
            self.model_,
            filled,
            key,
            batch_size=min(batch_size, AT_A_TIME),
            slab_size=whole,
            addresses=addresses(filled),
        )
        found = jax.tree.map(lambda leaf: leaf[:n], gather(slabs))
        bad = np.isnan(jax.tree.leaves(found)[0]).reshape(n, -1).any(axis=1)
        if bad.any():
            raise FloatingPointError(f"the model's result for row {bad.argmax() + 1} is nan")
        return found

    # --- using it ---------------------------------------------------------------------------

    def transform(self, X: Any, *, latent: Any = "mean") -> np.ndarray:
        """Posterior means of the latents, `[n, n_components]`; C columns for each of C categories.

        Args:
            X: `[n, d]`.
            latent: "mean" for the mean of q(z|x), "snis" for that of p(z|x) from `score_k`
                self-normalised importance samples.

        Raises:
            ValueError: for another `latent`, or rows unlike those of `fit`.
        """
        rows = self._known_rows(X)
        if not isinstance(latent, str) or latent not in LATENTS:
            raise ValueError(f"latent == {latent!r}, must be one of {', '.join(LATENTS)}")
        inner = self._inwards(rows)
        if latent == "mean":
            found = self._map(q_mean, inner, AT_A_TIME, _LATENT)
        else:
            k = check_count("score_k", self.score_k)
            found = self._map(weighted_mean(k), inner, max(1, ROWS // k), _LATENT)
        return found.astype(rows.dtype)

    def inverse_transform(self, X: Any) -> Any:
        """The decoder's means `[n, d]` for latents `[n, n_components]`, a frame if `fit` had one.

        For a categorical column it is the most likely category.
        """
        check_is_fitted(self, "model_")
        z, m = check_array(X, dtype=(np.float64, np.float32)), self.model_.widths[0]
        if z.shape[1] != m:
            raise ValueError(f"X has {z.shape[1]} features, but the latent space has {m}")
        if (np.abs(z) > np.finfo(np.float32).max).any():
            raise ValueError(
                "X holds values beyond float32: give latents such as `transform` returns"
            )
        out = self._map(decoded, z.astype(np.float32), AT_A_TIME, _LATENT)
        return given_back(self, self._outwards(out).astype(z.dtype), self._form_, like=X)

    def sample(self, n_samples: Any = 1, random_state: Any = None) -> Any:
        """Rows drawn from the model, `[n_samples, d]`, a frame if `fit` had one.

        Args:
            n_samples: number of rows.
            random_state: an int or a RandomState, for reproducible rows.
        """
        check_is_fitted(self, "model_")
        check_count("n_samples", n_samples)
        seed = int(check_random_state(random_state).randint(2**31 - 1))
        slabs = map_examples(
            drawn,
            self.model_,
            np.zeros((n_samples, 1), np.float32),
            jax.random.key(seed),
            batch_size=AT_A_TIME,
            slab_size=n_samples,
        )
        return given_back(self, self._outwards(gather(slabs)), self._form_)

    def score_samples(
        self, X: Any, *, method: Any = "is", k: Any = None, temperatures: Any = 200
    ) -> np.ndarray:
        """The log-likelihood of each row, nats: a lower bound in expectation.

        A fitted model always gives a row the same number, whatever the other rows are.

        Args:
            X: `[n, d]`.
            method: "is" for importance sampling (L_k, Burda et al. 2016); "ais" for annealed
                importance sampling with HMC (Neal 2001; Wu et al. 2017), slower and tighter.
            k: importance samples, `score_k` if None; or chains, 16 if None.
            temperatures: number of temperatures of "ais".

        Returns:
            `[n]`. Densities are in the units of the data; for counts, categories and levels they
            are probabilities. Where values are missing, they are of the observed values (and, if
            missing not at random, of which values are observed).

        Raises:
            ValueError: for another method, or rows unlike those of `fit`.
            FloatingPointError: if a number is nan.
        """
        rows = self._known_rows(X)
        if method == "is":
            count = check_count("k", self.score_k if k is None else k)
            chunk = chunk_length(count)
            fn, batch = streamed_bound(count, chunk), max(1, ROWS // chunk)
        elif method == "ais":
            chains = ANNEALING_CHAINS if k is None else check_count("k", k)
            check_count("temperatures", temperatures)
            fn, batch = self._annealed(chains, temperatures), max(1, CHAIN_ROWS // chains)
        else:
            raise ValueError(f"method == {method!r}, must be 'is' or 'ais'")
        inner = self._inwards(rows)
        return self._map(Likelihood(fn), inner, batch, _SCORE).astype(np.float64)

    def score(self, X: Any, y: Any = None) -> float:  # noqa: ARG002 - scikit-learn's signature
        """The mean log-likelihood of the rows from `score_k` importance samples, nats."""
        return float(self.score_samples(X).mean())

    @float32
    def _annealed(self, chains: int, temperatures: int) -> ExampleFn:
        """A row's annealed log-likelihood, with step sizes tuned on rows drawn from the model."""
        key = jax.random.fold_in(jax.random.key(self._key_), _PILOT)
        draw_key, tune_key = jax.random.split(key)
        nothing = jnp.zeros((PILOT_ROWS, 1), jnp.float32)
        keys = jax.random.split(draw_key, PILOT_ROWS)
        with jax.debug_nans(False):  # `sample` draws gaps too, which `drawn` leaves out
            pilot = jax.vmap(partial(drawn, self.model_))(nothing, keys)
        betas = sigmoid_schedule(temperatures)
        sizes = tune_step_size(
            self.model_,
            np.asarray(pilot),
            tune_key,
            betas=betas,
            n_leapfrog=LEAPFROG,
            chains=PILOT_CHAINS,
        )
        return annealed_bound(chains=chains, betas=betas, step_size=sizes, n_leapfrog=LEAPFROG)

    def impute(
        self,
        X: Any,
        *,
        k: int | None = None,
        draws: int | None = None,
        anneal: bool = True,
        random_state: Any = None,
        return_pareto_k: bool = False,
    ) -> Any:
        """The rows with numbers in place of missing values (NaN).

        By default, a missing value becomes its expectation given the observed values of its row, by
        self-normalised importance sampling; a category becomes the most likely one (Mattei &
        Frellsen 2019). This minimises the squared error, but such values vary less than data do: to
        compute statistics of the filled rows, take several `draws`.

        Args:
            X: `[n, d]`.
            k: importance samples per row; `score_k` if None.
            draws: number of draws from p(x_missing | x_observed) instead (multiple imputation).
            anneal: impute rows whose k-hat is above its threshold again, by annealed importance
                sampling (Neal 2001), which takes longer.
            random_state: an int or a RandomState, for reproducible draws; unlike expectations,
                these depend on the order of the rows.
            return_pareto_k: return k-hat of each row and its threshold too, instead of warning of
                rows where it is above this.

        Returns:
            `[n, d]`, or `[draws, n, d]`; observed values are unchanged. Of a frame, a frame, or a
            list of `draws` frames, with whole numbers where the column has no others, and types
            that hold the values. With
            `return_pareto_k`, a tuple of this, k-hat `[n]` of the weights of each row (nan for rows
            without gaps) and the threshold `[n]` above which imputed values are unreliable.

        Raises:
            ValueError: if it was not fitted with `missing`, or for rows unlike those of `fit`.
        """
        rows = self._known_rows(X)
        if self.model_.missing is None:
            raise ValueError("impute needs a model of missing values: fit with missing='at-random'")
        count = check_count("k", self.score_k if k is None else k)
        inner = self._inwards(rows)
        if draws is None:
            found = self._expected(inner, count, anneal=anneal)
        else:
            check_count("draws", draws)
            seed = int(check_random_state(random_state).randint(2**31 - 1))
            key = jax.random.key(seed)
            found = imputed(self.model_, inner, key, draws=draws, k=count, anneal=anneal)
        if not return_pareto_k:
            warn_doubtful(found, anneal=anneal)
        whole = np.where(np.isnan(rows), self._outwards(found.values), rows).astype(rows.dtype)
        form = self._form_ if hasattr(self, "columns_") else form_of(X)
        frame = given_back(self, whole, form, observed=rows, like=X)
        return (frame, found.pareto_k, found.threshold) if return_pareto_k else frame

    def _expected(self, inner: np.ndarray, k: int, *, anneal: bool) -> Imputed:
        """Rows completed by expectations."""
        filling = Filling(importance_particles, k)
        values, khat = self._map(filling, inner, max(1, ROWS // k), _IMPUTE)
        threshold = np.full(len(khat), pareto_threshold(k))
        if anneal and (bad := khat > threshold).any():
            again = Filling(self._annealer(), CHAINS)
            values[bad], khat[bad] = self._map(again, inner[bad], CHAIN_ROWS // CHAINS, _AGAIN)
            threshold[bad] = pareto_threshold(CHAINS)
        return Imputed(values, khat, threshold)

    @float32
    def _annealer(self) -> Sampler:
        return pilot_annealer(self.model_, jax.random.fold_in(jax.random.key(self._key_), _PILOT))

    # --- files ------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> None:
        """Write the fitted estimator to a folder, as safetensors and JSON without any code.

        Raises:
            ValueError: if it is not fitted, if a parameter of the model was changed after `fit`,
                or if `random_state` is not an int or None.
        """
        check_is_fitted(self, "model_")
        if not self._describes(self.model_):
            raise ValueError("parameters of the model were changed after fit: fit it again")
        if not isinstance(self.random_state, int | np.integer | None):
            raise ValueError("random_state is a generator, which cannot be saved: set it to an int")
        parameters = {**self.get_params(deep=False), "observation": as_json(self._kind())}
        learnt = {name: getattr(self, name) for name in (*_LEARNT, *_NAMED) if hasattr(self, name)}
        learnt["_labels_"] = self._labels_
        if is_auto(self.observation):
            parameters["observation"] = self.observation
        if self._form_ is not None:
            learnt["frame"] = frame_json(getattr(self, "columns_", ()), self._form_)
        facts = plain({"parameters": parameters, "learnt": learnt})
        save_model(self.model_, folder, estimator=facts)

    @classmethod
    def load(cls, folder: str | Path) -> "ImportanceWeightedAutoencoder":
        """Read an estimator that `save` wrote, without running code from its files.

        Raises:
            UserError: if it cannot be read, is damaged, or is not an estimator.
        """
        model, facts = load_model(folder), read_about(folder).get("estimator", {})
        try:
            parameters, learnt = dict(facts["parameters"]), dict(facts["learnt"])
            found = cls(**parameters)
            found._form_ = None
            for name in _LEARNT:
                setattr(found, name, learnt[name])
            found.shift_, found.scale_ = (one_each(learnt[name], model.n_data) for name in _ARRAYS)
            found._check_parameters()
            if is_auto(found.observation):
                set_columns(found, *frame_from(learnt["frame"]))
            elif "frame" in learnt:
                found._form_ = form_from(learnt["frame"], ())
                names_of_each([*map(str, found._form_.names)], model.n_data)
            found._check_loaded(model)
            found._labels_ = check_labels(learnt["_labels_"], model.n_data)
            if "feature_names_in_" in learnt:
                found.feature_names_in_ = names_of_each(learnt["feature_names_in_"], model.n_data)
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise UserError(f"there is no estimator in {folder}: {error}") from error
        if model.log_scale is None:  # saved by a version whose models were of scaled columns
            log_scale = jnp.asarray(np.log(found.scale_), jnp.float32)
            model = eqx.tree_at(lambda m: m.log_scale, model, log_scale, is_leaf=_is_none)
        found.model_, found.n_features_in_ = model, model.n_data
        found._n_features_out = model.widths[0]
        return found

    def _describes(self, model: VAE) -> bool:
        """Whether the parameters agree with the model, as far as it records them."""
        if is_auto(self.observation) != hasattr(self, "columns_"):
            return False
        mine = (self.n_components,), self._hidden(), self._kind(), self.missing, self.activation
        its = model.latent_sizes, model.hidden_sizes[0], model.kind, model.missing
        names = str(model.prior_name), str(model.posterior_name)
        kinds = latent_kinds(self.latents, 1)
        same = (*mine, self.prior, self.posterior) == (*its, model.activation, *names)
        return same and kinds == model.latents

    def _check_loaded(self, model: VAE) -> None:
        """Raise ValueError unless the learnt attributes fit the model and the parameters."""
        if not self._describes(model):
            raise ValueError("its parameters do not agree with its model")
        if not isinstance(self._key_, int) or not 0 <= self._key_ < 2**31:
            raise ValueError(f"its key is {self._key_!r}, not a seed below 2**31")
        if not (self.scale_ > 0).all():
            raise ValueError("a scale is not positive")

    def __sklearn_tags__(self) -> Tags:
        """Tags of the estimator for scikit-learn."""
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.input_tags.allow_nan = self.missing is not None
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


_SCORE, _LATENT, _PILOT, _IMPUTE, _AGAIN = 1, 2, 3, 4, 5  # folded into the estimator's key

_ARRAYS = ("shift_", "scale_")
_LEARNT = (
    *_ARRAYS,
    *("_key_", "n_iter_", "loss_curve_", "validation_scores_", "best_validation_score_"),
)
_NAMED = ("feature_names_in_",)


def _is_none(node: Any) -> bool:
    return node is None


@lru_cache
def _settings(
    declaration: Declaration, batch_size: int, hide: float | None, ema: float | None
) -> Settings:
    """Settings of training; cached, because programs are compiled for the object."""
    plain_bound = compose(unmodified(declaration), 1)
    objective, share = compose(declaration, 1), float(hide or 0.0)
    decay = None if ema is None else float(ema)
    return Settings(objective, adam(), batch_size, validated=plain_bound, ema=decay, hide=share)
