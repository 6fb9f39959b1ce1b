"""Type aliases for arrays and their shapes."""

from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from jax import Array
    from jaxtyping import Float, Key, PyTree, Shaped

    Scalar: TypeAlias = Float[Array, ""]
    PRNGKey: TypeAlias = Key[Array, ""]
    LogWeights: TypeAlias = Float[Array, " k"]
    Example: TypeAlias = PyTree[Shaped[Array, "..."]]
    Latents: TypeAlias = PyTree[Float[Array, "..."]]


def __getattr__(name: str) -> Any:
    """Build the array types on first use, since importing JAX takes most of a second."""
    if name not in {"Scalar", "PRNGKey", "LogWeights", "Example", "Latents"}:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from jax import Array
    from jaxtyping import Float, Key, PyTree, Shaped

    return {
        "Scalar": Float[Array, ""],
        "PRNGKey": Key[Array, ""],
        "LogWeights": Float[Array, " k"],
        "Example": PyTree[Shaped[Array, "..."]],
        "Latents": PyTree[Float[Array, "..."]],
    }[name]
