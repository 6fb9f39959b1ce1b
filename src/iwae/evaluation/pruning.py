"""Pruning: a smaller model without the units that carry no information."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from iwae.errors import UserError
from iwae.models.conditional import ConditionalVAE, Model, label_layers
from iwae.models.discrete import DiscreteNet
from iwae.models.latent_nets import latent_net_input_layers
from iwae.models.layers import Dense
from iwae.models.priors import DiscretePrior, LabelPrior, MixturePrior, VampPrior
from iwae.models.vae import VAE, AbstractLatentModel, as_vae, vae_decoder_input
from iwae.precision import float32


@float32
def prune(
    model: AbstractLatentModel,
    keep: Sequence[Bool[np.ndarray, " _"]],
    means: Sequence[Float[np.ndarray, " _"]] | None = None,
) -> Model:
    """Return a smaller model without the units that are not kept; the given model is unchanged.

    A removed unit is fixed at 0 (a unit of bits or categories at its mean), and its factors of p
    and q are dropped. If no unit of a layer l > 1 is kept, the layer carries no information up or
    down. The layers above it are then removed too (their weights have mean one), and layer l - 1
    becomes the top, whose prior p(h_{l-1}|h_l) at the fixed h_l is a constant. A constant Gaussian
    becomes the N(0, I) of a VAE by standardising the latents, a change of variables that does not
    affect log weights.

    A conditional model is pruned given each label. A unit with a Gaussian prior for each label is
    fixed at its mean. If a layer becomes the top, its constant Gaussians for the labels become the
    priors of the result, and nothing is standardised.

    A learned mixture or VampPrior is replaced by its marginal over the units that are kept. That of
    a flow has no closed form: a layer with a flow as its prior or posterior loses all its units or
    none.

    Args:
        keep: for each layer a mask, `[d_l]`, such as `active_units(...).masks`.
        means: for each layer the means of its units, such as `active_units(...).means`; only those
            of bits and categories, `[d_l]` or `[d_l C]`, are used.

    Raises:
        UserError: if the model is not a VAE, the masks or means do not fit it, means of a discrete
            layer are missing, no unit of the first layer is kept (the data would not depend on the
            latents), a user's own decoder reads that layer directly, or only some units of a layer
            with a flow are kept.
    """
    if isinstance(model, ConditionalVAE):
        labels = jnp.eye(model.n_classes)
        return _combined(model, [_pruned(model.given(y), keep, means) for y in labels])
    pruned = _pruned(as_vae(model), keep, means)
    if not isinstance(pruned.top, LabelPrior):
        return pruned
    return _standardised(pruned, pruned.top)


def _combined(model: ConditionalVAE, given: Sequence[VAE]) -> ConditionalVAE:
    """Combine the models given each label, which differ only in parts that depend on the label."""
    tops = [one.top.parameters for one in given if isinstance(one.top, LabelPrior)]
    if model.tops is not None or len(given[0].encoder) < len(model.vae.encoder):
        tops += [one.top.logits for one in given if isinstance(one.top, DiscretePrior)]
    layers = [[dense.bias for dense in label_layers(one)] for one in given]
    shifts = tuple(jnp.stack(biases) - biases[0][None] for biases in zip(*layers, strict=True))
    vae = given[0]
    if isinstance(vae.top, LabelPrior):
        vae = eqx.tree_at(lambda m: m.top, vae, None)
    return eqx.tree_at(
        lambda m: (m.vae, m.shifts, m.tops),
        model,
        (vae, shifts, jnp.stack(tops) if tops else None),
        is_leaf=lambda node: node is None,
    )


def _pruned(
    vae: VAE,
    keep: Sequence[Bool[np.ndarray, " _"]],
    means: Sequence[Float[np.ndarray, " _"]] | None,
) -> VAE:
    """The model with the kept units only; a new top layer has a constant prior."""
    if tuple(mask.size for mask in keep) != vae.latent_sizes:
        sizes = tuple(mask.size for mask in keep)
        raise UserError(f"masks of sizes {sizes} do not fit latent sizes {vae.latent_sizes}")
    if not keep[0].any():
        raise UserError("no unit of the first layer is kept: keep at least one")
    empty = [l for l, mask in enumerate(keep) if not mask.any()]
    n_layers = min(empty, default=len(keep))
    _check_flows(vae, keep[:n_layers])
    fixed = [_fixed(vae, l, mask, means) for l, mask in enumerate(keep)]
    wide = [np.repeat(mask, kind.width) for mask, kind in zip(keep, vae.latents, strict=True)]
    vae = _change_prior(vae, wide)
    for l, mask in enumerate(wide[:n_layers]):
        vae = _change(vae, _writers(vae, l), partial(_keep_outputs, mask))
        vae = _change(vae, _readers(vae, l), partial(_keep_inputs, mask, fixed[l]))
    return _without_top(vae, n_layers, fixed[n_layers]) if empty else vae


def _fixed(
    vae: VAE,
    l: int,
    mask: Bool[np.ndarray, " _"],
    means: Sequence[Float[np.ndarray, " _"]] | None,
) -> Float[Array, " n"]:
    """The values at which units of layer l (from 0) are fixed if they are removed."""
    width = vae.widths[l]
    if not vae.latents[l].is_discrete or mask.all():
        return jnp.zeros(width)
    if means is None or means[l].shape != (width,):
        found = "none" if means is None else f"shape {list(means[l].shape)}"
        raise UserError(
            f"removed units of {vae.latents[l]} latents are fixed at their means, which layer "
            f"{l + 1} needs with shape [{width}], and there are {found}: give prune those of "
            "active_units(...).means"
        )
    return jnp.asarray(means[l], jnp.float32)


def _check_flows(model: VAE, keep: Sequence[Bool[np.ndarray, " _"]]) -> None:
    """Raise UserError if only some units of a layer with a flow are kept."""
    for l, mask in enumerate(keep):
        is_top = l == len(model.encoder) - 1
        tied = is_top and not isinstance(model.top, _WITH_MARGINALS)
        if not mask.all() and (tied or getattr(model.encoder[l], "flow", None) is not None):
            what = f"prior {model.prior_name}" if tied else f"posterior {model.posterior_name}"
            raise UserError(
                f"the {what} couples the units of layer {l + 1}, of which {mask.sum()} of "
                f"{mask.size} are active, so the others cannot be removed: measure the whole model"
            )


_WITH_MARGINALS = MixturePrior | VampPrior | LabelPrior | DiscretePrior | None
"""Priors whose marginals over some of the units are known."""


def _change_prior(model: VAE, keep: Sequence[Bool[np.ndarray, " _"]]) -> VAE:
    """Replace p(h_L) by its marginal over the units that are kept."""
    if isinstance(model.top, LabelPrior):
        return _at_mean(model, model.top.parameters, keep[-1])
    if isinstance(model.top, DiscretePrior):
        return eqx.tree_at(lambda m: m.top.logits, model, model.top.logits[keep[-1]])
    if not isinstance(model.top, MixturePrior):
        return model  # a VampPrior consists of the encoder, whose outputs are removed
    return eqx.tree_at(
        lambda m: (m.top.loc, m.top.log_scale),
        model,
        (model.top.loc[:, keep[-1]], model.top.log_scale[:, keep[-1]]),
    )


def _at_mean(model: VAE, parameters: Float[Array, "2 d"], keep: Bool[np.ndarray, " d"]) -> VAE:
    """Fix removed units of the top layer at their prior mean in the maps that read them."""
    fixed = jnp.where(keep, 0.0, parameters[0])

    def read(dense: Dense) -> Dense:
        return _replaced(dense, dense.weight, dense.bias + fixed @ dense.weight)

    model = _change(model, _readers(model, len(model.encoder) - 1), read)
    return eqx.tree_at(lambda m: m.top.parameters, model, parameters[:, keep])


def _writers(model: VAE, l: int) -> list[Dense]:
    """The linear maps whose outputs are units of layer l (from 0), in q and in p."""
    nets = model.encoder[l : l + 1] + model.prior_nets[l : l + 1]
    return [dense for net in nets for dense in net.outputs]


def _readers(model: VAE, l: int) -> list[Dense]:
    """The linear maps whose inputs are units of layer l (from 0), in the layers above and below."""
    above = [
        dense for net in model.encoder[l + 1 : l + 2] for dense in latent_net_input_layers(net)
    ]
    if l == 0:
        return [*above, vae_decoder_input(model, "cannot be pruned")]
    return [*above, *latent_net_input_layers(model.prior_nets[l - 1])]


def _change(model: VAE, maps: Sequence[Dense], change: Callable[[Dense], Dense]) -> VAE:
    """Apply a change to some of the linear maps of a model."""
    chosen = {id(dense) for dense in maps}
    return jax.tree.map(
        lambda dense: change(dense) if id(dense) in chosen else dense,
        model,
        is_leaf=lambda node: isinstance(node, Dense),
    )


def _keep_outputs(mask: np.ndarray, dense: Dense) -> Dense:
    return _replaced(dense, dense.weight[:, mask], dense.bias[mask])


def _keep_inputs(mask: np.ndarray, fixed: Float[Array, " n"], dense: Dense) -> Dense:
    removed = jnp.where(mask, 0.0, fixed)
    return _replaced(dense, dense.weight[mask], dense.bias + removed @ dense.weight)


def _replaced(dense: Dense, weight: Float[Array, "n m"], bias: Float[Array, " m"]) -> Dense:
    return eqx.tree_at(lambda d: (d.weight, d.bias), dense, (weight, bias))


def _without_top(model: VAE, n_layers: int, above: Float[Array, " n"]) -> VAE:
    """The first `n_layers` layers of a model whose next layer is fixed at `above`."""
    top = n_layers - 1
    net = model.prior_nets[top]
    constant: LabelPrior | DiscretePrior
    if isinstance(net, DiscreteNet):
        constant = DiscretePrior(net.logits(net.hidden(above)), net.kind)
    else:
        prior: Any = net(above)
        constant = LabelPrior(jnp.stack([prior.mean, jnp.log(prior.variance) / 2]))
    model = eqx.tree_at(
        lambda m: (m.encoder, m.prior_nets, m.top),
        model,
        (model.encoder[:n_layers], model.prior_nets[:top], constant),
        is_leaf=lambda node: node is None,
    )
    object.__setattr__(model, "latents", model.latents[:n_layers])  # tree_at made a new module
    return model


def _standardised(model: VAE, prior: LabelPrior) -> VAE:
    """The same model in latents u of which p(u) = N(0, I): h_L = mean + scale u."""
    (mean, log_scale), top = prior.parameters, len(model.encoder) - 1
    scale = jnp.exp(log_scale)

    # q's outputs are those of u, and readers take u.
    def read(dense: Dense) -> Dense:
        return _replaced(dense, scale[:, None] * dense.weight, dense.bias + mean @ dense.weight)

    def write_loc(dense: Dense) -> Dense:
        return _replaced(dense, dense.weight / scale[None, :], (dense.bias - mean) / scale)

    def write_log_scale(dense: Dense) -> Dense:
        return _replaced(dense, dense.weight, dense.bias - log_scale)

    model = eqx.tree_at(lambda m: m.top, model, None)
    for part, write in enumerate((write_loc, write_log_scale)):
        model = _change(model, [model.encoder[top].outputs[part]], write)
    return _change(model, _readers(model, top), read)
