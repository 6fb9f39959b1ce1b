"""Learned priors and flow posteriors: densities, draws, gradients, pruning and saved models."""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, norm

from cases import quick
from expectations import BITS, assert_same, gradient, nodes
from iwae.errors import UserError
from iwae.evaluation.bdmc import bidirectional_bounds
from iwae.evaluation.encoding import DRAWS, encode
from iwae.evaluation.pruning import prune
from iwae.inference.annealing import annealed_particles
from iwae.inference.particles import particle_keys
from iwae.inference.temperatures import linear_schedule
from iwae.models.conditional import ConditionalVAE
from iwae.models.flows import Flow, FlowDistribution
from iwae.models.named_densities import parse_named_posterior, parse_named_prior
from iwae.models.priors import Mixture
from iwae.models.vae import VAE
from iwae.objectives.bounds import elbo, iwae
from iwae.objectives.gdreg import gdreg
from iwae.objectives.gradient_estimators import dreg, stl, stop_gradients
from iwae.objectives.halves import Halves, split_halves
from iwae.objectives.objective import Extra
from iwae.objectives.particle_objectives import analytic_elbo_objective, bound
from iwae.objectives.penalties import Penalty
from iwae.runs.model_files import load_model, save_model
from iwae.testing import check_latent_model
from reference import STANDARD_ERRORS, equal

LEARNED = ["mixture:3", "vamp:3", "flow:2"]


def perturbed(tree, size=0.4):
    """Return the tree with noise on every array, so that nothing is at its initial value."""
    leaves, structure = jax.tree.flatten(tree)
    rng = np.random.default_rng(0)

    def moved(leaf):
        fan = max(leaf.shape) if leaf.ndim == 2 else 1
        noise = np.float32(size * rng.normal(size=leaf.shape) / np.sqrt(fan))
        return jnp.asarray(np.asarray(leaf) + noise)

    new = [moved(leaf) if eqx.is_inexact_array(leaf) else leaf for leaf in leaves]
    return jax.tree.unflatten(structure, new)


def make(prior="normal", posterior="normal", latent=(2,), **options):
    hidden = options.pop("hidden_sizes", ((4,),) * len(latent))
    options = {"prior": prior, "posterior": posterior, **options}
    return perturbed(VAE(4, latent, hidden, **options, key=jax.random.key(3)))


@eqx.filter_jit
def log_density(distribution, points):
    return jax.vmap(distribution.log_prob)(points)


@eqx.filter_jit
def draws_from(distribution, n):
    return jax.vmap(distribution.sample)(jax.random.split(jax.random.key(7), n))


# --- densities and draws ----------------------------------------------------------------------


def test_mixture_density_matches_scipy():
    model, points = make("mixture:3"), np.random.default_rng(1).normal(size=(5, 2))
    top = model.top
    log_w = np.float64(top.log_weights) - logsumexp(np.float64(top.log_weights))
    each = norm.logpdf(points[:, None], np.float64(top.loc), np.exp(np.float64(top.log_scale)))
    expected = logsumexp(each.sum(axis=2) + log_w, axis=1)
    np.testing.assert_allclose(log_density(model.prior(), jnp.float32(points)), expected, rtol=1e-5)


def test_mixture_of_narrow_components_far_from_zero_is_accurate():
    """Fifty units and well-separated components, as in a trained model."""
    rng = np.random.default_rng(2)
    loc, scale = rng.normal(3, 1, (100, 50)), rng.uniform(0.1, 1.0, (100, 50))
    loc, scale = np.float32(loc), np.float32(scale)
    h = np.float32(loc[:20] + scale[:20] * rng.normal(size=(20, 50)))
    pieces = jax.vmap(lambda m, s: dist.Normal(m, s).to_event(1))(jnp.array(loc), jnp.array(scale))
    result = log_density(Mixture(pieces, jnp.full(100, -np.log(100), jnp.float32)), jnp.array(h))
    each = norm.logpdf(np.float64(h)[:, None], np.float64(loc), np.float64(scale)).sum(axis=2)
    np.testing.assert_allclose(result, logsumexp(each, axis=1) - np.log(100), atol=1e-3)


def test_vampprior_is_the_mean_of_q_at_the_pseudo_inputs():
    model = make("vamp:3", latent=(3, 2))
    h = jnp.float32([0.4, -1.3])

    @jax.jit
    def log_q(u):
        middle = model.encoder[0](u).mean  # q of the upper layer at the mean of the lower
        return model.encoder[1](middle).log_prob(h)

    terms = [float(log_q(u)) for u in np.asarray(model.top.inputs)]
    expected = logsumexp(terms) - np.log(3)
    result = jax.jit(lambda h: model.prior().log_prob(h))(h)
    assert float(result) == pytest.approx(expected, rel=1e-5)


