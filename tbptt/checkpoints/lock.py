"""Lock a folder for one run, with a lock that ends with its process."""

import contextlib
import fcntl
import os
import socket
from datetime import UTC, datetime
from pathlib import Path

from tbptt.checkpoints.errors import CheckpointNotWritten, FolderInUse


class FolderLock:
    """Hold a lock on `folder/lock` until `close`, or until the process ends.

    The kernel holds the lock (`flock`); the file only describes the owner. A killed process
    leaves the file, but not the lock.

    Raises:
        FolderInUse: a living process holds it; the message gives process, machine and time.
        CheckpointNotWritten: the folder cannot be created or written.
    """

    def __init__(self, folder: Path):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise CheckpointNotWritten(
                f"cannot write in the folder {folder}: {error.strerror}. Choose another folder, or "
                "make it writable"
            ) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.read(self._file, 500).decode(errors="replace").strip()
            owner = owner or "an unknown process"
            os.close(self._file)
            raise FolderInUse(
                f"{folder} is in use by another run: {owner}. Wait for it, stop it, or choose "
                "another folder"
            ) from error
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with contextlib.suppress(OSError):  # on a full disk the lock has no description
            os.ftruncate(self._file, 0)
            owner = f"process {os.getpid()} on {socket.gethostname()}, since {now}\n"
            os.write(self._file, owner.encode())

    def close(self) -> None:
        """Release the lock."""
        os.close(self._file)
