"""The model contract: valid models pass and broken ones are diagnosed; closed forms are exact."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy.stats import multivariate_normal

from iwae.models.vae import VAE, AbstractLatentModel
from iwae.testing import LinearGaussian, check_latent_model


class Valid(AbstractLatentModel):
    """z ~ N(0, 1), x ~ N(a z, e^2), q(z|x) = N(b x, s^2): a model that a user might write."""

    a: jax.Array
    b: jax.Array
    log_scale: jax.Array
    log_noise: jax.Array

    def __init__(self):
        self.a, self.b, self.log_scale, self.log_noise = map(jnp.float32, (1.5, 0.4, -0.5, 0.3))

    def posterior(self, x):
        return dist.Normal(self.b * x, jnp.exp(self.log_scale))

    def log_joint(self, x, z):
        log_p = dist.Normal(self.a * z, jnp.exp(self.log_noise)).log_prob(x)
        return log_p + dist.Normal(0.0, 1.0).log_prob(z)

    def sample(self, key):
        z, noise = jax.random.normal(key, 2)
        return z, self.a * z + jnp.exp(self.log_noise) * noise


class Posterior(eqx.Module):
    """A Gaussian whose draws or density a subclass breaks."""

    loc: jax.Array
    scale: jax.Array

    def sample(self, key):
        return self.loc + self.scale * jax.random.normal(key)

    def log_prob(self, z):
        return dist.Normal(self.loc, self.scale).log_prob(z)


class OneSample(Posterior):
    def sample(self, key):  # noqa: ARG002
        return self.loc + self.scale


class Cut(Posterior):
    def sample(self, key):
        return self.loc + jax.lax.stop_gradient(self.scale) * jax.random.normal(key)


class HalfGradient(Posterior):
    def sample(self, key):
        scale = (self.scale + jax.lax.stop_gradient(self.scale)) / 2
        return self.loc + scale * jax.random.normal(key)


class TooWide(Posterior):
    def sample(self, key):
        return self.loc + 1.2 * self.scale * jax.random.normal(key)


class WithoutConstant(Posterior):
    def log_prob(self, z):
        return super().log_prob(z) + 0.5 * jnp.log(2 * jnp.pi)


class WithoutDivision(Posterior):
    def log_prob(self, z):
        return super().log_prob(z) - 0.25


class NotATree:
    def __init__(self, loc, scale):
        self.posterior = Posterior(loc, scale)

    def sample(self, key):
        return self.posterior.sample(key)

    def log_prob(self, z):
        return self.posterior.log_prob(z)


jax.tree_util.register_pytree_node(NotATree, lambda p: ((), p), lambda p, _: p)


def with_posterior(kind):
    class Model(Valid):
        def posterior(self, x):
            return kind(self.b * x, jnp.exp(self.log_scale))

    return Model()


class Unsummed(Valid):
    def log_joint(self, x, z):
        return super().log_joint(x, z)[None]


class Infinite(Valid):
    def log_joint(self, x, z):
        return super().log_joint(x, z) - jnp.inf


class OtherShape(Valid):
    def sample(self, key):
        z, x = super().sample(key)
        return z[None], x


class OtherExample(Valid):
    def sample(self, key):
        z, x = super().sample(key)
        return z, x > 0


class WrongNoise(Valid):
    def sample(self, key):
        z, noise = jax.random.normal(key, 2)
        return z, self.a * z + jnp.exp(1.4 * self.log_noise) * noise


class WideLatents(Valid):
    def sample(self, key):
        z, noise = jax.random.normal(key, 2)
        return 1.3 * z, self.a * 1.3 * z + jnp.exp(self.log_noise) * noise


class NoPrior(Valid):
    def log_joint(self, x, z):
        return super().log_joint(x, z) + z**2 / 2


class Positive(Valid):
    """A valid model with a positive latent, log-normal q and exponential prior."""

    def posterior(self, x):
        return dist.LogNormal(self.b * x, jnp.exp(self.log_scale))

    def log_joint(self, x, z):
        log_p = dist.Normal(self.a * z, jnp.exp(self.log_noise)).log_prob(x)
        return log_p + dist.Exponential(1.0).log_prob(z)

    def sample(self, key):
        z_key, x_key = jax.random.split(key)
        z = jax.random.exponential(z_key)
        return z, self.a * z + jnp.exp(self.log_noise) * jax.random.normal(x_key)


class Branching(Valid):
    def log_joint(self, x, z):
        return super().log_joint(x, z) if x > 0 else super().log_joint(-x, -z)


class BadGradient(Valid):
    def log_joint(self, x, z):
        return super().log_joint(x, z) + jnp.sqrt(self.a - self.a)


class Contagious(Valid):
    """Normalises over whatever batch it is in."""

    def posterior(self, x):
        return dist.Normal(self.b * batch_centred(x), jnp.exp(self.log_scale))


@jax.custom_batching.custom_vmap
def batch_centred(x):
    return x


@batch_centred.def_vmap
def _(axis_size, in_batched, x):  # noqa: ARG001
    return (x - x.mean() if in_batched[0] else x), in_batched[0]


def check(model, example=0.7, draws=10_000, seed=0):
    check_latent_model(model, jnp.float32(example), jax.random.key(seed), draws=draws)


@pytest.mark.slow
def test_valid_user_defined_models_pass():
    check(Valid())
    check(with_posterior(Posterior))
    check(Positive())


@pytest.mark.slow
def test_models_of_this_package_pass():
    check(LinearGaussian.random(q_shift=0.5, q_scale=1.5), np.ones(3))
    check(VAE(6, (3, 2), ((5,), (4,)), key=jax.random.key(0)), np.ones(6))


BROKEN = {
    "log joint not a scalar": (Unsummed, r"log_joint.* has shape \(1,\), not \(\): sum"),
    "infinite": (Infinite, "log_joint.*is -inf"),
    "shape of z": (OtherShape, r"z of sample\(key\) differ"),
    "type of x": (OtherExample, r"x of sample\(key\) differ"),
    "one sample": (OneSample, "same draw for two keys"),
    "branching": (Branching, "cannot be compiled.*without branches"),
    "contagious": (Contagious, "not on the others in its batch"),
    "not a tree": (NotATree, r"does not stop the gradient to the model's b"),
    "no gradient": (Cut, "model's log_scale affects .* but no gradient"),
    "bad gradient": (BadGradient, "gradient of log p.* model's a is not finite"),
    "half a gradient": (HalfGradient, "gradient through draws of q.*along the model's log_scale"),
    "too wide": (TooWide, r"E_q\[grad log q.*does not draw from posterior"),
    "too large": (WithoutConstant, "it is too large"),
    "too small": (WithoutDivision, "it is too small"),
    "wide latents": (WideLatents, r"E_p\[z d/dz log p.*along z is .*sample does not draw"),
    "no prior": (NoPrior, r"E_p\[z d/dz log p.*along z is .*sample does not draw"),
    "wrong noise": (WrongNoise, r"E_p\[grad log p.*along the model's log_noise"),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", BROKEN)
def test_broken_model_is_diagnosed(fault):
    kind, message = BROKEN[fault]
    model = kind() if issubclass(kind, Valid) else with_posterior(kind)
    with pytest.raises(AssertionError, match=message):
        check(model)


def test_object_that_is_not_a_model_is_rejected():
    with pytest.raises(AssertionError, match="a dict is not a model: make it a subclass"):
        check({})


def test_closed_forms_of_the_linear_gaussian_are_exact():
    model, x = LinearGaussian.random(3, 2, q_shift=0.5, q_scale=2.0), np.array([0.3, -1.0])
    weight, noise = np.float64(model.weight), np.exp(2 * float(model.log_scale))
    covariance = weight @ weight.T + noise * np.eye(2)
    log_p = multivariate_normal.logpdf(x, model.bias, covariance)
    assert model.log_evidence(jnp.float32(x)) == pytest.approx(log_p, rel=1e-5)
    exact, q = model.exact_posterior(jnp.float32(x)), model.posterior(jnp.float32(x))
    z = np.array([0.1, -0.7, 1.3])
    log_joint = multivariate_normal.logpdf(z, np.zeros(3)) + multivariate_normal.logpdf(
        x, weight @ z + np.float64(model.bias), noise
    )
    assert model.log_joint(jnp.float32(x), jnp.float32(z)) == pytest.approx(log_joint, rel=1e-5)
    assert exact.log_prob(jnp.float32(z)) == pytest.approx(log_joint - log_p, rel=1e-4)
    assert q.mean == pytest.approx(np.asarray(exact.mean) + 0.5, rel=1e-4)
    assert q.covariance_matrix == pytest.approx(4 * np.asarray(exact.covariance_matrix), rel=1e-4)
