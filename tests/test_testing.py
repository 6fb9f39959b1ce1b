import jax, numpy as np, jax.numpy as jnp, time
from iwae.model import VAE
from iwae.testing import *


def test_smoke():
    for m, x in (
        (LinearGaussian.random(q_shift=0.5, q_scale=1.5), jnp.ones(3)),
        (VAE(6, (3, 2), ((5,), (4,)), key=jax.random.key(0)), jnp.ones(6)),
        (VAE(784, (50,), ((200, 200),), key=jax.random.key(0)), jnp.ones(784)),
    ):
        t = time.time()
        check_latent_model(m, x, jax.random.key(1))
        print(time.time() - t)
