"""On-disk format of a checkpoint: leaves as arrays, metadata as JSON, and digests of every file."""

import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

METADATA, DIGESTS = "metadata.json", "digests.json"
FORMAT = 1  # version of the folder's layout
ABSENT = "absent"
BLOCK = 1 << 20  # bytes hashed at once
# name of a leaf, such as ".params.cell.w_h" -> "float32[4, 8]"; a random key: "key<fry>[]"
Shapes = dict[str, str]


class Metadata(NamedTuple):
    """Metadata of a checkpoint.

    format, tbptt, jax:             versions of the format, of this library and of jax
    step, position, metric, config: as given to `Checkpoints`
    leaves:                         names and shapes, in the order of the arrays
    """

    format: int
    tbptt: str
    jax: str
    step: int
    position: Any
    metric: float | None
    config: dict[str, Any]
    leaves: Shapes


class CheckpointDamaged(ValueError):
    """A file of a checkpoint is missing, truncated or changed; the message gives the file."""


class CheckpointMismatch(ValueError):
    """A valid checkpoint is of another model, config or version; the message gives which."""


class CheckpointNotWritten(OSError):
    """A checkpoint could not be written; earlier checkpoints are unchanged."""


class FolderInUse(OSError):
    """Another living process uses the folder; the message gives the process."""


# Leaves


def named_leaves(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Return the leaves of a pytree by their paths, each path after `prefix`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {prefix + jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def leaf_shape(leaf: Any) -> str:
    """Return dtype and shape of a leaf as text; the leaf is an array or a ShapeDtypeStruct."""
    dtype = leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)
    return f"{dtype}{list(np.shape(leaf))}"


def is_key(leaf: Any) -> bool:
    """Return whether a leaf is a typed random key, as made by `jax.random.key`."""
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def to_numbers(leaf: Any) -> jax.Array:
    """Return a leaf as an array of numbers; a random key as its key data."""
    return jax.random.key_data(leaf) if is_key(leaf) else jnp.asarray(leaf)


def from_numbers(numbers: Any, like: Any) -> Any:
    """Convert numbers back to the kind of leaf that `like` is: an array or a random key."""
    if is_key(like):
        return jax.random.wrap_key_data(numbers, impl=jax.random.key_impl(like))
    return numbers


def copy_to_save(leaf: Any) -> jax.Array:
    """Return the numbers of a leaf in memory that a donating train step cannot overwrite.

    On a CPU orbax reads the buffer of the array itself, so it needs a copy.
    """
    numbers = to_numbers(leaf)
    on_cpu = all(device.platform == "cpu" for device in numbers.devices())
    return jnp.copy(numbers) if on_cpu else numbers


def restore_target(leaf: Any) -> jax.ShapeDtypeStruct:
    """Return shape, dtype and sharding with which the numbers of a leaf are restored."""
    sharding = getattr(leaf, "sharding", None)
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    if is_key(leaf):
        key = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
        data = jax.eval_shape(jax.random.key_data, key)
        return jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=sharding)
    return jax.ShapeDtypeStruct(np.shape(leaf), jnp.result_type(leaf), sharding=sharding)


def leaf_size(leaf: Any) -> int:
    """Return the number of entries of a leaf; an empty leaf is not written."""
    return int(np.prod(np.shape(leaf), dtype=np.int64))


# Metadata


def make_metadata(
    step: int, position: Any, metric: float | None, config: dict[str, Any], shapes: Shapes
) -> Metadata:
    """Return the metadata of a new checkpoint, with the current versions."""
    return Metadata(
        FORMAT, library_version(), jax.__version__, step, position, metric, config, shapes
    )


def library_version() -> str:
    """Return the version of this library, equal to `tbptt.__version__`."""
    try:
        return version("tbptt")
    except PackageNotFoundError:  # a checkout that was not installed
        return "0+unknown"


def read_metadata(path: Path) -> Metadata:
    """Read the metadata of a checkpoint; raise a CheckpointDamaged if it is unreadable."""
    try:
        found = json.loads((path / METADATA).read_text())
        return Metadata(**{name: found.get(name) for name in Metadata._fields})
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise CheckpointDamaged(f"{path}: the file {METADATA} cannot be read ({error})") from error


