"""Conditional models: densities given a label, classification, and runs end to end."""

import json
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp

import small
from cases import quick
from iwae.config.experiment import make_config
from iwae.data import load_dataset
from iwae.errors import UserError
from iwae.evaluation.classification import (
    class_log_likelihoods,
    label_log_probabilities,
    marginalise_classes,
)
from iwae.evaluation.gradient_signal import gradient_signal_sample
from iwae.evaluation.likelihood import log_likelihoods
from iwae.evaluation.scores import marginal_scores
from iwae.evaluation.units import active_units
from iwae.models.conditional import ConditionalVAE, conditional_examples
from iwae.models.networks import Network
from iwae.models.priors import LabelPrior
from iwae.models.vae import VAE
from iwae.objectives.bounds import iwae
from iwae.objectives.building import build_objective
from iwae.objectives.declaration import Declaration
from iwae.objectives.particle_objectives import bound
from iwae.reports.gallery import draw_gallery
from iwae.results.gradient_signal import gradients_run
from iwae.results.likelihood import evaluate_run
from iwae.runs.metrics import read_metrics
from iwae.runs.model_files import load_model, save_model
from iwae.testing import check_latent_model
from iwae.training.loop import validation_bounds
from iwae.training.optimizers import adam
from iwae.training.steps import Settings, init_state
from small import perturbed, perturbed_conditional, two_halves

D, C = 4, 3
KINDS = {
    "one layer": {},
    "two layers": {"latent_sizes": (3, 2), "hidden_sizes": ((5,), (4,))},
    "no hidden layers": {"latent_sizes": (3, 2), "hidden_sizes": ((), ())},
    "conv": {"network": Network("conv", (3,), 1, (2, 2)), "hidden_sizes": ((),)},
}


def vae(seed=0, **options):
    shape = {"latent_sizes": (2,), "hidden_sizes": ((5,),), **options}
    return VAE(D, **shape, key=jax.random.key(seed))


def make(learned_prior=True, **options):
    return ConditionalVAE(vae(**options), C, learned_prior=learned_prior)


def label(y):
    return jnp.eye(C)[y]


def example(y, seed=0):
    x = np.random.default_rng(seed).integers(0, 2, D)
    return jnp.concatenate([jnp.float32(x), label(y)])


# --- the model --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_label_is_an_input_of_the_first_layer_of_every_network(name):
    """Given a label, only the biases of first layers and the prior change."""
    model = perturbed(make(**KINDS[name]))
    given, blank = model.given(label(1)), LabelPrior(jnp.zeros((2, 2)))
    before, after = (
        dict(jax.tree_util.tree_leaves_with_path(eqx.filter(m, eqx.is_array)))
        for m in (eqx.tree_at(lambda m: m.top, model.vae, blank, is_leaf=is_none), given)
    )
    changed = {
        jax.tree_util.keystr(at) for at in after if not np.array_equal(before[at], after[at])
    }
    expected = set()
    for net in [f".encoder[{l}]" for l in range(len(given.encoder))] + [
        f".prior_nets[{l}]" for l in range(len(given.prior_nets))
    ]:
        has_hidden = len(KINDS[name].get("hidden_sizes", ((5,),))[0]) > 0
        firsts = [".hidden.layers[0]"] if has_hidden else [".loc", ".log_scale"]
        expected |= {f"{net}{first}.bias" for first in firsts}
    hidden = KINDS[name].get("hidden_sizes", ((5,),))[0]
    last = ".output.start" if name == "conv" else ".output"
    expected |= {(".decoder_hidden.layers[0]" if hidden else last) + ".bias", ".top.parameters"}
    assert changed == expected


def is_none(node):
    return node is None


def test_label_selects_the_bias_and_the_prior():
    model = perturbed(make())
    for y in range(C):
        given = model.given(label(y))
        first = given.encoder[0].hidden.layers[0]
        expected = model.vae.encoder[0].hidden.layers[0].bias + model.shifts[0][y]
        np.testing.assert_allclose(first.bias, expected, rtol=1e-6)
        np.testing.assert_allclose(given.prior().mean, model.tops[y, 0], rtol=1e-6)
        np.testing.assert_allclose(given.prior().variance, np.exp(2 * model.tops[y, 1]), rtol=1e-5)


def test_conditional_model_starts_as_the_unconditional_one():
    model, plain = make(), vae()
    for y in range(C):
        x, z = example(y)[:D], (jnp.float32([0.3, -1.2]),)
        log_joint = float(plain.log_joint(x, z))
        assert model.log_joint(example(y), z) == pytest.approx(log_joint, rel=1e-6)
        q, p = model.posterior(example(y)), plain.posterior(x)
        assert q.log_prob(z) == pytest.approx(float(p.log_prob(z)), rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["two layers", "conv"])
def test_conditional_model_satisfies_the_contract(name):
    model = perturbed(make(**KINDS[name]), size=0.3)
    check_latent_model(model, example(2), jax.random.key(1), draws=2000)


