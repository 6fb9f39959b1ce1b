"""Networks: convolutions against SciPy, image sizes, saved models and user-defined modules."""

from typing import get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.signal import correlate

import small
from cases import quick, quick_rows
from iwae.config.experiment import make_config
from iwae.config.types import ActivationName
from iwae.data import make_kind
from iwae.errors import UserError
from iwae.evaluation.likelihood import log_likelihoods
from iwae.evaluation.pruning import prune
from iwae.models.likelihoods import observation
from iwae.models.networks import (
    ACTIVATIONS,
    ConvDecoder,
    ConvEncoder,
    Convolution,
    Dense,
    Doubling,
    Halving,
    Network,
    Residual,
    make_network,
)
from iwae.models.vae import VAE
from iwae.reports.gallery import draw_gallery
from iwae.results.likelihood import evaluate_run
from iwae.runs.jobs import make_job
from iwae.runs.metrics import read_metrics
from iwae.runs.model_files import load_model, save_model
from iwae.testing import check_latent_model
from reference import assert_mean, equal
from small import perturbed


def conv(shape=(4, 4), channels=(3, 4), blocks=0):
    return Network("conv", channels, blocks, shape)


def make(network, latent=(3,), hidden=((5,),), seed=0, **options):
    n_data = int(np.prod(network.shape)) if network.shape else 6
    return VAE(n_data, latent, hidden, network=network, key=jax.random.key(seed), **options)


# --- layers -----------------------------------------------------------------------------------


def cross_correlation(image, weight):
    """Return the valid cross-correlation of an image with the weights, `[h, w, c_out]`."""
    image, weight = np.float64(image), np.float64(weight)
    return np.stack(
        [
            sum(
                correlate(image[..., i], weight[..., i, o], mode="valid")
                for i in range(image.shape[-1])
            )
            for o in range(weight.shape[-1])
        ],
        axis=-1,
    )


def padded(image, after=(1, 1)):
    return np.pad(image, ((1, after[0]), (1, after[1]), (0, 0)))


def layer_and_image(layer, h, w):
    layer = perturbed(layer(2, 3, key=jax.random.key(0)))
    return layer, jnp.float32(np.random.default_rng(0).normal(size=(h, w, 2)))


@eqx.filter_jit
def apply(layer, image):
    return layer(image)


@eqx.filter_jit
def apply_transpose(layer, like, image):
    """Apply the transpose of a layer without bias; `like` is an input of the layer."""
    return jax.linear_transpose(layer, like)(image)[0]


SIZES = quick_rows([(8, 8), (7, 4), (1, 5), (2, 2)], 1, 2)


@pytest.mark.parametrize(("h", "w"), SIZES)
def test_convolution_matches_scipy(h, w):
    layer, image = layer_and_image(Convolution, h, w)
    expected = cross_correlation(padded(image), layer.weight) + np.asarray(layer.bias)
    np.testing.assert_allclose(layer(image), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("h", "w"), SIZES)
