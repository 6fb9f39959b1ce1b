"""Convolutions against SciPy, shapes of every size, and models with each network."""

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


def correlated(image, weight):
    """The cross-correlation of an image and weights where all are inside, `[h, w, c_out]`."""
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
def of(layer, image):
    return layer(image)


@eqx.filter_jit
def transpose_of(layer, like, image):
    """The transpose of a layer without a bias, which takes images like this one."""
    return jax.linear_transpose(layer, like)(image)[0]


SIZES = quick_rows([(8, 8), (7, 4), (1, 5), (2, 2)], 1, 2)


@pytest.mark.parametrize(("h", "w"), SIZES)
def test_a_convolution_is_that_of_scipy(h, w):
    layer, image = layer_and_image(Convolution, h, w)
    expected = correlated(padded(image), layer.weight) + np.asarray(layer.bias)
    np.testing.assert_allclose(layer(image), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("h", "w"), SIZES)
def test_a_halving_is_every_second_pixel_of_one(h, w):
    layer, image = layer_and_image(Halving, h, w)
    whole = correlated(padded(image, (1 + h % 2, 1 + w % 2)), layer.weight)
    expected = whole[::2, ::2] + np.asarray(layer.bias)
    assert expected.shape[:2] == (-(-h // 2), -(-w // 2))
    np.testing.assert_allclose(of(layer, image), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("h", "w"), SIZES)
def test_a_doubling_is_one_of_the_image_with_zeros_between(h, w):
    layer, image = layer_and_image(Doubling, h, w)
    between = np.zeros((2 * h + 3, 2 * w + 3, 2))
    between[2 : 2 * h + 2 : 2, 2 : 2 * w + 2 : 2] = image
    expected = correlated(between, layer.weight) + np.asarray(layer.bias)
    np.testing.assert_allclose(of(layer, image), expected, rtol=1e-4, atol=1e-5)


def test_a_doubling_is_the_transpose_of_a_halving():
    halving, _ = layer_and_image(Halving, 6, 8)
    halving = eqx.tree_at(lambda f: f.bias, halving, jnp.zeros(3))
    doubling = Doubling(3, 2, use_bias=False, key=jax.random.key(0))
    turned = halving.weight[::-1, ::-1].transpose(0, 1, 3, 2)
    doubling = eqx.tree_at(lambda f: f.weight, doubling, turned)
    image = np.ones((3, 4, 3), np.float32)
    transposed = transpose_of(halving, np.zeros((6, 8, 2), np.float32), image)
    np.testing.assert_allclose(of(doubling, image), transposed, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", quick([Convolution, Halving, Doubling], Halving))
def test_convolutions_start_with_glorots_variance(layer):
    there = layer(8, 20, key=jax.random.key(1))
    ones = eqx.tree_at(lambda f: f.weight, there, jnp.ones_like(there.weight))
    image = np.zeros((20, 20, 8), np.float32)
    image[10, 10, 0] = 1
    reached = np.asarray(of(ones, image))  # by one input, in the middle
    h, w, _ = reached.shape
    output = np.zeros_like(reached)
    output[h // 2, w // 2, 0] = 1
    seen = np.asarray(transpose_of(ones, image, output))  # by one output
    variance = 2 / float(seen.sum() + reached.sum())
    assert_mean(np.asarray(there.weight).ravel() ** 2 / variance, 1.0, error_at_most=0.03)
    assert not there.bias.any()


@pytest.mark.parametrize("layer", [Dense, Convolution])
def test_a_residual_block_is_the_identity_at_the_start_and_adds_later(layer):
    block = Residual(layer, 3, "tanh", key=jax.random.key(0))
    x = jnp.float32(np.random.default_rng(1).normal(size=(4, 5, 3)[layer is Dense and 2 :]))
    np.testing.assert_array_equal(block(x), x)
    block = perturbed(block)
    expected = x + block.second(jnp.tanh(block.first(x)))
    np.testing.assert_allclose(block(x), expected, rtol=1e-5)
    assert jnp.abs(block(x) - x).max() > 0.1


def test_every_activation_is_an_option():
    assert set(get_args(ActivationName)) == set(ACTIVATIONS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_trained_through(name):
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
def test_images_of_any_size_go_through(shape, channels, kind):
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
def test_the_output_bias_is_one_for_each_value(name):
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 2, (50, 4 * 6 * 3)).astype(np.float32)
    what = observation(KINDS[name], 72)
    bias = what.initial_output(rows)
    model = make(conv((4, 6, 3)), observation=KINDS[name], output_bias=bias)
    expected = what.distribution(jnp.asarray(bias, jnp.float32))
    found = model.decode((jnp.zeros(3),))  # layers without biases map 0 to 0
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("name", "shape"), quick_rows([("gaussian", (4, 6)), ("categorical", (4, 4, 3))], 1)
)
def test_values_keep_their_places(name, shape):
    """The order of outputs and inputs is that of the observation: value by value, each an image."""
    d = int(np.prod(shape))
    model = make(conv(shape, (2,)), hidden=((),), observation=KINDS[name])
    decoder = model.output
    last = decoder.doublings[-1]
    per_value = decoder.bias.shape[0] // d
    # Every weight of output channel (p, c) is 10 p + c + 1, and the image before it constant.
    channels = [10 * p + c + 1 for p in range(per_value) for c in range(d // (shape[0] * shape[1]))]
    weight = jnp.zeros_like(last.weight).at[1:3, 1:3].set(jnp.float32(channels))
    start = eqx.tree_at(lambda s: s.bias, decoder.start, jnp.ones_like(decoder.start.bias))
    start = eqx.tree_at(lambda s: s.weight, start, jnp.zeros_like(start.weight))
    decoder = eqx.tree_at(lambda o: (o.start, o.doublings[-1].weight), decoder, (start, weight))
    outputs = np.asarray(of(decoder, np.zeros(3, np.float32))).reshape(per_value, *shape)
    assert (outputs.std(axis=(1, 2)) / outputs[:, 0, 0]).max() < 1e-5  # the same at all pixels
    values = outputs[:, 0, 0].ravel() / outputs[:, 0, 0].ravel()[0]
    np.testing.assert_allclose(values, channels, rtol=1e-6)
    # What the encoder sees of the first convolution's windows is the image itself.
    features = model.encoder[0].features
    pick = jnp.zeros_like(features.halvings[0].weight).at[1, 1, :, 0].set(1.0)
    features = eqx.tree_at(lambda f: f.halvings[0].weight, features, pick)
    encoding = observation(KINDS[name], d).encoding
    n_inputs = encoding.n_inputs if encoding else d
    x = np.float32(np.random.default_rng(0).normal(size=n_inputs)) / 10
    seen = np.asarray(of(features, x)).reshape(shape[0] // 2, shape[1] // 2, 2)[..., 0]
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
def test_a_model_keeps_the_contract(case):
    network, kind = CASES[case]
    model = perturbed(make(network, observation=KINDS[kind]), size=0.2)
    _, x = model.sample(jax.random.key(3))
    check_latent_model(model, x, jax.random.key(4), draws=2000)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_gradient_reaches_every_parameter(case):
    network, kind = CASES[case]
    model = perturbed(make(network, latent=(3, 2), hidden=((5,), (4,)), observation=KINDS[kind]))
    _, x = model.sample(jax.random.key(3))
    gradient = eqx.filter_jit(eqx.filter_grad(log_weight))(model, x)
    still = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(gradient)
        if not leaf.any()
    ]
    assert still == []


@pytest.mark.parametrize("case", quick(CASES, "residual conv", "categories"))
def test_a_model_comes_back_bit_for_bit(case, tmp_path):
    network, kind = CASES[case]
    model = make(network, observation=KINDS[kind])
    save_model(model, tmp_path)
    found = load_model(tmp_path)
    assert jax.tree.structure(found) == jax.tree.structure(model)
    assert small.bits(found) == small.bits(model)
    assert found.network == network


def test_an_mlp_is_described_and_named_as_ever(tmp_path):
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
def test_a_pruned_model_leaves_units_at_zero_out(network, hidden):
    model = perturbed(make(network, hidden=(hidden,)))
    keep = np.array([True, False, True])
    small_one = prune(model, [keep])
    assert small_one.latent_sizes == (2,)
    z = jnp.float32([0.3, 0.0, -0.7])
    full, less = (m.decode((h,)).mean for m, h in ((model, z), (small_one, z[keep])))
    np.testing.assert_allclose(less, full, rtol=1e-5)
    x = jnp.ones(model.n_data)
    np.testing.assert_allclose(
        small_one.posterior(x).first.mean, model.posterior(x).first.mean[keep], rtol=1e-5
    )


# --- modules of a user's own ------------------------------------------------------------------


def own_modules(seed=0):
    encoder_key, decoder_key = jax.random.split(jax.random.key(seed))
    return {
        "encoder": eqx.nn.MLP(6, 4, 8, 1, key=encoder_key),
        "decoder": eqx.nn.MLP(3, 12, 8, 1, jnp.tanh, key=decoder_key),
    }


def own(seed=0, **changes):
    modules = {**own_modules(seed), **changes}
    return VAE(*(6, (3,), ((),)), observation="gaussian", **modules, key=jax.random.key(seed))


@pytest.mark.slow
def test_own_modules_are_a_model():
    model = perturbed(own(), size=0.2)
    x = jnp.float32(np.random.default_rng(0).normal(size=6))
    check_latent_model(model, x, jax.random.key(4), draws=2000)
    q = model.posterior(x)
    np.testing.assert_allclose(q.first.mean, model.encoder[0].loc(model.encoder[0].features(x)))
    outputs = model.output.module(jnp.ones(3)) + model.output.bias
    np.testing.assert_allclose(model.decode((jnp.ones(3),)).mean, outputs[:6], rtol=1e-6)


def test_one_of_them_may_be_the_networks():
    model = make(conv((2, 3), (2,)), decoder=eqx.nn.Linear(5, 6, key=jax.random.key(0)))
    assert isinstance(model.encoder[0].features, ConvEncoder)
    assert model.own == ("decoder",)
    model = make(conv((2, 3), (2,)), encoder=eqx.nn.Identity())
    assert isinstance(model.output, ConvDecoder)
    assert model.own == ("encoder",)


def test_own_modules_come_back_into_a_model_like_them(tmp_path):
    save_model(perturbed(own()), tmp_path)
    found = load_model(tmp_path, like=own(1))
    assert equal(*(eqx.filter(m, eqx.is_array) for m in (found, perturbed(own()))))
    x = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    values = [log_likelihoods(m, x, jax.random.key(0), k=3) for m in (found, perturbed(own()))]
    np.testing.assert_array_equal(*values)
    with pytest.raises(UserError, match=r"modules of its author's own.*load_model\(folder, like="):
        load_model(tmp_path)
    wider = eqx.nn.MLP(3, 12, 9, 1, jnp.tanh, key=jax.random.key(0))
    with pytest.raises(UserError, match=r"does not fit this configuration: \.output\.module"):
        load_model(tmp_path, like=own(decoder=wider))
    with pytest.raises(UserError, match="describes another model"):
        load_model(tmp_path, like=make(Network()))


def test_own_modules_that_give_something_else_are_refused():
    with pytest.raises(UserError, match="decoder returns 5 numbers, but the observation needs"):
        own(decoder=eqx.nn.Linear(3, 5, key=jax.random.key(0)))
    with pytest.raises(UserError, match="encoder must map a vector to a float32 vector"):
        own(encoder=eqx.nn.Lambda(jnp.sum))


def test_a_decoder_that_reads_the_latents_itself_is_not_pruned():
    with pytest.raises(
        UserError, match=r"cannot be pruned: give the model a dense layer before it"
    ):
        prune(own(), [np.array([True, False, True])])


# --- mistakes ---------------------------------------------------------------------------------


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
def test_networks_that_are_none_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        make_network(**options)


def test_networks_that_do_not_fit_are_refused():
    network = conv((2, 3), (2,))
    with pytest.raises(UserError, match=r"shape \[2, 3\] have 6 values, but an example has 5"):
        VAE(5, (2,), ((3,),), network=network, key=jax.random.key(0))
    table = make_kind("table", columns=("gaussian",) * 6)
    with pytest.raises(UserError, match="'table' does not have: use network 'mlp'"):
        make(network, observation=table)
    with pytest.raises(UserError, match="replace all of network 'conv'"):
        own(network=conv((2, 3), (2,)))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"network": "cnn"}, "network"),
        ({"channels": (3,)}, "channels needs network 'conv'"),
        ({"network": "conv", "channels": ()}, "channels"),
        ({"blocks": -1}, "blocks"),
    ],
)
def test_options_that_make_no_sense_are_refused(values, words):
    with pytest.raises(UserError, match=words):
        make_config(values, "here")


def test_data_without_a_shape_are_refused():
    config = make_config({"dataset": "circle", "network": "conv"}, "here")
    with pytest.raises(UserError, match=r"needs images of shape .*, not \[2\]"):
        make_job(config)


# --- the whole way ----------------------------------------------------------------------------

CONV = {"network": "conv", "channels": (2, 3), "blocks": 1}


@pytest.mark.slow
def test_a_run_with_convolutions_is_trained_measured_and_drawn(tmp_path):
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
def test_replicates_are_the_runs_of_their_seeds(tmp_path):
    small.train_in(tmp_path / "both", **CONV, replicates=2, epochs=1)
    small.train_in(tmp_path / "second", **CONV, seed=1, epochs=1)
    both, second = (
        load_model(tmp_path / p) for p in ("both/models/final-1", "second/models/final-0")
    )
    assert small.bits(both) == small.bits(second)