def check_metadata(
    metadata: Metadata, path: Path, wanted: Shapes, config: Mapping[str, Any] | None, prefix: str
) -> None:
    """Raise a CheckpointMismatch for the first difference between a checkpoint and the request.

    Another version of jax only causes a warning, because rounding may differ.
    """
    versions = (
        ("format", metadata.format, FORMAT),
        ("tbptt", metadata.tbptt, library_version()),
    )
    for name, saved, current in versions:
        if saved != current:
            raise CheckpointMismatch(
                f"{path} was written by another version: its {name} is {saved}, the current one is "
                f"{current}. Use that version, or start a new run in another folder"
            )
    fields = [] if config is None else config_differences(metadata.config, config)
    if fields:
        name, saved, current = fields[0]
        more = ""
        if fields[1:]:
            names = ", ".join(name for name, _, _ in fields[1:])
            more = f" (and {len(fields) - 1} more: {names})"
        raise CheckpointMismatch(
            f"{path} is of another run: its {name} is {saved}, the current one is {current}{more}. "
            "Use the saved settings, or start a new run in another folder"
        )
    saved_leaves = {
        name: shape for name, shape in metadata.leaves.items() if name.startswith(prefix)
    }
    found = _leaf_difference(saved_leaves, wanted)
    if found is not None:
        raise CheckpointMismatch(f"{path} is of another model, optimizer or estimator: {found}")
    if metadata.jax != jax.__version__:
        warnings.warn(
            f"{path} was written with jax {metadata.jax}, the current one is {jax.__version__}: "
            "rounding may differ",
            stacklevel=5,
        )


def config_differences(
    saved: Mapping[str, Any], current: Mapping[str, Any]
) -> list[tuple[str, Any, Any]]:
    """Return (field, saved, current) for all fields that differ after conversion to JSON.

    Fields of nested mappings have dotted names.
    """
    a, b = (_flat(json.loads(json.dumps(config))) for config in (saved, current))
    return [
        (name, a.get(name, ABSENT), b.get(name, ABSENT))
        for name in {**a, **b}
        if a.get(name, ABSENT) != b.get(name, ABSENT)
    ]


def _flat(config: Any, name: str = "config") -> dict[str, Any]:
    if not isinstance(config, dict) or not config:
        return {name: config}
    flat: dict[str, Any] = {}
    for field, inner in config.items():
        flat |= _flat(inner, f"{name}.{field}")
    return flat


def _leaf_difference(saved: Shapes, wanted: Shapes) -> str | None:
    """Describe the first leaf in which two states differ; None if they agree."""
    for name, shape in wanted.items():
        if name not in saved:
            return f"it has no leaf {name}; expected {shape}"
        if saved[name] != shape:
            return f"its leaf {name} is {saved[name]}; expected {shape}"
    if extra := [name for name in saved if name not in wanted]:
        return f"it has an additional leaf {extra[0]} ({saved[extra[0]]})"
    return None


# Digests


def write_digests(folder: Path) -> None:
    """Write the length and SHA-256 of every file of a folder to `digests.json`, and sync all.

    `digests.json` is the last file to be written. Its last field is a digest of the listing
    itself, which detects damage to the listing.
    """
    files = {}
    for path in _files(folder):
        files[path.relative_to(folder).as_posix()] = [path.stat().st_size, _digest(path, sync=True)]
    with (folder / DIGESTS).open("w") as file:
        json.dump({"files": files, "listing": _listing_digest(files)}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    for directory in {folder, *(path.parent for path in _files(folder))}:
        sync_folder(directory)


def verify_digests(folder: Path) -> None:
    """Read every file of a folder and compare it with `digests.json`.

    Raises:
        CheckpointDamaged: a file is missing, has another length or other bytes, or was added.
    """
    try:
        written = json.loads((folder / DIGESTS).read_text())
        files = {
            str(name): [int(size), str(digest)] for name, (size, digest) in written["files"].items()
        }
        listing = written["listing"]
    except FileNotFoundError as error:
        raise CheckpointDamaged(f"{folder}: the file {DIGESTS} is missing") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointDamaged(f"{folder}: the file {DIGESTS} cannot be read ({error})") from error
    if listing != _listing_digest(files):
        raise CheckpointDamaged(f"{folder}: the file {DIGESTS} was changed")
    present = {path.relative_to(folder).as_posix() for path in _files(folder)} - {DIGESTS}
    for name, (size, digest) in files.items():
        if name not in present:
            raise CheckpointDamaged(f"{folder}: the file {name} is missing")
        try:
            found = (folder / name).stat().st_size
            if found != size:
                raise CheckpointDamaged(
                    f"{folder}: the file {name} has {found} bytes; {size} were written"
                )
            if _digest(folder / name) != digest:
                raise CheckpointDamaged(
                    f"{folder}: the file {name} has other bytes than were written (its SHA-256 "
                    "differs)"
                )
        except OSError as error:
            raise CheckpointDamaged(
                f"{folder}: the file {name} cannot be read ({error.strerror})"
            ) from error
    if extra := sorted(present - set(files)):
        raise CheckpointDamaged(f"{folder}: the file {extra[0]} is not part of the checkpoint")


def sync_folder(folder: Path) -> None:
    """Flush the entries of a folder to disk, so that created and renamed files persist."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if not path.is_dir())


def _digest(path: Path, sync: bool = False) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            found.update(block)
        if sync:
            os.fsync(file.fileno())
    return found.hexdigest()


def _listing_digest(files: dict[str, list]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
