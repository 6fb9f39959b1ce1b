"""Arithmetic in float32, whatever JAX's default type is (JAX_ENABLE_X64)."""

import inspect
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any, ParamSpec, TypeVar, cast

import jax

P = ParamSpec("P")
R = TypeVar("R")


def float32(fn: Callable[P, R]) -> Callable[P, R]:
    """The function with 32-bit numbers by default, as JAX has them without JAX_ENABLE_X64.

    Its programs, random numbers and results are then the same bit for bit. A generator computes
    each of its values so; its caller keeps its own default.
    """
    if inspect.isgeneratorfunction(inspect.unwrap(fn)):  # also one whose types are checked
        return cast("Callable[P, R]", wraps(fn)(_steps(cast("Callable[..., Iterator[Any]]", fn))))

    @wraps(fn)
    def narrow(*args: P.args, **kwargs: P.kwargs) -> R:
        with jax.enable_x64(False):
            return fn(*args, **kwargs)

    return narrow


def _steps(fn: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    def steps(*args: Any, **kwargs: Any) -> Iterator[Any]:
        values, done = fn(*args, **kwargs), object()
        try:
            while True:
                with jax.enable_x64(False):
                    value = next(values, done)
                if value is done:
                    return
                yield value
        finally:
            values.close()  # type: ignore[attr-defined]  # a generator

    return steps
