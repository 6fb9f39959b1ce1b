"""Test and validation examples: which rows of a data set are held out of the training set."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from iwae.data.rows import ALL, Index
from iwae.data.sampling import HOLD_OUT, TEST_ROWS, choose
from iwae.errors import UserError


class HeldOut(NamedTuple):
    """Rows of the training array: those to train on, in this order, and those held out."""

    train: Index
    validation: np.ndarray
    rule: str
    seed: int | None = None


def hold_out_fifth(n: int) -> tuple[np.ndarray, np.ndarray, str]:
    """Training and test rows of data in a single array, and the rule in words.

    The rule takes no seed, so that all runs are measured on the same test examples.
    """
    count = -(-n // 5)
    test = choose(n, count, seed=0, stream=TEST_ROWS)
    rule = f"test: {count} of {n} rows (a fifth) chosen by numpy PCG64([0, {TEST_ROWS}])"
    return np.delete(np.arange(n), test), test, rule


def hold_out_last_400(n: int) -> HeldOut:
    """The MNIST split of the authors' code."""
    rows = np.arange(n)
    return HeldOut(rows[:-400], rows[-400:], "authors: the last 400 training images")


def hold_out_shuffled_1345(n: int) -> HeldOut:
    """The OMNIGLOT split of the authors' code, shuffled into the authors' order.

    NumPy has frozen the legacy generator that they use, so that the permutation is the same.
    """
    rows = np.random.RandomState(123).permutation(n)
    rule = "authors: shuffled by numpy RandomState(123), the last 1345 held out"
    return HeldOut(rows[:-1345], rows[-1345:], rule)


def hold_out(
    name: str,
    n: int,
    wanted: int | float | str | None,
    *,
    seed: int,
    given: int | None = None,
    authors: Callable[[int], HeldOut] | None = None,
) -> HeldOut:
    """Choose the validation examples among the training rows.

    Args:
        name: name of the data set in messages.
        n: number of training rows.
        wanted: number or share of rows to hold out, or "authors"; None for none.
        seed: seed of the random choice.
        given: number of examples in the data's own validation set, if there is one; no training
            rows are then held out.
        authors: the split of the authors' code, if there is one.

    Raises:
        UserError: for a choice that these data do not allow.
    """
    if isinstance(wanted, float) and 0 < wanted < 1:
        wanted = max(1, round(wanted * n)) if given is None else given
    if isinstance(wanted, bool) or not isinstance(wanted, int | np.integer | str | None):
        raise UserError(
            f"validation must be a whole number of examples, or a share of them between 0 and 1, "
            f"not {wanted!r}"
        )
    if given is not None:
        if wanted not in (None, "authors", given):
            raise UserError(
                f"{name} has a validation set of its own ({given:,} examples): "
                f"leave `validation` unset instead of {wanted!r}"
            )
        return HeldOut(ALL, np.arange(0), "a set of its own")
    if isinstance(wanted, str):
        if wanted != "authors" or authors is None:
            or_authors = ", or 'authors'" if authors else ""
            raise UserError(
                f"validation of {name} must be a number of examples{or_authors}, not {wanted!r}"
            )
        held_out = authors(n)
    elif not wanted:
        return HeldOut(ALL, np.arange(0), "none held out")
    else:
        rows = choose(n, max(wanted, 0), seed=seed)
        rule = f"{wanted} training rows chosen by numpy PCG64([seed, {HOLD_OUT}])"
        held_out = HeldOut(np.delete(np.arange(n), rows), rows, rule, seed)
    if not (0 < len(held_out.validation) < n):
        raise UserError(
            f"validation must hold out between 0 and {n - 1:,} of the {n:,} training examples "
            f"of {name}, not {wanted!r}"
        )
    return held_out
