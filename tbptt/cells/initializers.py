"""Weight initializers `(key, shape, dtype) -> array`.

They are named at module level, so that equal cells have equal hashes.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from tbptt.types import PRNGKey

Initializer = Callable[[Any, tuple[int, ...], Any], Array]

# U(-sqrt(6 / (m + n)), sqrt(6 / (m + n))): Glorot and Bengio 2010.
glorot_uniform: Initializer = jax.nn.initializers.glorot_uniform()


def orthogonal(key: PRNGKey, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Draw an orthogonal matrix W, for which ||h W|| = ||h||; the key is consumed.

    W is the Q factor of a Gaussian matrix. Half precision has no QR decomposition: there W is drawn
    in float32 and rounded.
    """
    wide = jnp.promote_types(dtype, jnp.float32)
    return jax.nn.initializers.orthogonal()(key, shape, wide).astype(dtype)


def identity(key: PRNGKey, shape: tuple[int, ...], dtype: DTypeLike) -> Array:
    """Return the identity matrix (Le, Jaitly, Hinton 2015, arXiv:1504.00941); `key` is not used."""
    del key
    return jnp.eye(*shape, dtype=dtype)


def blocks(
    initializer: Initializer, key: PRNGKey, n: int, shape: tuple[int, int], dtype: DTypeLike
) -> Array:
    """Draw n independent matrices side by side, `[shape[0], n * shape[1]]`, one for each gate."""
    return jnp.concatenate(
        [initializer(k, shape, dtype) for k in jax.random.split(key, n)], axis=-1
    )


def chrono(key: PRNGKey, hidden_dim: int, longest_lag: int, dtype: DTypeLike) -> Float[Array, " H"]:
    """Draw forget-gate biases `log u` with u ~ U(1, longest_lag - 1); the key is consumed.

    The time scales of the units then cover 1 .. longest_lag steps.

    References: Tallec and Ollivier, *Can recurrent neural networks warp time?*, ICLR 2018,
    arXiv:1804.11188.
    """
    return jnp.log(jax.random.uniform(key, (hidden_dim,), dtype, 1.0, longest_lag - 1.0))


def float_dtype(dtype: DTypeLike | None) -> Any:
    """Return `dtype`, or JAX's default float for None (float32, float64 under jax_enable_x64)."""
    return jnp.result_type(float) if dtype is None else jnp.dtype(dtype)


def check_sizes(cell: Any) -> None:
    """Raise a ValueError if `input_dim` or `hidden_dim` is not a Python int of at least 1."""
    for name in ("input_dim", "hidden_dim"):
        size = getattr(cell, name)
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(
                f"{type(cell).__name__}.{name} must be a Python int of at least 1; got {size!r}"
            )


def check_longest_lag(cell: Any) -> None:
    """Raise a ValueError unless `longest_lag` is None or at least 3."""
    if cell.longest_lag is not None and cell.longest_lag < 3:
        raise ValueError(
            f"{type(cell).__name__}.longest_lag must be at least 3 steps, for "
            f"log U(1, longest_lag - 1); got {cell.longest_lag}; leave it None for a constant bias"
        )
