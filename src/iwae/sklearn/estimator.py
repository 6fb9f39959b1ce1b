"""The scikit-learn interface: an estimator built on the other modules.

It follows scikit-learn's conventions: the constructor only stores its arguments, learnt attributes
end in an underscore, rows are examples, and bad input raises a ValueError in scikit-learn's words.
"""

import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np
from sklearn.base import (
    BaseEstimator,
    ClassNamePrefixFeaturesOutMixin,
    DensityMixin,
    TransformerMixin,
)
from sklearn.utils import Tags, check_array, check_random_state
from sklearn.utils.validation import check_is_fitted

from iwae.data.scaling import Scaling
from iwae.evaluation.examples import CHAIN_ROWS, ROWS, gather_examples, map_examples
from iwae.evaluation.imputation import Imputed, imputed
from iwae.evaluation.likelihood import likelihood_chunk_length, streamed_log_likelihood
from iwae.precision import float32
from iwae.sklearn.callbacks import CallbackSupportMixin, with_callbacks
from iwae.sklearn.data_frames import (
    data_frame_form,
    describe,
    set_data_frame_columns,
    takes_data_frames,
    to_data_frame_output,
)
from iwae.sklearn.fitting import fit_model, fitting_rows
from iwae.sklearn.input_rows import input_row_standards, read_rows
from iwae.sklearn.mapping import (
    ANNEALING_CHAINS,
    AT_A_TIME,
    LATENT,
    SCORE,
    Likelihood,
    map_expected_rows,
    map_rows,
    mapped_annealing,
    mapped_decoding,
    mapped_draw,
    mapped_encoder_mean,
    mapped_snis_mean,
)
from iwae.sklearn.parameters import check_count, check_parameters, kind_from_parameters
from iwae.sklearn.storing import load_estimator, save_estimator
from iwae.wording import count_in_words


