"""Hiding observed values in training: the bound, the masks and the default share."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gaps import IncompleteLinearGaussian, log_normal, model_and_rows, moments
from iwae import ImportanceWeightedAutoencoder, bound, iwae, train
from iwae.config.experiment import make_config, stored
from iwae.config.toml import config_toml_values
from iwae.errors import UserError
from iwae.objectives.objective import as_objective
from iwae.runs.jobs import make_job
from iwae.runs.planning import describe_plan
from iwae.sklearn import fitting
from iwae.training.optimizers import adam
from iwae.training.steps import Settings, step_example, step_loss
from small import conditional_model

D, C = 4, 3
SHARE = 0.4
ONE = bound(iwae, k=1)
SETTINGS = Settings(as_objective(bound(iwae, k=2)), adam(), 64, hide=SHARE)


@eqx.filter_jit
def loss_and_examples(model, rows, key):
    """Return the loss of a batch, and its examples as the model sees them."""
    seen = jax.vmap(lambda raw, i: step_example(model, raw, i, key, SETTINGS)[1])
    loss, _ = step_loss(model, rows, key, SETTINGS.objective.init(), SETTINGS)
    return loss, seen(rows, jnp.arange(len(rows)))


def complete_rows():
    model = IncompleteLinearGaussian(
        model_and_rows()[0].complete, 1.0
    )  # q is the exact posterior given the values that it sees
    keys = jax.random.split(jax.random.key(5), SETTINGS.batch_size)
    return model, jax.jit(jax.vmap(lambda key: model.sample(key)[1]))(keys)


def test_bound_is_on_the_density_of_the_remaining_values():
    model, rows = complete_rows()
    (mean, covariance), each = moments(model), []
    loss, seen = loss_and_examples(model, rows, jax.random.key(0))
    for x in np.asarray(seen):
        o = ~np.isnan(x)
        each.append(log_normal(x[o], mean[o], covariance[np.ix_(o, o)]) if o.any() else 0.0)
    assert loss == pytest.approx(-np.mean(each), rel=1e-5)


def test_masks_differ_between_visits_and_repeat_with_the_key():
    model, rows = complete_rows()
    first, again, other = (
        np.isnan(loss_and_examples(model, rows, jax.random.key(seed))[1]) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    n = first.size
    for mask in (first, other):
        assert abs(mask.mean() - SHARE) < 4 * (SHARE * (1 - SHARE) / n) ** 0.5
    together = SHARE**2  # for independent masks
    for pair in (first & other, first[1:] & first[:-1], first[:, 1:] & first[:, :-1]):
        assert abs(pair.mean() - together) < 4 * (together * (1 - together) / pair.size) ** 0.5


def test_labels_are_not_hidden():
    model, settings = conditional_model(D, C), SETTINGS._replace(hide=0.99)
    rows = jnp.concatenate([jnp.ones((C, D)), jnp.eye(C)], axis=1)
    key = jax.random.key(0)
    given, x, _ = eqx.filter_jit(step_example)(model, rows[1], jnp.int32(0), key, settings)
    assert x.shape == (D,)
    assert np.isnan(x).any()
    leaves = jax.tree.leaves(eqx.filter(given, eqx.is_inexact_array))
    assert not any(np.isnan(leaf).any() for leaf in leaves)


def table(path, *, gaps):
    rows = np.random.default_rng(0).normal(size=(60, 3)).round(3).astype(str)
    if gaps:
        rows[::7, 1] = ""
    path.write_text("\n".join(["a,b,c", *map(",".join, rows)]) + "\n")
    return str(path)


@pytest.mark.parametrize(
    ("gaps", "given", "hidden"),
    [
        (False, {}, None),
        (False, {"missing": "at-random"}, 0.1),
        (True, {"missing": "at-random"}, 0.0),
        (True, {"missing": "at-random", "hide": 0.3}, 0.3),
        (False, {"missing": "at-random", "hide": 0.0}, 0.0),
        (False, {"missing": "not-at-random"}, 0.0),
    ],
)
def test_default_share_depends_on_the_data_and_is_reported(tmp_path, gaps, given, hidden):
    path = table(tmp_path / "a.csv", gaps=gaps)
    config = {"dataset": path, "latent_sizes": (1,), "hidden_sizes": ((),), **given}
    job = make_job(make_config(config, "here"))
    assert job.config.hide == hidden
    assert job.stages[0].settings.hide == (hidden or 0.0)
    assert ("hidden: 10% of the observed values" in describe_plan(job)) == (hidden == 0.1)
    # A run resumes with the share that it stored; runs older than the option hide nothing.
    again = config_toml_values(job.config)
    assert make_config(stored(again), "there").hide == hidden
    again.pop("hide", None)
    assert make_config(stored(again), "there").hide == (0.0 if given else None)


def test_hiding_requires_values_missing_at_random():
    for missing in (None, "not-at-random"):
        with pytest.raises(UserError, match="hide needs missing 'at-random'"):
            make_config({"missing": missing, "hide": 0.1}, "here")
        with pytest.raises(ValueError, match="needs missing='at-random'"):
            ImportanceWeightedAutoencoder(missing=missing, hide=0.1).fit(np.eye(3))
    with pytest.raises(ValueError, match=r"hide == 1, must be None or a number from 0 to below 1"):
        ImportanceWeightedAutoencoder(missing="at-random", hide=1).fit(np.eye(3))
    for share, message in ((1.5, "hide is 1.5"), (0.1, "hide needs a model of gaps")):
        with pytest.raises(UserError, match=message):
            train(
                conditional_model(D, C),
                np.eye(D + C),
                bound(iwae, k=1),
                key=jax.random.key(0),
                epochs=1,
                hide=share,
            )


@pytest.mark.parametrize(("gaps", "given", "hidden"), [(0, None, 0.1), (1, None, 0), (1, 0.3, 0.3)])
def test_estimator_has_the_same_default(monkeypatch, gaps, given, hidden):
    class Intercepted(Exception):  # noqa: N818 - stops before the compilation
        pass

    def stop(*arguments):
        raise Intercepted(arguments[5].hide)

    monkeypatch.setattr(fitting, "training_loop", stop)
    x = np.random.default_rng(0).normal(size=(40, 3))
    x[:20:2, 0] = np.nan if gaps else 0.0
    model = ImportanceWeightedAutoencoder(1, missing="at-random", hide=given, early_stopping=False)
    with pytest.raises(Intercepted, match=f"^{hidden}"):
        model.fit(x)
