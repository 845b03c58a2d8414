"""The digests of a checkpoint's files: what was written can be told from what is there now."""

import hashlib
import json
import os
from pathlib import Path

from tbptt.checkpoints.errors import CheckpointDamaged

NAME = "digests.json"
BLOCK = 1 << 20


def seal(folder: Path) -> None:
    """Writes the length and SHA-256 of every file of a folder into `digests.json`, the last file, all of it on the disk.

    One digest of the listing itself is its last field, so that damage of the listing is seen too.
    """
    files = {}
    for path in _files(folder):
        files[path.relative_to(folder).as_posix()] = [path.stat().st_size, _digest(path, sync=True)]
    with (folder / NAME).open("w") as file:
        json.dump({"files": files, "listing": _listing(files)}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    for directory in {folder, *(path.parent for path in _files(folder))}:
        sync_folder(directory)


def verify(folder: Path) -> None:
    """Reads every file of a sealed folder again.

    Raises:
        CheckpointDamaged: a file is missing, of another length, or holds other bytes; or one is there that was not written.
    """
    try:
        sealed = json.loads((folder / NAME).read_text())
        files = {str(name): [int(size), str(digest)] for name, (size, digest) in sealed["files"].items()}
        listing = sealed["listing"]
    except FileNotFoundError as error:
        raise CheckpointDamaged(f"{folder}: the file {NAME} is missing") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointDamaged(f"{folder}: the file {NAME} cannot be read ({error})") from error
    if listing != _listing(files):
        raise CheckpointDamaged(f"{folder}: the file {NAME} was changed")
    there = {path.relative_to(folder).as_posix() for path in _files(folder)} - {NAME}
    for name, (size, digest) in files.items():
        if name not in there:
            raise CheckpointDamaged(f"{folder}: the file {name} is missing")
        try:
            found = (folder / name).stat().st_size
            if found != size:
                raise CheckpointDamaged(f"{folder}: the file {name} has {found} bytes; {size} were written")
            if _digest(folder / name) != digest:
                raise CheckpointDamaged(
                    f"{folder}: the file {name} holds other bytes than were written (its SHA-256 differs)"
                )
        except OSError as error:
            raise CheckpointDamaged(f"{folder}: the file {name} cannot be read ({error.strerror})") from error
    if extra := sorted(there - set(files)):
        raise CheckpointDamaged(f"{folder}: the file {extra[0]} is no part of the checkpoint")


def sync_folder(folder: Path) -> None:
    """Brings a folder's own entries to the disk: that a file is in it, or has been renamed."""
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


def _listing(files: dict[str, list]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