class ImportanceWeightedAutoencoder(
    CallbackSupportMixin,
    ClassNamePrefixFeaturesOutMixin,
    TransformerMixin,
    DensityMixin,
    BaseEstimator,
):
    """Importance weighted autoencoder, as a transformer and a density estimator.

    An encoder and a decoder are trained together by maximising a bound on the log-likelihood (Burda
    et al. 2016, arXiv 1509.00519). `transform` gives the posterior mean of a row's latent
    variables, `score_samples` its log-likelihood.

    Parameters:
        n_components: number of latent variables.
        hidden_layer_sizes: units of each layer between data and latents.
        latents: the kind of latent variables: "normal", "bernoulli" for bits, or "categorical:C"
            for one-hot vectors of C categories, each of which makes C columns of `transform`.
        observation: the kind of data: "gaussian", "gaussian-shared", "bernoulli", "poisson",
            "negative-binomial", "logistic-mixture", "discretised-gaussian"; with its parameter,
            `{"name": "categorical", "categories": 4}`; or a list with the kind of each column,
            `["gaussian", "poisson", "categorical:4"]`; or "auto" for a data frame, whose kinds of
            columns are chosen by a rule and shown in `columns_`.
        missing: "at-random" if values may be missing (NaN), in `fit` and afterwards: the bounds are
            then on the observed values (Mattei & Frellsen 2019). "not-at-random" if the probability
            that a Gaussian value is missing may depend on the value (Ipsen et al. 2021),
            "not-at-random-high" or "-low" if high or low values are known to be missing more often;
            the bounds are then on the observed values and on which values are observed.
        hide: with "at-random", the probability of hiding each observed value whenever training
            visits its row, so that the encoder learns to read gaps; None for 0.1 if the rows of
            `fit` have no gaps, otherwise 0.
        unknown: with "auto", the treatment of a word that `fit` has not seen: "error" to refuse it,
            "missing" to take it for a missing value.
        objective: the bound to maximise; `iwae objectives` lists them.
        objective_params: further options of the objective, such as `{"m": 4}` for "miwae" or
            `{"beta": 0.5}` for "ciwae".
        k: importance samples per row and training step.
        gradient: the gradient estimator; the objective's own if None.
        activation: nonlinearity of the hidden layers.
        prior: p(z): "normal", or learned: "mixture:K" of K Gaussians, "vamp:K" of the encoder at K
            pseudo-inputs, initialised at random training rows, or "flow:N" of N coupling layers.
        posterior: the encoder's distribution: "normal", or "flow:N".
        standardize: scale Gaussian columns to mean 0 and standard deviation 1 for training.
            Likelihoods, samples and reconstructions are in the units of the data.
        learning_rate_init: initial learning rate of Adam; it falls to 0.3 and 0.1 of this after a
            half and three quarters of `max_iter`.
        ema: decay of a moving average of the weights, over about 1 / (1 - ema) steps, which is
            validated and kept; None for no average.
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
        check_parameters(self)
        # A fit that fails keeps nothing of an earlier one.
        for name in ("model_", "columns_", "_form_"):
            self.__dict__.pop(name, None)
        if takes_data_frames(self.observation):
            set_data_frame_columns(self, *describe(X))
        kind = kind_from_parameters(self)
        rows = read_rows(self, X, kind, reset=True)
        self._form_ = data_frame_form(X)
        random = check_random_state(self.random_state)
        self._key_ = int(random.randint(2**31 - 1))
        train, validation = fitting_rows(self, rows, random)
        self.shift_, self.scale_ = input_row_standards(train, kind, standardize=self.standardize)
        if validation is not None:
            validation = self._scaling.inwards(validation, "X")
        fit_model(self, X, kind, self._scaling.inwards(train, "X"), validation)
        return self

    @property
    def _scaling(self) -> Scaling:
        """The map between the units of the data and those of the model."""
        return Scaling(self.shift_, self.scale_)

    def _known_rows(self, X: Any) -> np.ndarray:
        """Rows for a fitted model, in the units of the data."""
        check_is_fitted(self, "model_")
        return read_rows(self, X, self.model_.kind)

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
        if not isinstance(latent, str) or latent not in ("mean", "snis"):
            raise ValueError(f"latent == {latent!r}, must be one of mean, snis")
        inner = self._scaling.inwards(rows, "X")
        if latent == "mean":
            found = map_rows(self, mapped_encoder_mean, inner, AT_A_TIME, LATENT)
        else:
            k = check_count("score_k", self.score_k)
            found = map_rows(self, mapped_snis_mean(k), inner, max(1, ROWS // k), LATENT)
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
        out = map_rows(self, mapped_decoding, z.astype(np.float32), AT_A_TIME, LATENT)
        out = self._scaling.outwards(out).astype(z.dtype)
        return to_data_frame_output(self, out, self._form_, like=X)

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
            mapped_draw,
            self.model_,
            np.zeros((n_samples, 1), np.float32),
            jax.random.key(seed),
            batch_size=AT_A_TIME,
            slab_size=n_samples,
        )
        return to_data_frame_output(
            self, self._scaling.outwards(gather_examples(slabs)), self._form_
        )

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
            chunk = likelihood_chunk_length(count)
            fn, batch = streamed_log_likelihood(count, chunk), max(1, ROWS // chunk)
        elif method == "ais":
            chains = ANNEALING_CHAINS if k is None else check_count("k", k)
            check_count("temperatures", temperatures)
            fn = mapped_annealing(self, chains, temperatures)
            batch = max(1, CHAIN_ROWS // chains)
        else:
            raise ValueError(f"method == {method!r}, must be 'is' or 'ais'")
        inner = self._scaling.inwards(rows, "X")
        return map_rows(self, Likelihood(fn), inner, batch, SCORE).astype(np.float64)

    def score(self, X: Any, y: Any = None) -> float:  # noqa: ARG002 - scikit-learn's signature
        """The mean log-likelihood of the rows from `score_k` importance samples, nats."""
        return float(self.score_samples(X).mean())

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
                rows above their threshold.

        Returns:
            `[n, d]`, or `[draws, n, d]`, with observed values unchanged. For a frame, a frame or a
            list of `draws` frames, with whole numbers in columns of whole numbers, and types that
            hold the values. With `return_pareto_k`, a tuple of this, k-hat `[n]` of the weights of
            each row (nan for rows without gaps) and the threshold `[n]` above which imputed values
            are unreliable.

        Raises:
            ValueError: if it was not fitted with `missing`, or for rows unlike those of `fit`.
        """
        rows = self._known_rows(X)
        if self.model_.missing is None:
            raise ValueError("impute needs a model of missing values: fit with missing='at-random'")
        count = check_count("k", self.score_k if k is None else k)
        inner = self._scaling.inwards(rows, "X")
        if draws is None:
            found = map_expected_rows(self, inner, count, anneal=anneal)
        else:
            check_count("draws", draws)
            seed = int(check_random_state(random_state).randint(2**31 - 1))
            key = jax.random.key(seed)
            found = imputed(self.model_, inner, key, draws=draws, k=count, anneal=anneal)
        if not return_pareto_k:
            _warn_doubtful(found, anneal=anneal)
        filled = self._scaling.outwards(found.values)
        whole = np.where(np.isnan(rows), filled, rows).astype(rows.dtype)
        form = self._form_ if hasattr(self, "columns_") else data_frame_form(X)
        frame = to_data_frame_output(self, whole, form, observed=rows, like=X)
        return (frame, found.pareto_k, found.threshold) if return_pareto_k else frame

    def save(self, folder: str | Path) -> None:
        """Write the fitted estimator to a folder, as safetensors and JSON without any code.

        Raises:
            ValueError: if it is not fitted, if a parameter of the model was changed after `fit`,
                or if `random_state` is not an int or None.
        """
        check_is_fitted(self, "model_")
        save_estimator(self, folder)

    @classmethod
    def load(cls, folder: str | Path) -> "ImportanceWeightedAutoencoder":
        """Read an estimator that `save` wrote, without running code from its files.

        Raises:
            UserError: if it cannot be read, is damaged, or is not an estimator.
        """
        return load_estimator(cls, folder)

    def __sklearn_tags__(self) -> Tags:
        """Tags of the estimator for scikit-learn."""
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.input_tags.allow_nan = self.missing is not None
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def _warn_doubtful(found: Imputed, *, anneal: bool) -> None:
    """Warn of rows whose imputed values are unreliable, by k-hat of their weights."""
    count = int((found.pareto_k > found.threshold).sum())
    if count:
        warnings.warn(
            f"k-hat is too large for {count_in_words(count, 'row')}, whose imputed values are "
            f"unreliable: {'raise max_iter, or hide' if anneal else 'anneal them'}",
            UserWarning,
            stacklevel=3,
        )
