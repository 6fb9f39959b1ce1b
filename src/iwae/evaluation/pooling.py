"""Pooled estimates from multiple imputations, by Rubin's rules."""

from typing import NamedTuple

import numpy as np

from iwae.errors import UserError


class Pooled(NamedTuple):
    """An estimate from m completed tables, in arrays of the shape of one estimate.

    Attributes:
        estimate: the mean over tables.
        error: standard error, including the uncertainty due to missing values.
        within, between: variance of the estimate within a table, and of estimates between tables.
        df: degrees of freedom of the t distribution of (estimate - truth) / error.
        missing_information: fraction of the information that is missing.
    """

    estimate: np.ndarray
    error: np.ndarray
    within: np.ndarray
    between: np.ndarray
    df: np.ndarray
    missing_information: np.ndarray


def pool(estimates: np.ndarray, variances: np.ndarray, df: float | int = np.inf) -> Pooled:
    """Combine the estimates of m completed tables (Rubin 1987, section 3.1).

    Args:
        estimates: `[m, ...]`, the estimate from each table.
        variances: `[m, ...]`, its squared standard error in each table.
        df: degrees of freedom of the estimate in a table without gaps, such as n - p of a
            regression; small ones reduce the degrees of freedom (Barnard & Rubin 1999).

    Raises:
        UserError: for fewer than two tables, shapes that differ, numbers that are not finite,
            variances that are not positive, or df below 1.
    """
    q, u = (np.asarray(one, np.float64) for one in (estimates, variances))
    if q.ndim == 0 or q.shape != u.shape or len(q) < 2:
        raise UserError(
            f"estimates {q.shape} and variances {u.shape} must have the same shape [m, ...], with "
            "at least two tables"
        )
    if not (np.isfinite(q).all() and np.isfinite(u).all() and (u > 0).all() and df >= 1):
        raise UserError("estimates must be finite, variances positive, and df at least 1")
    m = len(q)
    within, between = u.mean(axis=0), q.var(axis=0, ddof=1)
    added = (1 + 1 / m) * between
    total = within + added
    share = added / total
    with np.errstate(divide="ignore"):
        large = (m - 1) / share**2  # infinite if all tables agree
    observed = np.full_like(share, np.inf)
    if np.isfinite(df):
        observed = (df + 1) / (df + 3) * df * (1 - share)
    freedom = 1 / (1 / large + 1 / observed)
    ratio = added / within
    missing = (ratio + 2 / (freedom + 3)) / (1 + ratio)
    return Pooled(q.mean(axis=0), np.sqrt(total), within, between, freedom, missing)
