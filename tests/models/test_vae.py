"""VAE densities against the reference implementation, initialisation and errors."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import expit

import reference
from cases import quick, quick_rows
from iwae.errors import UserError
from iwae.models.layers import Dense
from iwae.models.likelihoods import observation
from iwae.models.vae import VAE
from iwae.testing import LinearGaussian
from reference import assert_mean, equal
from small import perturbed

SIZES = {
    "one layer": ((3,), ((5, 4),)),
    "two layers": ((3, 2), ((5, 4), (6,))),
    "three layers": ((3, 1, 2), ((5,), (), (4, 6))),
    "no hidden layers": ((2,), ((),)),
}


def make(latent=(3, 2), hidden=((5, 4), (6,)), seed=0, **options):
    return VAE(6, latent, hidden, key=jax.random.key(seed), **options)


def dense_layers(model):
    leaves = jax.tree.leaves(model, is_leaf=lambda node: isinstance(node, Dense))
    return [leaf for leaf in leaves if isinstance(leaf, Dense)]


# Densities


@pytest.mark.parametrize(
    ("sizes", "kind", "activation"),
    quick_rows(
        [
            ("one layer", "bernoulli", "tanh"),
            ("two layers", "gaussian", "softplus"),
            ("three layers", "bernoulli", "relu"),
            ("no hidden layers", "gaussian", "tanh"),
        ],
        *(2, 3),
    ),
)
def test_densities_match_the_reference_implementation(sizes, kind, activation):
    model = perturbed(make(*SIZES[sizes], observation=kind, activation=activation))
    rng = np.random.default_rng(2)
    x = rng.integers(0, 2, 6) if kind == "bernoulli" else rng.normal(size=6)
    z = tuple(rng.normal(size=d) for d in model.latent_sizes)

    @eqx.filter_jit
    def densities(model, x, z):
        q = model.posterior(x)
        terms = q.layer_log_probs(z), model.layer_log_priors(z)
        return terms, q.log_prob(z), model.log_joint(x, z)

    terms, log_q, log_joint = densities(model, jnp.float32(x), tuple(map(jnp.float32, z)))
    layers = reference.layer_log_q(model, x, z), reference.layer_log_p(model, z)
    assert terms == tuple(pytest.approx(layer, rel=1e-5) for layer in layers)
    assert log_q == pytest.approx(sum(layers[0]), rel=1e-5)
    assert log_joint == pytest.approx(reference.log_joint(model, x, z), rel=1e-5)


def test_posterior_draws_have_the_layer_means():
    model, x = perturbed(make()), jnp.ones(6)
    q = model.posterior(x)
    draws = jax.jit(jax.vmap(q.sample))(jax.random.split(jax.random.key(0), 4000))
    means = jax.jit(jax.vmap(q.layer_means))(draws)
    for h, mean in zip(draws, means, strict=True):
        for j in range(h.shape[1]):
            assert_mean(np.asarray(h - mean)[:, j], 0.0, error_at_most=0.05)


def test_encode_returns_the_first_layer_of_q():
    model, x = perturbed(make()), jnp.ones(6)
    net = model.encoder[0]
    mean, scale = model.encode(x)
    np.testing.assert_allclose(mean, net.loc(net.hidden(x)), rtol=1e-6)
    np.testing.assert_allclose(scale, jnp.exp(net.log_scale(net.hidden(x))), rtol=1e-6)
    known = LinearGaussian.random()
    np.testing.assert_array_equal(known.encode(x[:3]).mean, known.posterior(x[:3]).mean)

    class Unknown(LinearGaussian):
        def posterior(self, x):
            return self, x

    with pytest.raises(UserError, match="a tuple does not state its mean and scale"):
        Unknown(np.eye(3), np.zeros(3), 1.0).encode(x[:3])


def test_ancestral_sample_has_every_layer_and_a_binary_example():
    model = make(*SIZES["three layers"])
    z, x = model.sample(jax.random.key(0))
    assert [h.shape for h in z] == [(3,), (1,), (2,)]
    assert x.dtype == jnp.float32
    assert set(np.unique(x)) <= {0.0, 1.0}


def test_model_exposes_its_sizes():
    model = make(*SIZES["three layers"], activation="elu")
    assert (model.latent_sizes, model.hidden_sizes) == SIZES["three layers"]
    assert model.activation == "elu"


@pytest.mark.parametrize("size", quick([1e2, 1e4], 1e4))
def test_log_weights_and_gradients_are_finite_at_extreme_logits(size):
    logits = size * np.array([1.0, -1, 1, -1, 1, -1])
    model = make(output_bias=logits)
    x = jnp.float32([0, 0, 1, 1, 0, 1])

    def log_w(model):
        q = model.posterior(x)
        z = q.sample(jax.random.key(0))
        return model.log_joint(x, z) - q.log_prob(z)

    value, gradient = eqx.filter_jit(eqx.filter_value_and_grad(log_w))(model)
    assert value == pytest.approx(-4 * size, abs=50)
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


# Initialisation


def test_weights_are_glorot_uniform_and_biases_zero():
    model = VAE(50, (20,), ((40,),), key=jax.random.key(3))
    for layer in dense_layers(model):
        limit = np.sqrt(6 / sum(layer.weight.shape))
        weights = np.asarray(layer.weight).ravel() / limit
        assert np.abs(weights).max() < 1
        assert np.abs(weights).max() > 1 - 10 / weights.size  # false alarm: e^-10, one in 22,000
        assert_mean(weights, 0.0, error_at_most=0.05)
        assert_mean(weights**2, 1 / 3, error_at_most=0.03)
        assert not layer.bias.any()


def test_layers_are_initialised_independently():
    model = VAE(40, (40, 40, 40), ((40, 40), (40,), (40,)), key=jax.random.key(3))
    weights = np.stack([np.asarray(layer.weight).ravel() for layer in dense_layers(model)])
    correlations = np.corrcoef(weights) - np.eye(len(weights))
    assert len(weights) == 19
    assert np.abs(correlations).max() < 6 / np.sqrt(weights.shape[1])


def test_seed_determines_the_weights():
    assert equal(make(seed=0), make(seed=0))
    assert not equal(make(seed=0), make(seed=1))


def test_output_bias_makes_the_initial_reconstruction_the_data_mean():
    mean = np.array([0.0, 0.02, 0.1, 0.5, 0.9, 1.0])
    bias = observation("bernoulli", 6).initial_output(mean[None])
    plain, biased = make(), make(output_bias=bias)
    assert biased.output.bias == pytest.approx(bias)
    h = jnp.zeros(3)  # the hidden layers start without biases, so that they map 0 to 0
    assert plain.decode((h,)).mean == pytest.approx(np.full(6, 0.5))
    assert biased.decode((h,)).mean == pytest.approx(np.clip(mean, 0.001, 0.999), rel=1e-5)
    z, _ = plain.sample(jax.random.key(1))
    shift = np.asarray(biased.decode(z).base_dist.logits - plain.decode(z).base_dist.logits)
    assert expit(shift) == pytest.approx(expit(bias), abs=1e-6)


# Errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"latent": (3,)}, "1 latent sizes but 2 lists of hidden sizes"),
        ({"latent": (), "hidden": ()}, "0 latent sizes"),
        ({"latent": (3, 0)}, "at least one unit"),
        ({"hidden": ((5, 0), (6,))}, "at least one unit"),
        ({"activation": "tan"}, "no activation 'tan'; known: tanh, relu"),
        ({"observation": "weibull"}, "no observation 'weibull'"),
        ({"output_bias": np.zeros(5)}, r"has shape \(5,\); this model needs \(6,\)"),
        ({"observation": "gaussian", "output_bias": np.zeros(6)}, r"needs \(12,\)"),
    ],
)
def test_invalid_arguments_raise_user_errors(options, message):
    with pytest.raises(UserError, match=message):
        make(**options)
