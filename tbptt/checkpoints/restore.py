"""Restore checkpoints after verifying their files, their settings and the shapes of the state."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from tbptt.checkpoints import format as checkpoint_format
from tbptt.checkpoints.format import (
    CheckpointDamaged,
    Metadata,
    check_metadata,
    named_leaves,
    read_metadata,
)

PREFIX, UNFINISHED, STATE = "step_", "unfinished_", "state"


class Restored(NamedTuple):
    """A restored checkpoint: the state, bit for bit, and the other arguments of its `save`."""

    state: Any
    step: int
    position: Any
    metric: float | None
    config: dict[str, Any]
    path: Path


def finished(folder: Path) -> list[Path]:
    """Return the finished checkpoints of a folder, the oldest first, without verifying them."""
    found = [path for path in folder.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix(PREFIX)))


def restore(
    path: Path, like: Any, config: Mapping[str, Any] | None = None, *, prefix: str = ""
) -> Restored:
    """Restore one checkpoint, after comparing every file with its digest.

    Args:
      path: the checkpoint's folder.
      like: a state with the structure, shapes and dtypes to restore, for example from
        `init_state`; its values are ignored. A leaf with a sharding is restored to its
        devices, whatever devices the checkpoint was made on.
      config: as given to `Checkpoints`; None skips the comparison.
      prefix: path of `like` in the saved state: ".params" restores `state.params` alone and
        reads nothing else.

    Raises:
      CheckpointDamaged: a file differs from what was written; the message gives the file.
      CheckpointMismatch: another version, config or model; the message gives the field, or the
        leaf and both shapes.
    """
    if not path.is_dir():
        raise CheckpointDamaged(f"{path}: there is no such checkpoint")
    checkpoint_format.verify_digests(path)
    metadata = read_metadata(path)
    shapes = {
        name: checkpoint_format.leaf_shape(leaf)
        for name, leaf in named_leaves(like, prefix).items()
    }
    check_metadata(metadata, path, shapes, config, prefix)
    try:
        # orbax accepts absolute paths only.
        state = _read_state(path.absolute() / STATE, metadata, like, prefix)
    except Exception as error:  # orbax raises many types, even for files with correct digests
        raise CheckpointDamaged(
            f"{path}: its arrays cannot be read ({type(error).__name__}: {error})"
        ) from error
    return Restored(state, metadata.step, metadata.position, metadata.metric, metadata.config, path)


def newest_good(
    folder: Path, like: Any, config: Mapping[str, Any] | None = None, *, prefix: str = ""
) -> Restored | None:
    """Restore the newest intact checkpoint; issue a warning for every damaged one.

    Args: as for `restore`.

    Returns:
      The checkpoint; None if the folder holds none.

    Raises:
      CheckpointDamaged: there are checkpoints, and none is intact.
      CheckpointMismatch: the newest intact one is of another version, config or model.
    """
    return first_good(reversed(finished(folder)), folder, like, config, prefix)


def first_good(
    paths: Any, folder: Path, like: Any, config: Mapping[str, Any] | None, prefix: str
) -> Restored | None:
    """Restore the first intact one of a sequence of checkpoints."""
    damaged: list[CheckpointDamaged] = []
    for path in paths:
        try:
            return restore(path, like, config, prefix=prefix)
        except CheckpointDamaged as error:
            damaged.append(error)
            warnings.warn(f"skipping a damaged checkpoint: {error}", stacklevel=3)
    if damaged:
        raise CheckpointDamaged(
            f"none of the {len(damaged)} checkpoints in {folder} is intact. The first one tried: "
            f"{damaged[0]}. Restore the folder from a copy, or start a new run in another folder"
        )
    return None


def _read_state(path: Path, metadata: Metadata, like: Any, prefix: str) -> Any:
    places = {name: f"leaf_{index}" for index, name in enumerate(metadata.leaves)}
    wanted = {
        name: leaf
        for name, leaf in named_leaves(like, prefix).items()
        if checkpoint_format.leaf_size(leaf)
    }
    item = {places[name]: checkpoint_format.restore_target(leaf) for name, leaf in wanted.items()}
    read: dict[str, Any] = {}
    if item:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            restore_args = ocp.checkpoint_utils.construct_restore_args(item)
            args = ocp.args.PyTreeRestore(item, restore_args=restore_args, partial_restore=True)
            read = reader.restore(path, args=args)
    found = {name: read[places[name]] for name in wanted}
    flat, tree = jax.tree_util.tree_flatten_with_path(like)
    leaves = []
    for at, leaf in flat:
        numbers = found.get(prefix + jax.tree_util.keystr(at))
        if numbers is None:
            leaves.append(checkpoint_format.to_numbers(leaf))
        else:
            leaves.append(checkpoint_format.from_numbers(numbers, leaf))
    return jax.tree.unflatten(tree, leaves)