SIDE = np.linspace(-9, 9, 181, dtype=np.float32)
GRID = np.stack(np.meshgrid(SIDE, SIDE, indexing="ij"), axis=-1).reshape(-1, 2)
CELL = float(SIDE[1] - SIDE[0]) ** 2


@pytest.mark.parametrize("name", [*LEARNED, "posterior"])
def test_density_integrates_to_one_and_draws_have_its_moments(name):
    p = (
        make(posterior="flow:2").posterior(BITS).first
        if name == "posterior"
        else make(name).prior()
    )
    mass = np.exp(np.float64(log_density(p, jnp.asarray(GRID)))) * CELL
    assert mass.sum() == pytest.approx(1, abs=2e-3)
    draws, grid = np.float64(draws_from(p, 4000)), np.float64(GRID)
    for f in (
        *(lambda z, i=i: z[:, i] for i in (0, 1)),
        *(lambda z, i=i, j=j: z[:, i] * z[:, j] for i, j in ((0, 0), (0, 1), (1, 1))),
    ):
        result, expected = f(draws), (mass * f(grid)).sum()
        error = result.std() / np.sqrt(len(result))
        assert abs(result.mean() - expected) < STANDARD_ERRORS * error
        assert error < 0.1 * (1 + abs(expected))


@pytest.mark.parametrize("n_condition", quick([0, 3], 3))
def test_flow_starts_as_the_identity_and_its_inverse_is_exact(n_condition):
    condition = jnp.float32([0.3, -1.0, 2.0]) if n_condition else None
    start = Flow(5, 4, n_condition=n_condition, key=jax.random.key(0))
    noise = jax.random.normal(jax.random.key(1), (200, 5))

    @eqx.filter_jit
    def both_ways(flow, noise):
        h, log_det = jax.vmap(lambda e: flow.forward(e, condition))(noise)
        return h, log_det, *jax.vmap(lambda h: flow.inverse(h, condition))(h)

    @eqx.filter_jit
    def jacobian(flow, e):
        return jnp.linalg.slogdet(jax.jacobian(lambda e: flow.forward(e, condition)[0])(e))[1]

    h, log_det, back, _ = both_ways(start, noise)
    np.testing.assert_array_equal(h, noise)
    assert not np.any(log_det)
    flow = perturbed(start)
    h, log_det, back, other = both_ways(flow, noise)
    assert np.abs(h - noise).mean() > 0.3
    np.testing.assert_allclose(back, noise, atol=1e-5)
    np.testing.assert_allclose(other, -log_det, atol=1e-4)
    assert float(log_det[0]) == pytest.approx(float(jacobian(flow, noise[0])), abs=1e-4)


def test_encoding_of_a_flow_posterior_has_the_moments_of_its_draws():
    model, (noise, weights) = make(posterior="flow:2"), nodes(2, 20)
    h = np.float64(jax.vmap(model.posterior(BITS).first.place)(noise))
    mean = np.float64(weights) @ h
    sd = np.sqrt(np.float64(weights) @ (h - mean) ** 2)
    result = encode(model, np.asarray(BITS)[None], jax.random.key(8))
    error = STANDARD_ERRORS * sd / np.sqrt(DRAWS)
    assert (np.abs(result.mean[0] - mean) < error).all()
    assert (np.abs(result.scale[0] - sd) < error).all()


def test_flows_of_equal_sizes_share_one_program():
    one, other = (Flow(3, 2, key=jax.random.key(seed)) for seed in (0, 1))
    assert jax.tree.structure(one) == jax.tree.structure(other)


# --- the model --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("prior", "posterior", "latent"),
    [("mixture:3", "normal", (2,)), ("vamp:3", "flow:2", (3, 2)), ("flow:2", "normal", (2,))],
)
def test_model_satisfies_the_contract(prior, posterior, latent):
    check_latent_model(make(prior, posterior, latent), BITS, jax.random.key(0), draws=2000)


@pytest.mark.parametrize("prior", quick([*LEARNED, "own"], "mixture:3", "vamp:3"))
def test_gradients_reach_every_array_of_the_prior(prior):
    model = make(Student(jnp.zeros(2)) if prior == "own" else prior)
    for objective in (bound(iwae, k=2, estimator=dreg()), gdreg(iwae, k=2)):
        of_prior = gradient(objective, model, BITS).top
        for path, leaf in jax.tree_util.tree_leaves_with_path(of_prior):
            assert jnp.any(leaf), (prior, path)


