"""Find the converted form of a table in the cache folder, or make it."""

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path

from tbptt.data.datasets.fetch import DataUnavailable, cache_dir
from tbptt.data.tables.columns import Reading
from tbptt.data.tables.convert import convert, open_converted
from tbptt.data.tables.file_changes import SourceChanged, stamp_of
from tbptt.data.tables.table import Table

FORMAT = "3"  # version of the converted files; a new number invalidates old conversions


def open_cached(path: Path, reading: Reading) -> Table:
    """Open the converted form of a file, converting it first if the cache does not hold it.

    It is a folder in tables/ of the cache ($TBPTT_DATA, else $XDG_CACHE_HOME/tbptt, else
    ~/.cache/tbptt). Its name is a digest of the file's path, size and time of change and of
    `reading`, so later runs find it. It is moved into place atomically when complete. The cache
    may be deleted whenever no run reads from it.

    Raises:
        DataUnavailable: the cache folder is not writable, or full. Otherwise as `convert`.
    """
    stamp = stamp_of(path)
    which = _digest(FORMAT, str(path.absolute()), tuple(reading))
    target = cache_dir() / "tables" / f"{which}-{_digest(stamp.size, stamp.modified)}"
    if not target.exists():
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=target.parent, prefix=".convert-") as folder:
                fresh = Path(folder) / "table"
                convert(path, reading, fresh)
                stamp.check()
                for old in target.parent.glob(f"{which}-*"):  # of earlier versions of the file
                    with contextlib.suppress(FileNotFoundError):  # another process did
                        old.rename(Path(folder) / old.name)
                if not target.exists():  # another process may have been faster
                    os.replace(fresh, target)
        except OSError as error:
            if isinstance(error, SourceChanged) or error.filename == str(path):
                raise
            raise DataUnavailable(
                f"{path} could not be converted into {target.parent}: {error}. Free disk space, "
                "or set TBPTT_DATA to a writable folder"
            ) from error
    return open_converted(stamp, target)


def _digest(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