@pytest.mark.parametrize("learned_prior", quick([False, True], True))
def test_gradient_reaches_every_parameter_but_the_frequencies(learned_prior):
    model = perturbed(make(learned_prior, **KINDS["two layers"]))
    objective = bound(iwae, k=2)

    def loss(model):
        def one(x, key):
            return objective(*model.condition(x), key)

        # Each label has weights of its own.
        xs, keys = jnp.stack([example(y) for y in range(C)]), jax.random.split(jax.random.key(0), C)
        return jax.vmap(one)(xs, keys).sum()

    gradient = eqx.filter_jit(eqx.filter_grad(loss))(model)
    without_gradient = [
        jax.tree_util.keystr(at)
        for at, leaf in jax.tree_util.tree_leaves_with_path(gradient)
        if not leaf.any()
    ]
    assert without_gradient == [".frequencies"]


def test_labels_are_drawn_with_their_frequencies():
    model = ConditionalVAE(vae(), C, frequencies=np.array([0.5, 0.0, 0.5]))
    draws = jax.jit(jax.vmap(model.sample))(jax.random.split(jax.random.key(0), 2000))[1]
    shares = np.asarray(draws[:, D:]).mean(axis=0)
    assert shares[1] == 0
    assert abs(shares[0] - 0.5) < 5 * 0.5 / math.sqrt(2000)


@pytest.mark.parametrize("learned_prior", [False, True])
def test_saved_conditional_model_loads_bit_for_bit(learned_prior, tmp_path):
    model = perturbed_conditional(make(learned_prior, **KINDS["conv"]))
    save_model(model, tmp_path)
    result = load_model(tmp_path)
    assert jax.tree.structure(result) == jax.tree.structure(model)
    assert small.bits(result) == small.bits(model)


@pytest.mark.parametrize("labels", [{"n_classes": 1}, {"n_classes": 10**12}, {"a": 1}, 3, []])
def test_invalid_label_descriptions_are_rejected(labels, tmp_path):
    save_model(make(), tmp_path)
    description = json.loads((tmp_path / "model.json").read_text())
    description["architecture"]["labels"] = labels
    (tmp_path / "model.json").write_text(json.dumps(description))
    with pytest.raises(UserError):
        load_model(tmp_path)


def test_label_is_appended_to_an_example_and_split_off_again():
    rows = np.arange(3 * D, dtype=np.float32).reshape(3, D)
    examples = conditional_examples(rows, np.array([2, 0, 1]), C)
    np.testing.assert_array_equal(examples[:, :D], rows)
    np.testing.assert_array_equal(examples[:, D:], [[0, 0, 1], [1, 0, 0], [0, 1, 0]])
    model = perturbed_conditional(make())
    for row, y in zip(examples, (2, 0, 1), strict=True):
        given, x = model.condition(jnp.asarray(row))
        np.testing.assert_array_equal(x, row[:D])
        assert small.bits(given) == small.bits(model.given(label(y)))


# --- evaluation -------------------------------------------------------------------------------


def test_class_log_likelihoods_match_the_models_given_the_labels():
    model = perturbed(make(), size=0.5)
    x = np.random.default_rng(0).integers(0, 2, (5, D)).astype(np.float32)
    scores = class_log_likelihoods(model, x, jax.random.key(3), k=7)
    assert scores.shape == (5, C)
    for y in range(C):
        alone = log_likelihoods(model.given(label(y)), x, jax.random.key(3), k=7)
        np.testing.assert_allclose(scores[:, y], alone, rtol=1e-5)
    assert np.ptp(scores, axis=1).min() > 1e-3


@pytest.mark.slow
def test_marginal_density_averages_over_labels():
    shares = np.array([0.6, 0.3, 0.1])
    plain = VAE(1, (2,), ((5,),), observation="gaussian", key=jax.random.key(0))
    model = perturbed_conditional(ConditionalVAE(plain, C, frequencies=shares), size=0.5)
    points = np.linspace(-2, 2, 5)[:, None]
    given = [
        log_likelihoods(model.given(label(y)), np.float32(points), jax.random.key(0), k=20)
        for y in range(C)
    ]
    expected = logsumexp(np.stack(given, axis=1) + np.log(shares), axis=1)
    np.testing.assert_allclose(marginal_scores(model, points, k=20), expected, rtol=1e-5)


def test_label_probabilities_follow_bayes_rule():
    scores = np.array([[-3.0, -2.0, -9.0], [-1000.0, -1000.0, -900.0]])
    frequencies = np.array([0.5, 0.25, 0.25])
    joint = scores + np.log(frequencies)
    expected = joint - logsumexp(joint, axis=1, keepdims=True)
    np.testing.assert_allclose(label_log_probabilities(scores, frequencies), expected)
    np.testing.assert_allclose(marginalise_classes(scores, frequencies), logsumexp(joint, axis=1))
    never = label_log_probabilities(scores, np.array([0.5, 0.5, 0.0]))
    assert (never[:, 2] == -np.inf).all()
    np.testing.assert_allclose(np.exp(never).sum(axis=1), 1)


