"""Measurements on several draws of a test set's pixels: the error that one draw hides."""

import jax
import numpy as np

from iwae.data.draws import redrawn
from iwae.errors import UserError
from iwae.results.records import Subject
from iwae.runs.setup import split_examples
from iwae.typing import PRNGKey


def redrawn_subjects(subject: Subject, draws: int) -> list[Subject]:
    """The subject with each of so many draws of its test pixels; the first is its own.

    Raises:
        UserError: unless these are two draws or more, of a test set that has several.
    """
    if draws < 2:
        raise UserError(f"binarizations is {draws}; their spread needs at least 2")
    if subject.split != "test":
        raise UserError(
            f"binarizations are draws of the test split, not of {subject.split}: leave out one "
            "of both"
        )
    sets = [redrawn(subject.dataset, draw) for draw in range(draws)]
    others = [split_examples(one, "test")[subject.places] for one in sets[1:]]
    return [subject, *(subject._replace(data=data) for data in others)]


def draw_key(seed: int, draw: int) -> PRNGKey:
    """The key of the particles of a draw; that of draw 0 is the usual one."""
    key = jax.random.key(seed)
    # Counted from the end: examples and particles fold in numbers from 0 on.
    return key if draw == 0 else jax.random.fold_in(key, np.uint32(2**32 - draw))
