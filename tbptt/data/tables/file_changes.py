"""A file that must stay what it was while a run reads it: gone, shortened or changed is an error that says so."""

import os
from pathlib import Path
from typing import NamedTuple


class SourceChanged(OSError):
    """A data file is gone, or is no longer the one that was opened: what was read of it before may mean other steps."""


class Watched(NamedTuple):
    """A file as it was when it was opened.

    path:               the file
    size, modified, id: its bytes, time of change in ns, and number in the file system
    """

    path: Path
    size: int
    modified: int
    id: int

    def check(self) -> None:
        """Raises SourceChanged unless the file is there and as it was; one look at its directory entry, a microsecond."""
        try:
            now = watch(self.path)
        except OSError as error:
            raise SourceChanged(
                f"{self.path} cannot be found any more while it is read: {error.strerror}. Put it back, unchanged, and "
                "resume the run from its newest checkpoint"
            ) from error
        if now == self:
            return
        what = "was replaced by another file or written to"
        if now.size != self.size:
            what = f"{'shrank' if now.size < self.size else 'grew'} from {self.size} to {now.size} bytes"
        raise SourceChanged(
            f"{self.path} {what} while it is read. A run must see the same steps from start to end: restore the file, or "
            "copy it, finish writing it, and start a new run on the copy"
        )


def watch(path: Path) -> Watched:
    """Remembers a file as it is now; an OSError if it is not there."""
    found = os.stat(path)
    return Watched(path, found.st_size, found.st_mtime_ns, found.st_ino)
