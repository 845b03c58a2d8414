"""Detect that a data file was removed, shortened or changed while a run reads it."""

import os
from pathlib import Path
from typing import NamedTuple


class SourceChanged(OSError):
    """A data file is gone or is not the one that was opened, so its rows may have moved."""


class FileStamp(NamedTuple):
    """State of a file when it was opened.

    path:               the file
    size, modified, id: its size in bytes, time of change in ns, and inode number
    """

    path: Path
    size: int
    modified: int
    id: int

    def check(self) -> None:
        """Raise SourceChanged unless the file exists unchanged; one `stat` call, about 1 us."""
        try:
            now = stamp_of(self.path)
        except OSError as error:
            raise SourceChanged(
                f"{self.path} disappeared while it was read: {error.strerror}. Restore it, "
                "unchanged, and resume the run from its newest checkpoint"
            ) from error
        if now == self:
            return
        what = "was replaced by another file or written to"
        if now.size != self.size:
            verb = "shrank" if now.size < self.size else "grew"
            what = f"{verb} from {self.size} to {now.size} bytes"
        raise SourceChanged(
            f"{self.path} {what} while it was read. The data of a run must not change: restore the "
            "file, or start a new run on a finished copy"
        )


def stamp_of(path: Path) -> FileStamp:
    """Return the current state of a file; raise an OSError if it does not exist."""
    found = os.stat(path)
    return FileStamp(path, found.st_size, found.st_mtime_ns, found.st_ino)