class Student(eqx.Module):
    """A user-defined prior."""

    log_scale: jax.Array

    def __call__(self, model):  # noqa: ARG002
        return dist.StudentT(4.0, 0.0, jnp.exp(self.log_scale)).to_event(1)


def linear_gaussian(prior):
    """Return a model with p(x|z) = N(W z + b, 0.7^2) and a mixture p(z), an x and its log p(x)."""
    kind = {"name": "gaussian-fixed", "scale": 0.7}
    model = make(prior, hidden_sizes=((),), observation=kind)
    pieces = model.prior().components.base_dist
    w, b = np.float64(model.output.weight), np.float64(model.output.bias)
    x = np.float32([0.8, -0.3, 0.5, 1.2])
    terms = [
        multivariate_normal(loc @ w + b, w.T @ np.diag(scale**2) @ w + 0.49 * np.eye(4)).logpdf(x)
        for loc, scale in zip(np.float64(pieces.loc), np.float64(pieces.scale), strict=True)
    ]
    return model, jnp.asarray(x), logsumexp(terms + np.float64(model.prior().log_weights))


@pytest.mark.parametrize("prior", quick(["mixture:3", "vamp:3"], "mixture:3"))
def test_mean_annealed_weight_is_the_exact_likelihood(prior):
    model, x, exact = linear_gaussian(prior)
    options = {"betas": linear_schedule(6), "step_size": 0.3, "n_leapfrog": 3}
    result, info = jax.jit(
        lambda key: annealed_particles(model, x, key, 4000, start="prior", **options)
    )(jax.random.key(2))
    w = np.exp(np.float64(result.log_w) - exact)
    error = w.std() / np.sqrt(w.size)
    assert abs(w.mean() - 1) < STANDARD_ERRORS * error
    assert error < 0.03
    assert (info["acceptance"] < 0.99).any()


@pytest.mark.slow
def test_bidirectional_bounds_are_ordered_and_close():
    options = {"betas": linear_schedule(30), "step_size": 0.2, "n_leapfrog": 3}
    model, keys = make("vamp:3"), jax.random.split(jax.random.key(4), 40)
    result = jax.jit(jax.vmap(lambda key: bidirectional_bounds(model, key, 8, **options)))(keys)
    gaps = np.float64(result["upper"] - result["lower"])
    assert -STANDARD_ERRORS * gaps.std() / np.sqrt(40) < gaps.mean() < 0.2


def test_settled_prior_is_unchanged_and_keeps_its_own_encoder():
    model = make("vamp:3")
    h, fixed = jnp.float32([0.4, -1.3]), stop_gradients(model)
    assert model.settled().prior().log_prob(h) == model.prior().log_prob(h)
    decoder, encoder = bound(iwae, k=2, estimator=stl()), bound(elbo, k=1)
    key = jax.random.key(5)
    result = gradient(split_halves(decoder=decoder, encoder=encoder), model, BITS, key)

    def apart(model):
        keys = jax.random.clone(key), jax.random.clone(key)
        of_p = decoder.terms(Halves(model, fixed), BITS, keys[0], Extra())[0]
        return of_p + encoder.terms(Halves(fixed, model), BITS, keys[1], Extra())[0]

    assert_same(result, eqx.filter_jit(eqx.filter_grad(apart))(model))


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["reparam", "stl", "dreg"])
def test_single_particle_gradients_average_to_the_full_gradient(estimator):
    """Each particle in turn is drawn with probability 1/k and factor k, for a flow posterior."""
    model, k = make("vamp:2", "flow:2", latent=(3, 2)), 3
    chosen = {"reparam": {}, "stl": {"estimator": stl()}, "dreg": {"estimator": dreg()}}[estimator]
    full = gradient(bound(iwae, k=k, **chosen), model, BITS)

    @eqx.filter_jit
    def through(model, i):
        def draw(key, shares, count):  # noqa: ARG001
            return i[None], jnp.float32([k])

        objective = bound(iwae, k=k, backward=1, draw=draw, **chosen)
        return eqx.filter_grad(objective)(model, BITS, jax.random.key(0))

    parts = [through(model, jnp.asarray(i)) for i in range(k)]
    assert_same(jax.tree.map(lambda *leaves: sum(leaves) / k, *parts), full, 1e-4)


