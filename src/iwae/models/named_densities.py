"""Names of priors and posteriors with their sizes, such as `vamp:500`. No JAX here."""

from collections.abc import Sequence
from typing import NamedTuple

from iwae.errors import UserError
from iwae.models.latent_kinds import LatentKind


class Named(NamedTuple):
    """A name and its size; 0 where there is none.

    Attributes:
        name: a key of `PRIORS` or `POSTERIORS`.
        size: components, pseudo-inputs or coupling layers.
    """

    name: str
    size: int = 0

    def __str__(self) -> str:
        return f"{self.name}:{self.size}" if self.size else self.name


PRIORS = {"normal": 0, "mixture": 100_000, "vamp": 100_000, "flow": 64}
"""Prior of the top layer -> its largest size; 0 for a prior without a size."""

POSTERIORS = {"normal": 0, "flow": 64, "flow-first": 64}
"""Posterior of every stochastic layer -> its largest size; `flow-first` is of the first alone."""


def parse_named_prior(text: str) -> Named:
    """Parse `normal`, `mixture:K`, `vamp:K` or `flow:N`.

    Raises:
        UserError: for anything else.
    """
    return _parse("prior", text, PRIORS)


def parse_named_posterior(text: str) -> Named:
    """Parse `normal`, `flow:N` or `flow-first:N`.

    Raises:
        UserError: for anything else.
    """
    return _parse("posterior", text, POSTERIORS)


def named_coupling_layers(posterior: Named, kinds: Sequence[LatentKind]) -> tuple[int, ...]:
    """Count the coupling layers in q of each stochastic layer; 0 for a layer without a flow.

    Raises:
        UserError: for a flow of bits or categories, or `flow-first` with one stochastic layer.
    """
    is_first = posterior.name == "flow-first"
    check_named_density("posterior", posterior, *(kinds[:1] if is_first else kinds))
    if not is_first:
        return (posterior.size,) * len(kinds)
    if len(kinds) == 1:
        raise UserError(
            f"posterior {str(posterior)!r} distinguishes the first stochastic layer from those "
            f"above it, but the model has only one: use flow:{posterior.size}"
        )
    return (posterior.size, *(0,) * (len(kinds) - 1))


def check_named_density(what: str, wanted: Named, *kinds: LatentKind) -> None:
    """Raise UserError if a prior or posterior of normal latents meets a discrete layer."""
    discrete = [str(kind) for kind in kinds if kind.is_discrete]
    if discrete and wanted.name != "normal":
        raise UserError(
            f"{what} {str(wanted)!r} is for normal latents, but a layer has {discrete[0]} ones: "
            f"leave {what} out (a discrete top layer has a learned prior anyway)"
        )


def _parse(what: str, text: str, known: dict[str, int]) -> Named:
    name, colon, size = text.partition(":")
    if name not in known:
        forms = ", ".join(f"{form}:N" if largest else form for form, largest in known.items())
        raise UserError(f"no {what} {text!r}; known: {forms}")
    largest = known[name]
    if not largest:
        if colon:
            raise UserError(f"{what} {name!r} takes no number: leave out {colon + size!r}")
        return Named(name)
    is_number = size.isascii() and size.isdecimal() and len(size) <= len(str(largest))
    if not is_number or not 1 <= int(size) <= largest:
        raise UserError(
            f"{what} {text!r} needs a number from 1 to {largest:,} after {name!r}, such as "
            f"{name}:{EXAMPLES[name]}"
        )
    return Named(name, int(size))


EXAMPLES = {"mixture": 500, "vamp": 500, "flow": 4, "flow-first": 4}
"""Usual sizes."""
