"""Save and load parameters in one file, without the state of the optimizer."""

import os
from pathlib import Path

import flax.serialization
import jax
import numpy as np

from tbptt.types import Params


def save(params: Params, path: str | os.PathLike[str]) -> None:
    """Write parameters into one file, atomically: a killed process leaves the old file intact.

    Args:
      params: any pytree of arrays, dicts, lists, tuples and NamedTuples.
      path: the file, conventionally `*.msgpack`; an existing one is replaced.
    """
    path = Path(path)
    temporary = path.with_name(path.name + ".new")
    temporary.write_bytes(flax.serialization.to_bytes(jax.device_get(params)))
    temporary.replace(path)


def load(path: str | os.PathLike[str], like: Params) -> Params:
    """Read parameters that `save` wrote.

    Args:
      path: the file.
      like: parameters of the same model, for example from `tbptt.init_params`; only their
        structure, shapes and dtypes are used.

    Returns:
      The parameters, with numpy leaves.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file holds no parameters, or those of another model; the message names the
        leaf.
    """
    data = Path(path).read_bytes()
    try:
        params = flax.serialization.from_bytes(like, data)
    except Exception as error:  # of msgpack, of flax: many kinds
        raise ValueError(
            f"{path} does not hold parameters of this model: {error}. Make the model with the "
            "settings it had when it was saved"
        ) from error
    found = jax.tree_util.tree_leaves_with_path(params)
    for (leaf_path, got), want in zip(found, jax.tree.leaves(like), strict=True):
        if np.shape(got) != np.shape(want) or np.dtype(got.dtype) != np.dtype(want.dtype):
            raise ValueError(
                f"{path}: params{jax.tree_util.keystr(leaf_path)} is "
                f"{got.dtype}{list(np.shape(got))}, but "
                f"{np.dtype(want.dtype)}{list(np.shape(want))} in `like`. Make the model with the "
                "settings it had when it was saved"
            )
    return params