def test_dreg_differentiates_only_through_the_draws_of_flows():
    """The gradient of sum_i w_i^2 log w_i through z_i alone, w normalised (Tucker et al. 2019)."""
    model, key, k = make(posterior="flow:2", latent=(3, 2)), jax.random.key(6), 3
    result = gradient(bound(iwae, k=k, estimator=dreg()), model, BITS, key)

    def through_draws(learned):
        keys = particle_keys(jax.random.clone(key), jnp.arange(k))
        z = jax.vmap(learned.posterior(BITS).sample)(keys)
        q = model.posterior(BITS)
        log_w = jax.vmap(lambda z: model.log_joint(BITS, z) - q.log_prob(z))(z)
        return jnp.sum(jax.lax.stop_gradient(jax.nn.softmax(log_w)) ** 2 * log_w)

    assert_same(result.encoder, eqx.filter_jit(eqx.filter_grad(through_draws))(model).encoder)


def test_layer_without_separate_units_is_penalised_as_one():
    model, penalty = make("mixture:3", latent=(3, 2)), Penalty(warmup_steps=4, free_bits=0.0)
    q = model.posterior(BITS)
    zs = jax.vmap(q.sample)(jax.random.split(jax.random.key(0), 5))

    @jax.jit
    def weights(zs):
        parts = jax.vmap(lambda z: penalty.terms(model, q, BITS, z, z))(zs)
        log_p, log_q = penalty.combine(parts, {"kl_steps": jnp.int32(1)})
        return parts, log_p - log_q

    @jax.jit
    def expected(z):
        ratio = sum(model.layer_log_priors(z)) - q.log_prob(z)
        return model.decode(z).log_prob(BITS) + 0.25 * ratio

    parts, result = weights(zs)
    assert [leaf.shape for leaf in parts[1]] == [(5, 3), (5, 1)]
    np.testing.assert_allclose(result, jax.vmap(expected)(zs), rtol=1e-4)


def test_analytic_elbo_rejects_a_divergence_without_closed_form():
    for model in (make("mixture:2"), make(posterior="flow:1")):
        with pytest.raises(UserError, match="no closed form; use elbo"):
            analytic_elbo_objective(k=1)(model, BITS, jax.random.key(0))


# --- pruning, labels, missing values ----------------------------------------------------------


@pytest.mark.parametrize("prior", ["mixture:3", "vamp:3"])
def test_pruning_keeps_the_marginal_prior(prior):
    model = make(prior, latent=(3,))
    small = prune(model, [np.array([True, False, True])])
    assert small.latent_sizes == (2,)
    h = np.float32([0.3, -0.8])
    pieces = model.prior().components.base_dist
    each = norm.logpdf(h, np.float64(pieces.loc)[:, [0, 2]], np.float64(pieces.scale)[:, [0, 2]])
    expected = logsumexp(each.sum(axis=1) + np.float64(model.prior().log_weights))
    assert float(small.prior().log_prob(jnp.asarray(h))) == pytest.approx(expected, rel=1e-5)


def test_pruning_the_top_layer_removes_its_prior():
    keep = [np.ones(3, bool), np.zeros(2, bool)]
    for prior in LEARNED:
        assert prune(make(prior, latent=(3, 2)), keep).top is None


def test_first_layer_flow_leaves_upper_layers_unchanged():
    keep = [np.ones(3, bool), np.array([True, False])]
    normal = make(posterior="flow-first:2", latent=(3, 2))
    mixed = make(posterior="flow-first:2", latent=(3, 2), latents=MIXED_LATENTS)
    for model in (normal, mixed):
        layers = model.posterior(BITS).layers((jnp.zeros(3), jnp.zeros(2)))
        assert [isinstance(q, FlowDistribution) for q in layers] == [True, False]
        assert str(model.posterior_name) == "flow-first:2"
    assert prune(normal, keep).latent_sizes == (3, 1)
    with pytest.raises(UserError, match="posterior flow-first:2 couples the units of layer 1"):
        prune(normal, [np.array([True, False, True]), np.ones(2, bool)])


MIXED_LATENTS = ("normal", "bernoulli")


@pytest.mark.parametrize("which", ["prior", "posterior"])
def test_single_units_of_a_flow_cannot_be_pruned(which):
    model = make(**{which: "flow:2"}, latent=(3,))
    with pytest.raises(
        UserError, match=f"the {which} flow:2 couples the units of layer 1, of which 2 of 3"
    ):
        prune(model, [np.array([True, False, True])])
    assert equal(prune(model, [np.ones(3, bool)]), model)


def test_only_a_conditional_vampprior_depends_on_the_label():
    h = jnp.float32([0.4, -1.3])
    for prior, differs in {"vamp:3": True, "mixture:3": False}.items():
        model = perturbed(ConditionalVAE(make(prior), 2))
        one, other = (model.given(jnp.eye(2)[y]).prior().log_prob(h) for y in range(2))
        assert (abs(float(one - other)) > 1e-3) == differs
    with pytest.raises(UserError, match="leave one of the two out"):
        ConditionalVAE(make("mixture:3"), 2, learned_prior=True)


