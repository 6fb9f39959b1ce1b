"""Selects which of many similar cases `make test` runs; `make slow` runs the others."""

import pytest


def quick(cases, *few):
    """The cases as parameters of a test; all but the few named ones are slow."""
    missing = [case for case in few if case not in cases]
    assert not missing, missing
    return [case if case in few else pytest.param(case, marks=pytest.mark.slow) for case in cases]


def quick_rows(cases, *few):
    """The same for cases that are tuples; those at these positions are quick."""
    return [
        pytest.param(*case, marks=() if i in few else pytest.mark.slow)
        for i, case in enumerate(cases)
    ]
