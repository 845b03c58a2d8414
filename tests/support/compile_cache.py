"""The compile cache of the tests: ignored by git, bounded, by processor and jax version."""

import contextlib
import hashlib
import pathlib
import platform

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT / ".jax_cache"
MOST_BYTES = 2**30


def folder(jax_version: str) -> pathlib.Path:
    """Return the folder for this processor; programs for another may use missing instructions."""
    return FOLDER / f"{jax_version}-{hashlib.sha256(_processor().encode()).hexdigest()[:12]}"


def _processor() -> str:
    with contextlib.suppress(OSError):
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        return "\n".join(
            sorted(
                {
                    line
                    for line in lines
                    if line.split(":")[0].strip() in ("model name", "flags", "Features")
                }
            )
        )
    return platform.processor() or platform.machine()


def prune(at: pathlib.Path = FOLDER, most_bytes: int = MOST_BYTES) -> int:
    """Delete the programs that were used longest ago until the rest fits; return how many went."""
    files = []
    for path in at.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # a worker renames files into place
            if path.is_file():
                files.append(
                    (max(path.stat().st_atime, path.stat().st_mtime), path.stat().st_size, path)
                )
    total, gone = sum(size for _, size, _ in files), 0
    for _, size, path in sorted(files, key=lambda file: file[0]):
        if total <= most_bytes:
            break
        path.unlink(missing_ok=True)
        total, gone = total - size, gone + 1
    return gone
