"""Kinds of stochastic layers by name. No JAX here: the command line checks the names."""

from collections.abc import Sequence
from typing import NamedTuple

from iwae.errors import UserError


class LatentKind(NamedTuple):
    """The kind of all units of a stochastic layer.

    Attributes:
        name: `normal`, `bernoulli` or `categorical`.
        categories: C of a `categorical` layer, whose units are one-hot vectors; else None.
    """

    name: str = "normal"
    categories: int | None = None

    def __str__(self) -> str:
        return self.name if self.categories is None else f"{self.name}:{self.categories}"

    @property
    def width(self) -> int:
        """The count of numbers that represent one unit: C for a one-hot vector, otherwise 1."""
        return self.categories or 1

    @property
    def is_discrete(self) -> bool:
        """Whether draws have no gradient."""
        return self.name != "normal"


LATENT_KINDS = ("normal", "bernoulli", "categorical:C")
"""The forms of the names."""


def latent_kinds(names: Sequence[str] | str, layers: int) -> tuple[LatentKind, ...]:
    """Parse the kind of each layer: one name for all layers, or a list with one for each.

    Raises:
        UserError: for an unknown kind, fewer than two categories, or a list of another length than
            `layers`.
    """
    given = (names,) if isinstance(names, str) else tuple(names)
    if len(given) not in (1, layers):
        raise UserError(
            f"latents names {len(given)} kinds, but there are {layers} stochastic layers: give one "
            "for each, or a single one for all"
        )
    return tuple(_latent_kind(str(text)) for text in given * (layers if len(given) == 1 else 1))


def _latent_kind(text: str) -> LatentKind:
    name, colon, count = text.partition(":")
    if name == "categorical":
        if not count.isascii() or not count.isdigit() or int(count) < 2:
            raise UserError(
                f"latents {text!r} needs a number of categories, at least 2, such as categorical:10"
            )
        return LatentKind(name, int(count))
    if colon or name not in LATENT_KINDS:
        raise UserError(f"no kind of latents {text!r}; known: {', '.join(LATENT_KINDS)}")
    return LatentKind(name)
