"""Arithmetic in float32, whatever JAX's default type (JAX_ENABLE_X64), and complete products."""

import inspect
import os
import resource
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

import jax

P = ParamSpec("P")
R = TypeVar("R")


def _may_be_refused_memory() -> bool:
    """Whether the system can refuse memory to this process, instead of killing it."""
    limits = map(resource.getrlimit, (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    accounting = Path("/proc/sys/vm/overcommit_memory")
    strict = accounting.exists() and accounting.read_text().strip() == "2"
    return strict or any(soft != resource.RLIM_INFINITY for soft, _ in limits)


if _may_be_refused_memory():
    # oneDNN, which multiplies matrices for XLA on a CPU, omits a product if it is refused memory,
    # and XLA does not notice. Eigen ends the process instead.
    os.environ.setdefault("TENSORFLOW_USE_CUSTOM_CONTRACTION_KERNEL", "false")


def float32(fn: Callable[P, R]) -> Callable[P, R]:
    """Run a function, or each step of a generator, with 32-bit numbers as JAX's default.

    Its programs, random numbers and results are then the same bit for bit with and without
    JAX_ENABLE_X64. The caller of a generator keeps its own default.
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
