"""One run a folder: a lock that says who holds it and that cannot outlive its process."""

import contextlib
import fcntl
import os
import socket
from datetime import UTC, datetime
from pathlib import Path

from tbptt.checkpoints.errors import CheckpointNotWritten, FolderInUse


class FolderLock:
    """Holds `folder/lock` until closed, or until the process ends, however it ends.

    The kernel keeps the lock (`flock`), the file only says who has it: of a process that was killed a file is left, and
    no lock.

    Raises:
        FolderInUse: a living process holds it; names process, machine and time.
        CheckpointNotWritten: the folder cannot be made or written.
    """

    def __init__(self, folder: Path):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise CheckpointNotWritten(
                f"cannot write in the folder {folder}: {error.strerror}. Choose another folder, or make it writable"
            ) from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(self._file, 500).decode(errors="replace").strip() or "a process that gave no name"
            os.close(self._file)
            raise FolderInUse(
                f"{folder} is in use by another run: {holder}. Wait for it, stop it, or choose another folder"
            ) from error
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with contextlib.suppress(OSError):  # a full disk: the lock holds without a name
            os.ftruncate(self._file, 0)
            os.write(self._file, f"process {os.getpid()} on {socket.gethostname()}, since {now}\n".encode())

    def close(self) -> None:
        """Lets the folder go."""
        os.close(self._file)
