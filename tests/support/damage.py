"""Two ways to damage a file."""

from pathlib import Path


def cut(file: Path) -> None:
    """Cuts its last byte off."""
    file.write_bytes(file.read_bytes()[:-1])


def flip(file: Path) -> None:
    """Flips one bit in its middle."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 16
    file.write_bytes(bytes(data))
