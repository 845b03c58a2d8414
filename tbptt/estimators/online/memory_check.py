"""Whether influences fit into memory: known from shapes, and said before anything is allocated."""

import os

import jax


def device_bytes() -> int | None:
    """Returns the memory of the device that arrays go to (of a CPU: the machine's); None where nobody says."""
    device = jax.devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if limit is None and device.platform == "cpu" and hasattr(os, "sysconf"):
        limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return limit


def check_fits(what: str, size: int, remedy: str, max_bytes: int | None = None) -> None:
    """Raises a ValueError that names both in bytes if `size` bytes are more than may be used; None: than the device has."""
    limit, whose = (device_bytes(), "this device has") if max_bytes is None else (max_bytes, "max_bytes allows")
    if limit is not None and size > limit:
        raise ValueError(f"{what} need {size:,} bytes; {whose} {limit:,}. {remedy}")