def test_pseudo_inputs_start_at_the_encoder_inputs_of_incomplete_rows():
    rows = np.float32([[1.0, 2.0, np.nan, 4.0], [0.0, 1.0, 1.0, np.nan]])
    statistics = np.concatenate([[1.0, 0.0, 2.0, 0.0], np.log([2.0, 1.0, 0.5, 1.0])])
    options = {"observation": "gaussian", "missing": "at-random", "statistics": statistics}
    model = VAE(
        4, (2,), ((4,),), **options, prior="vamp:2", pseudo_inputs=rows, key=jax.random.key(0)
    )
    expected = [[0, 2, 0, 4, 1, 1, 0, 1], [-0.5, 1, -2, 0, 1, 1, 1, 0]]
    np.testing.assert_allclose(model.top.inputs, expected, rtol=1e-6)


# --- names and files --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prior", "posterior"),
    [*((p, "normal") for p in LEARNED), ("vamp:2", "flow:2"), ("normal", "flow-first:2")],
)
def test_saved_model_loads_bit_for_bit(tmp_path, prior, posterior):
    model = make(prior, posterior, latent=(3, 2))
    save_model(model, tmp_path)
    result = load_model(tmp_path)
    assert equal(result, model)
    assert jax.tree.structure(result) == jax.tree.structure(model)
    described = json.loads((tmp_path / "model.json").read_text())["architecture"]
    assert described.get("prior", "normal") == prior
    assert described.get("posterior", "normal") == posterior


def test_user_defined_prior_loads_into_the_same_model(tmp_path):
    model = make(Student(jnp.zeros(2)))
    save_model(model, tmp_path)
    assert equal(load_model(tmp_path, like=make(Student(jnp.ones(2)))), model)
    with pytest.raises(UserError, match="modules of its author's own"):
        load_model(tmp_path)


def test_default_model_description_is_unchanged():
    model = VAE(4, (2,), ((4,),), key=jax.random.key(0))
    assert model.top is None
    assert sorted(model.architecture()) == [
        "activation",
        "hidden_sizes",
        "latent_sizes",
        "n_data",
        "observation",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("vmap:5", "no prior 'vmap:5'; known: normal, mixture:N, vamp:N, flow:N"),
        ("vamp", "needs a number from 1 to 100,000 after 'vamp', such as vamp:500"),
        ("flow:0", "from 1 to 64"),
        ("flow:65", "from 1 to 64"),
        ("mixture:1e3", "from 1 to 100,000"),
        ("mixture:²", "from 1 to 100,000"),
        ("normal:2", "takes no number: leave out ':2'"),
    ],
)
def test_invalid_prior_names_are_rejected(text, message):
    with pytest.raises(UserError, match=message):
        parse_named_prior(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prior": "flow:2", "latent": (1,)}, "at least 2, not 1"),
        ({"posterior": "flow-first:2"}, "only one: use flow:2"),
        (
            {"posterior": "flow:2", "latent": (2, 2), "latents": MIXED_LATENTS},
            "a layer has bernoulli ones",
        ),
        ({"prior": "mixture:2", "pseudo_inputs": np.zeros((2, 4))}, "takes none"),
        ({"prior": "vamp:3", "pseudo_inputs": np.zeros((2, 4))}, r"those of shape \[3, 4\]"),
        ({"prior": lambda model: dist.Normal(jnp.zeros(2), 1.0)}, "scalar"),  # noqa: ARG005
        ({"prior": lambda model: 3}, "a function from the model to a distribution"),  # noqa: ARG005
    ],
)
def test_incompatible_priors_are_rejected(options, message):
    with pytest.raises(UserError, match=message):
        make(**options)


def test_posterior_names_are_parsed():
    assert str(parse_named_posterior("flow:3")) == "flow:3"
    with pytest.raises(UserError, match="no posterior 'vamp:3'; known: normal, flow:N"):
        parse_named_posterior("vamp:3")


def test_flow_density_includes_the_scale_of_its_affine_map():
    """At initialisation the density of loc + scale * noise is Gaussian."""
    flow = Flow(2, 1, key=jax.random.key(0))
    loc, scale = jnp.float32([0.5, -1.0]), jnp.float32([0.3, 2.0])
    h = jnp.float32([0.1, 0.4])
    expected = norm.logpdf(np.float64(h), np.float64(loc), np.float64(scale)).sum()
    result = jax.jit(lambda h: FlowDistribution(flow, loc, scale).log_prob(h))(h)
    assert float(result) == pytest.approx(expected, rel=1e-6)
