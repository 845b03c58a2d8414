"""Reading checkpoints: sound, of this model and these settings, or not at all."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp

from tbptt.checkpoints import leaves, manifest
from tbptt.checkpoints.about import About, check, read_about
from tbptt.checkpoints.errors import CheckpointDamaged

PREFIX, STATE = "step_", "state"


class Restored(NamedTuple):
    """What a checkpoint holds: the state as it was, to the bit, and what `Checkpoints.save` was told with it."""

    state: Any
    step: int
    position: Any
    metric: float | None
    config: dict[str, Any]
    path: Path


def finished(folder: Path) -> list[Path]:
    """Lists the finished checkpoints of a folder, the oldest first; sound or not."""
    found = [path for path in folder.glob(f"{PREFIX}*") if path.name.removeprefix(PREFIX).isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix(PREFIX)))


def restore(path: Path, like: Any, config: Mapping[str, Any] | None = None, *, under: str = "") -> Restored:
    """Restores one checkpoint, after every file of it was read and compared with its digest.

    Args:
      path: the checkpoint's folder.
      like: a state of the structure, shapes and dtypes wanted, for example of `init_state`; its values do not count. A
        leaf that has a sharding comes back on its devices, however many the checkpoint was made on.
      config: what `Checkpoints` was given; None does not compare.
      under: where `like` stands in the saved state: ".params" restores `state.params` alone, and the rest is not read.

    Raises:
      CheckpointDamaged: it is not what was written; names the file.
      CheckpointMismatch: it is of another version, config or model; names the field, or the leaf and both shapes.
    """
    if not path.is_dir():
        raise CheckpointDamaged(f"{path}: there is no such checkpoint")
    manifest.verify(path)
    about = read_about(path)
    check(about, path, {name: leaves.shape_of(leaf) for name, leaf in leaves.named(like, under).items()}, config, under)
    try:
        state = _read_state(path.absolute() / STATE, about, like, under)  # orbax takes no relative path
    except Exception as error:  # orbax and its store raise many kinds, for files that bear the right digests
        raise CheckpointDamaged(f"{path}: its arrays cannot be read ({type(error).__name__}: {error})") from error
    return Restored(state, about.step, about.position, about.metric, about.config, path)


def newest_good(folder: Path, like: Any, config: Mapping[str, Any] | None = None, *, under: str = "") -> Restored | None:
    """Restores the newest checkpoint that is sound; a warning names every damaged one that was passed over, and why.

    Args: as for `restore`.

    Returns:
      The checkpoint; None if the folder holds none.

    Raises:
      CheckpointDamaged: it holds some, and none is sound.
      CheckpointMismatch: the newest sound one is of something else.
    """
    return first_good(reversed(finished(folder)), folder, like, config, under)


def first_good(paths: Any, folder: Path, like: Any, config: Mapping[str, Any] | None, under: str) -> Restored | None:
    """Restores the first of some checkpoints that is sound."""
    bad: list[CheckpointDamaged] = []
    for path in paths:
        try:
            return restore(path, like, config, under=under)
        except CheckpointDamaged as error:
            bad.append(error)
            warnings.warn(f"a damaged checkpoint is passed over: {error}", stacklevel=3)
    if bad:
        raise CheckpointDamaged(
            f"none of the {len(bad)} checkpoints in {folder} is sound. The first one tried: {bad[0]}. Bring back a copy, "
            "or start anew in another folder"
        )
    return None


def _read_state(path: Path, about: About, like: Any, under: str) -> Any:
    places = {name: f"leaf_{index}" for index, name in enumerate(about.leaves)}
    wanted = {name: leaf for name, leaf in leaves.named(like, under).items() if leaves.numbers_of(leaf)}
    item = {places[name]: leaves.target(leaf) for name, leaf in wanted.items()}
    read: dict[str, Any] = {}
    if item:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            args = ocp.checkpoint_utils.construct_restore_args(item)
            read = reader.restore(path, args=ocp.args.PyTreeRestore(item, restore_args=args, partial_restore=True))
    found = {name: read[places[name]] for name in wanted}
    flat, tree = jax.tree_util.tree_flatten_with_path(like)
    made = []
    for at, leaf in flat:
        words = found.get(under + jax.tree_util.keystr(at))
        made.append(leaves.numbers(leaf) if words is None else leaves.revived(words, leaf))
    return jax.tree.unflatten(tree, made)