def test_halving_is_a_convolution_of_stride_two(h, w):
    layer, image = layer_and_image(Halving, h, w)
    full = cross_correlation(padded(image, (1 + h % 2, 1 + w % 2)), layer.weight)
    expected = full[::2, ::2] + np.asarray(layer.bias)
    assert expected.shape[:2] == (-(-h // 2), -(-w // 2))
    np.testing.assert_allclose(apply(layer, image), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("h", "w"), SIZES)
def test_doubling_convolves_the_image_interleaved_with_zeros(h, w):
    layer, image = layer_and_image(Doubling, h, w)
    between = np.zeros((2 * h + 3, 2 * w + 3, 2))
    between[2 : 2 * h + 2 : 2, 2 : 2 * w + 2 : 2] = image
    expected = cross_correlation(between, layer.weight) + np.asarray(layer.bias)
    np.testing.assert_allclose(apply(layer, image), expected, rtol=1e-4, atol=1e-5)


def test_doubling_is_the_transpose_of_halving():
    halving, _ = layer_and_image(Halving, 6, 8)
    halving = eqx.tree_at(lambda f: f.bias, halving, jnp.zeros(3))
    doubling = Doubling(3, 2, use_bias=False, key=jax.random.key(0))
    turned = halving.weight[::-1, ::-1].transpose(0, 1, 3, 2)
    doubling = eqx.tree_at(lambda f: f.weight, doubling, turned)
    image = np.ones((3, 4, 3), np.float32)
    transposed = apply_transpose(halving, np.zeros((6, 8, 2), np.float32), image)
    np.testing.assert_allclose(apply(doubling, image), transposed, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", quick([Convolution, Halving, Doubling], Halving))
def test_convolutions_are_initialised_with_glorot_variance(layer):
    instance = layer(8, 20, key=jax.random.key(1))
    ones = eqx.tree_at(lambda f: f.weight, instance, jnp.ones_like(instance.weight))
    image = np.zeros((20, 20, 8), np.float32)
    image[10, 10, 0] = 1
    reached = np.asarray(apply(ones, image))  # outputs that one central input reaches
    h, w, _ = reached.shape
    output = np.zeros_like(reached)
    output[h // 2, w // 2, 0] = 1
    seen = np.asarray(apply_transpose(ones, image, output))  # inputs that one output sees
    variance = 2 / float(seen.sum() + reached.sum())
    assert_mean(np.asarray(instance.weight).ravel() ** 2 / variance, 1.0, error_at_most=0.03)
    assert not instance.bias.any()


@pytest.mark.parametrize("layer", [Dense, Convolution])
def test_residual_block_starts_as_the_identity_and_adds_its_branch(layer):
    block = Residual(layer, 3, "tanh", key=jax.random.key(0))
    x = jnp.float32(np.random.default_rng(1).normal(size=(4, 5, 3)[layer is Dense and 2 :]))
    np.testing.assert_array_equal(block(x), x)
    block = perturbed(block)
    expected = x + block.second(jnp.tanh(block.first(x)))
    np.testing.assert_allclose(block(x), expected, rtol=1e-5)
    assert jnp.abs(block(x) - x).max() > 0.1


def test_config_accepts_every_activation():
    assert set(get_args(ActivationName)) == set(ACTIVATIONS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gradient_through_each_activation_is_finite(name):
    model = make(conv(), activation=name)
    gradient = eqx.filter_grad(log_weight)(model, jnp.ones(16))
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


# --- shapes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "channels"),
    quick_rows(
        [
            ((8, 8), (2, 3)),
            ((28, 28), (2, 3)),
            ((27, 30), (2, 3, 2)),
            ((32, 32, 3), (4, 3)),
            ((64, 64, 3), (2, 2, 2)),
            ((105, 105), (2, 2)),
            ((5, 1), (2,)),
            ((64, 64), (2,) * 6),
        ],
        *(2, 3, 6),
    ),
)
@pytest.mark.parametrize("kind", ["bernoulli", "logistic-mixture"])
def test_images_of_any_size_are_encoded_and_decoded(shape, channels, kind):
    network = make_network("conv", shape=shape, channels=channels, blocks=1)
    model = eqx.filter_eval_shape(lambda: make(network, observation=kind))
    d = int(np.prod(shape))

    def both(model, x):
        q = model.posterior(x)
        z = q.sample(jax.random.key(0))
        return model.encoder[0].features(x), model.decode(z).mean, model.log_joint(x, z)

    features, mean, log_p = eqx.filter_eval_shape(
        both, model, jax.ShapeDtypeStruct((d,), np.float32)
    )
    n = 2 ** len(channels)
    assert features.shape == (-(-shape[0] // n) * -(-shape[1] // n) * channels[-1],)
    assert (mean.shape, log_p.shape) == ((d,), ())


KINDS = {
    "bernoulli": make_kind("bernoulli"),
    "gaussian": make_kind("gaussian"),
    "gaussian-shared": make_kind("gaussian-shared"),
    "categorical": make_kind("categorical", categories=3),
    "logistic-mixture": make_kind("logistic-mixture", mixtures=2),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_output_bias_is_per_value(name):
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 2, (50, 4 * 6 * 3)).astype(np.float32)
    likelihood = observation(KINDS[name], 72)
    bias = likelihood.initial_output(rows)
    model = make(conv((4, 6, 3)), observation=KINDS[name], output_bias=bias)
    expected = likelihood.distribution(jnp.asarray(bias, jnp.float32))
    result = model.decode((jnp.zeros(3),))  # layers without biases map 0 to 0
    for a, b in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("name", "shape"), quick_rows([("gaussian", (4, 6)), ("categorical", (4, 4, 3))], 1)
)
def test_value_order_matches_the_observation(name, shape):
    """Inputs and outputs are ordered as in the observation: value by value, each an image."""
    d = int(np.prod(shape))
    model = make(conv(shape, (2,)), hidden=((),), observation=KINDS[name])
    decoder = model.output
    last = decoder.doublings[-1]
    per_value = decoder.bias.shape[0] // d
    # Every weight of output channel (p, c) is 10 p + c + 1, and its input image is constant.
    channels = [10 * p + c + 1 for p in range(per_value) for c in range(d // (shape[0] * shape[1]))]
    weight = jnp.zeros_like(last.weight).at[1:3, 1:3].set(jnp.float32(channels))
    start = eqx.tree_at(lambda s: s.bias, decoder.start, jnp.ones_like(decoder.start.bias))
    start = eqx.tree_at(lambda s: s.weight, start, jnp.zeros_like(start.weight))
    decoder = eqx.tree_at(lambda o: (o.start, o.doublings[-1].weight), decoder, (start, weight))
    outputs = np.asarray(apply(decoder, np.zeros(3, np.float32))).reshape(per_value, *shape)
    assert (outputs.std(axis=(1, 2)) / outputs[:, 0, 0]).max() < 1e-5  # the same at all pixels
    values = outputs[:, 0, 0].ravel() / outputs[:, 0, 0].ravel()[0]
    np.testing.assert_allclose(values, channels, rtol=1e-6)
    # This first convolution passes the image itself to the encoder.
    features = model.encoder[0].features
    pick = jnp.zeros_like(features.halvings[0].weight).at[1, 1, :, 0].set(1.0)
    features = eqx.tree_at(lambda f: f.halvings[0].weight, features, pick)
    encoding = observation(KINDS[name], d).encoding
    n_inputs = encoding.n_inputs if encoding else d
    x = np.float32(np.random.default_rng(0).normal(size=n_inputs)) / 10
    seen = np.asarray(apply(features, x)).reshape(shape[0] // 2, shape[1] // 2, 2)[..., 0]
    summed = x.reshape(n_inputs // d, shape[0], shape[1], -1).sum(axis=(0, 3))
    np.testing.assert_allclose(seen, np.tanh(summed[::2, ::2]), rtol=1e-5, atol=1e-6)


# --- models -----------------------------------------------------------------------------------


def log_weight(model, x):
    q = model.posterior(x)
    z = q.sample(jax.random.key(7))
    return model.log_joint(x, z) - q.log_prob(z)


CASES = {
    "mlp": (Network(), "bernoulli"),
    "residual mlp": (Network(blocks=2), "gaussian"),
    "conv": (conv(), "bernoulli"),
    "residual conv": (conv((3, 4), (2, 3), 1), "gaussian-shared"),
    "colours": (conv((2, 2, 3), (4,)), "logistic-mixture"),
    "categories": (conv((3, 3), (4,)), "categorical"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_model_satisfies_the_contract(case):
    network, kind = CASES[case]
    model = perturbed(make(network, observation=KINDS[kind]), size=0.2)
    _, x = model.sample(jax.random.key(3))
    check_latent_model(model, x, jax.random.key(4), draws=2000)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_gradient_reaches_every_parameter(case):
    network, kind = CASES[case]
    model = perturbed(make(network, latent=(3, 2), hidden=((5,), (4,)), observation=KINDS[kind]))
    _, x = model.sample(jax.random.key(3))
    gradient = eqx.filter_jit(eqx.filter_grad(log_weight))(model, x)
    without_gradient = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradient)
        if not leaf.any()
    ]
    assert without_gradient == []


@pytest.mark.parametrize("case", quick(CASES, "residual conv", "categories"))
def test_saved_model_loads_bit_for_bit(case, tmp_path):
    network, kind = CASES[case]
    model = make(network, observation=KINDS[kind])
    save_model(model, tmp_path)
    result = load_model(tmp_path)
    assert jax.tree.structure(result) == jax.tree.structure(model)
    assert small.bits(result) == small.bits(model)
    assert result.network == network


def test_mlp_description_and_parameter_names_are_unchanged(tmp_path):
    model = make(Network())
    assert set(model.architecture()) == {
        *("n_data", "latent_sizes", "hidden_sizes", "observation", "activation")
    }
    save_model(model, tmp_path)
    assert make(make_network("mlp")).network == Network()
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(model)]
    assert names == [
        *(f".encoder[0].{name}" for name in MLP),
        *(f".decoder_hidden.layers[0].{name}" for name in ("weight", "bias")),
        *(".output.weight", ".output.bias"),
    ]


MLP = [
    f"{layer}.{name}"
    for layer in ("hidden.layers[0]", "loc", "log_scale")
    for name in ("weight", "bias")
]


@pytest.mark.parametrize(
    ("network", "hidden"),
    quick_rows([(n, h) for n in (conv(blocks=1), Network(blocks=1)) for h in ((), (5,))], 2),
)
def test_pruning_drops_units_at_zero(network, hidden):
    model = perturbed(make(network, hidden=(hidden,)))
    keep = np.array([True, False, True])
    pruned = prune(model, [keep])
    assert pruned.latent_sizes == (2,)
    z = jnp.float32([0.3, 0.0, -0.7])
    full, reduced = (m.decode((h,)).mean for m, h in ((model, z), (pruned, z[keep])))
    np.testing.assert_allclose(reduced, full, rtol=1e-5)
    x = jnp.ones(model.n_data)
    np.testing.assert_allclose(
        pruned.posterior(x).first.mean, model.posterior(x).first.mean[keep], rtol=1e-5
    )


# --- user-defined modules ---------------------------------------------------------------------


def user_modules(seed=0):
    encoder_key, decoder_key = jax.random.split(jax.random.key(seed))
    return {
        "encoder": eqx.nn.MLP(6, 4, 8, 1, key=encoder_key),
        "decoder": eqx.nn.MLP(3, 12, 8, 1, jnp.tanh, key=decoder_key),
    }


def user_model(seed=0, **changes):
    modules = {**user_modules(seed), **changes}
    return VAE(*(6, (3,), ((),)), observation="gaussian", **modules, key=jax.random.key(seed))


@pytest.mark.slow
def test_user_modules_make_a_valid_model():
    model = perturbed(user_model(), size=0.2)
    x = jnp.float32(np.random.default_rng(0).normal(size=6))
    check_latent_model(model, x, jax.random.key(4), draws=2000)
    q = model.posterior(x)
    np.testing.assert_allclose(q.first.mean, model.encoder[0].loc(model.encoder[0].features(x)))
    outputs = model.output.module(jnp.ones(3)) + model.output.bias
    np.testing.assert_allclose(model.decode((jnp.ones(3),)).mean, outputs[:6], rtol=1e-6)


def test_one_user_module_combines_with_the_network():
    model = make(conv((2, 3), (2,)), decoder=eqx.nn.Linear(5, 6, key=jax.random.key(0)))
    assert isinstance(model.encoder[0].features, ConvEncoder)
    assert model.own == ("decoder",)
    model = make(conv((2, 3), (2,)), encoder=eqx.nn.Identity())
    assert isinstance(model.output, ConvDecoder)
    assert model.own == ("encoder",)


def test_user_modules_load_into_a_model_of_the_same_structure(tmp_path):
    save_model(perturbed(user_model()), tmp_path)
    result = load_model(tmp_path, like=user_model(1))
    assert equal(*(eqx.filter(m, eqx.is_array) for m in (result, perturbed(user_model()))))
    x = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    values = [
        log_likelihoods(m, x, jax.random.key(0), k=3) for m in (result, perturbed(user_model()))
    ]
    np.testing.assert_array_equal(*values)
    with pytest.raises(UserError, match=r"modules of its author's own.*load_model\(folder, like="):
        load_model(tmp_path)
    wider = eqx.nn.MLP(3, 12, 9, 1, jnp.tanh, key=jax.random.key(0))
    with pytest.raises(UserError, match=r"does not fit this configuration: \.output\.module"):
        load_model(tmp_path, like=user_model(decoder=wider))
    with pytest.raises(UserError, match="describes another model"):
        load_model(tmp_path, like=make(Network()))


def test_user_modules_with_wrong_outputs_are_rejected():
    with pytest.raises(UserError, match="decoder returns 5 numbers, but the observation needs"):
        user_model(decoder=eqx.nn.Linear(3, 5, key=jax.random.key(0)))
    with pytest.raises(UserError, match="encoder must map a vector to a float32 vector"):
        user_model(encoder=eqx.nn.Lambda(jnp.sum))


def test_decoder_without_a_first_dense_layer_cannot_be_pruned():
    with pytest.raises(
        UserError, match=r"cannot be pruned: give the model a dense layer before it"
    ):
        prune(user_model(), [np.array([True, False, True])])


# --- errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "cnn"}, "no network 'cnn'; known: mlp, conv"),
        ({"name": "conv"}, r"needs images of shape \[h, w\] or \[h, w, c\], not \[\]"),
        ({"name": "conv", "shape": (4,)}, r"not \[4\]: give the shape"),
        ({"name": "mlp", "channels": (3,)}, "channels go with network 'conv'"),
        ({"name": "mlp", "blocks": -1}, "blocks must be a number from 0 to 100"),
        ({"name": "conv", "shape": (4, 4), "blocks": 10**9}, "blocks must be a number from 0 to"),
        ({"name": "conv", "shape": (4, 4), "channels": (3, 0)}, "at least one unit"),
        ({"name": "conv", "shape": (4, 3), "channels": (3,) * 3}, "4 x 3 pixels can be halved 2"),
    ],
)
def test_invalid_network_options_are_rejected(options, message):
    with pytest.raises(UserError, match=message):
        make_network(**options)


def test_incompatible_networks_are_rejected():
    network = conv((2, 3), (2,))
    with pytest.raises(UserError, match=r"shape \[2, 3\] have 6 values, but an example has 5"):
        VAE(5, (2,), ((3,),), network=network, key=jax.random.key(0))
    table = make_kind("table", columns=("gaussian",) * 6)
    with pytest.raises(UserError, match="'table' does not have: use network 'mlp'"):
        make(network, observation=table)
    with pytest.raises(UserError, match="replace all of network 'conv'"):
        user_model(network=conv((2, 3), (2,)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"network": "cnn"}, "network"),
        ({"channels": (3,)}, "channels needs network 'conv'"),
        ({"network": "conv", "channels": ()}, "channels"),
        ({"blocks": -1}, "blocks"),
    ],
)
def test_invalid_config_values_are_rejected(values, message):
    with pytest.raises(UserError, match=message):
        make_config(values, "here")


def test_conv_network_rejects_data_without_an_image_shape():
    config = make_config({"dataset": "circle", "network": "conv"}, "here")
    with pytest.raises(UserError, match=r"needs images of shape .*, not \[2\]"):
        make_job(config)


# --- end to end -------------------------------------------------------------------------------

CONV = {"network": "conv", "channels": (2, 3), "blocks": 1}


@pytest.mark.slow
def test_convolutional_run_trains_evaluates_and_draws_figures(tmp_path):
    run = tmp_path / "run"
    small.train_in(run, **CONV)
    rows = read_metrics(run)
    assert rows[-1]["validation_bound"][0] > rows[0]["validation_bound"][0] + 0.1
    model = load_model(run / "models" / "final-0")
    assert model.network == Network("conv", (2, 3), 1, (4, 4))
    record = evaluate_run(run, ks=(3,), pruned=True)
    assert np.isfinite(record["log_likelihood"])
    assert record["config"]["channels"] == [2, 3]
    drawn = {path.stem for path in draw_gallery(run)}
    assert "samples" in drawn
    assert not any(name.startswith("filters") for name in drawn)
    with pytest.raises(
        UserError, match=r"network of the model in .* is conv 2 3, 1 residual block"
    ):
        make_job(small.config(init_from=str(run)))


@pytest.mark.slow
def test_replicate_equals_a_run_with_its_seed(tmp_path):
    small.train_in(tmp_path / "both", **CONV, replicates=2, epochs=1)
    small.train_in(tmp_path / "second", **CONV, seed=1, epochs=1)
    both, second = (
        load_model(tmp_path / p) for p in ("both/models/final-1", "second/models/final-0")
    )
    assert small.bits(both) == small.bits(second)
