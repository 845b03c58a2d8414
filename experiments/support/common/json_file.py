"""Read a JSON object from a file, with errors that name the file; numbers that JSON has."""

import json
import math
from pathlib import Path
from typing import Any


def read_object(path: Path) -> dict[str, Any]:
    """Read a file that contains one JSON object.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not JSON, or not an object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"{path} is not JSON ({error})") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path} must contain a JSON object; got {type(data).__name__}")
    return data


def read_config(folder: Path) -> dict[str, Any]:
    """Read the settings of a run.

    Raises:
        FileNotFoundError: the folder has no config.json.
        ValueError: config.json is damaged.
    """
    if not (folder / "config.json").exists():
        raise FileNotFoundError(
            f"{folder} is not the folder of a run: it has no config.json. Give the folder of a run"
        )
    return read_object(folder / "config.json")


def finite_or_none(value: float | int | None) -> float | int | None:
    """Return None for NaN and infinity, which JSON does not have."""
    return value if value is not None and math.isfinite(value) else None