def test_active_units_are_counted_given_the_labels():
    model = perturbed(make(learned_prior=False), size=0.5)
    rows = np.random.default_rng(0).integers(0, 2, (30, D)).astype(np.float32)
    both = conditional_examples(rows, np.arange(30) % 2, C)
    result = active_units(model, both, jax.random.key(0)).variances[0]
    means = [model.encode(jnp.asarray(row)).mean for row in both]
    np.testing.assert_allclose(result, np.var(means, axis=0), rtol=1e-3)


def test_invalid_arguments_raise_user_errors():
    with pytest.raises(UserError, match="at least two classes, not 1"):
        ConditionalVAE(vae(), 1)
    with pytest.raises(UserError, match=r"frequencies has shape \(2,\), not \(3,\)"):
        ConditionalVAE(vae(), 3, frequencies=np.ones(2))
    own = VAE(
        *(D, (2,), ((),)),
        decoder=eqx.nn.Linear(2, D, key=jax.random.key(0)),
        key=jax.random.key(1),
    )
    with pytest.raises(UserError, match="has no layer for a label"):
        ConditionalVAE(own, 2)
    with pytest.raises(UserError, match="there are 2 examples, but 3 labels"):
        conditional_examples(np.zeros((2, D)), np.zeros(3, int), C)
    with pytest.raises(UserError, match="labels must be whole numbers from 0 to 2"):
        conditional_examples(np.zeros((1, D)), np.array([3]), C)
    rows = np.zeros((2, D), np.float32)
    with pytest.raises(UserError, match="a VAE is not conditional"):
        class_log_likelihoods(vae(), rows, jax.random.key(0), k=2)
    with pytest.raises(UserError, match=r"give \[n, 4\] without labels"):
        class_log_likelihoods(make(), np.zeros((2, D + C)), jax.random.key(0), k=2)


OBJECTIVES = {
    "elbo-analytic": Declaration("elbo-analytic", 2),
    "gdreg": Declaration("iwae", 2, "gdreg"),
    "aiwae": Declaration("aiwae", 2, temperatures=2, leapfrog=1),  # its encoder: elbo-analytic
    "free bits": Declaration("iwae", 2, free_bits=0.1),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OBJECTIVES)
def test_vae_objectives_are_evaluated_given_the_labels(name):
    objective = build_objective(OBJECTIVES[name], layers=1)
    model, settings = perturbed_conditional(make()), Settings(objective, adam(), batch_size=3)
    rows = np.random.default_rng(0).integers(0, 2, (6, D)).astype(np.float32)

    def validated(model, rows):
        state = init_state([model], jax.random.key(0)[None], settings)
        return validation_bounds(state, model, settings, rows)[0]

    labelled = conditional_examples(rows, np.ones(6, int), C)
    assert validated(model, labelled) == pytest.approx(validated(model.given(label(1)), rows))
    draw, key = gradient_signal_sample(objective), jax.random.key(1)
    conditional = draw(model, jnp.asarray(labelled), key)
    plain = draw(model.given(label(1)), jnp.asarray(rows), jax.random.clone(key))
    np.testing.assert_allclose(
        conditional.vae.output.weight, plain.output.weight, rtol=1e-4, atol=1e-6
    )


# --- end to end -------------------------------------------------------------------------------


@pytest.mark.slow
def test_conditional_run_trains_evaluates_draws_and_classifies(tmp_path):
    run = tmp_path / "run"
    options = two_halves(tmp_path / "halves.npz")
    small.train_in(run, **options, label_prior=True)
    rows = read_metrics(run)
    assert rows[-1]["validation_bound"][0] > rows[0]["validation_bound"][0]
    model = load_model(run / "models" / "final-0")
    assert isinstance(model, ConditionalVAE)
    assert (model.n_classes, model.tops is not None) == (2, True)
    data = load_dataset(options["dataset"], labels=True)
    record = evaluate_run(run, ks=(50,))
    key = jax.random.key(0)
    expected = log_likelihoods(model, data.examples("test"), key, k=50).mean()
    assert record["log_likelihood"] == pytest.approx(expected)
    assert record["data"]["classes"] == ["a", "b"]
    drawn = {path.stem for path in draw_gallery(run)}
    assert {"samples", "samples_of_classes", "reconstructions", "filters_last_layer"} <= drawn
    scores = class_log_likelihoods(model, data.test[:, :16], jax.random.key(1), k=20)
    result = label_log_probabilities(scores, np.asarray(model.frequencies)).argmax(axis=1)
    assert (result == data.labels("test")).mean() > 0.9
    with pytest.raises(UserError, match="gradients of such models are not measured"):
        gradients_run(run)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"label_prior": True}, "label_prior needs conditional"),
    ],
)
def test_invalid_config_values_are_rejected(values, message):
    with pytest.raises(UserError, match=message):
        make_config(values, "here")
