"""A check that arrays fit into memory, from their sizes and before any allocation."""

import os

import jax


def device_bytes() -> int | None:
    """Return the memory of the default device in bytes; None if it is unknown.

    For a CPU it is the memory of the machine.
    """
    device = jax.devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if limit is None and device.platform == "cpu" and hasattr(os, "sysconf"):
        limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return limit


def check_memory(what: str, size: int, remedy: str, max_bytes: int | None = None) -> None:
    """Raise a ValueError if `size` bytes exceed the limit.

    Args:
      what: the subject of the error message.
      size: bytes that are needed.
      remedy: the end of the error message.
      max_bytes: the limit; None = the memory of the device.
    """
    limit, whose = (
        (device_bytes(), "this device has")
        if max_bytes is None
        else (max_bytes, "max_bytes allows")
    )
    if limit is not None and size > limit:
        raise ValueError(f"{what} need {size:,} bytes; {whose} {limit:,}. {remedy}")
