"""A pytree as named arrays and back: random keys as their numbers, nothing by pickle."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# name of a leaf, such as ".params.cell.w_h" -> "float32[4, 8]"; a random key: "key<fry>[]"
Shapes = dict[str, str]


def named(tree: Any, under: str = "") -> dict[str, Any]:
    """Names the leaves of a pytree by their places in it, each name behind `under`."""
    return {under + jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def shape_of(leaf: Any) -> str:
    """Writes dtype and shape of a leaf, an array or only its shape."""
    dtype = leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)
    return f"{dtype}{list(np.shape(leaf))}"


def is_key(leaf: Any) -> bool:
    """Tells whether a leaf is a typed random key, as `jax.random.key` makes them."""
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def numbers(leaf: Any) -> jax.Array:
    """Returns a leaf as an array of numbers: of a random key its words."""
    return jax.random.key_data(leaf) if is_key(leaf) else jnp.asarray(leaf)


def copied(leaf: Any) -> jax.Array:
    """Returns the numbers of a leaf where no train step overwrites them: on a CPU orbax would look at the same memory."""
    words = numbers(leaf)
    return jnp.copy(words) if all(device.platform == "cpu" for device in words.devices()) else words


def target(leaf: Any) -> jax.ShapeDtypeStruct:
    """Says as what, and on which devices, the numbers of a leaf are to come back."""
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    if is_key(leaf):
        words = jax.eval_shape(jax.random.key_data, jax.ShapeDtypeStruct(leaf.shape, leaf.dtype))
        return jax.ShapeDtypeStruct(words.shape, words.dtype, sharding=sharding)
    return jax.ShapeDtypeStruct(np.shape(leaf), jnp.result_type(leaf), sharding=sharding)


def revived(words: Any, leaf: Any) -> Any:
    """Makes of numbers what `leaf` is: a random key again."""
    return jax.random.wrap_key_data(words, impl=jax.random.key_impl(leaf)) if is_key(leaf) else words


def difference(saved: Shapes, wanted: Shapes) -> str | None:
    """Names the first leaf in which two states differ, or None."""
    for name, shape in wanted.items():
        if name not in saved:
            return f"it has no leaf {name} ({shape} here)"
        if saved[name] != shape:
            return f"its leaf {name} is {saved[name]}; {shape} is wanted"
    if extra := [name for name in saved if name not in wanted]:
        return f"it has a leaf {extra[0]} ({saved[extra[0]]}) that is not wanted"
    return None


def numbers_of(leaf: Any) -> int:
    """Counts the entries of a leaf; one that has none is not written, there is nothing in it."""
    return int(np.prod(np.shape(leaf), dtype=np.int64))
