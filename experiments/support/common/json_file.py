"""A JSON object from a file, or an error that names the file."""

import json
from pathlib import Path
from typing import Any


def read_object(path: Path) -> dict[str, Any]:
    """Reads a file that holds one JSON object.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no JSON, or no object.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"{path} is not JSON ({error})") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path} must hold a JSON object; got {type(data).__name__}")
    return data


def read_config(folder: Path) -> dict[str, Any]:
    """Reads the settings of a run.

    Raises:
        FileNotFoundError: the folder holds no run. ValueError: config.json is damaged.
    """
    if not (folder / "config.json").exists():
        raise FileNotFoundError(f"{folder} holds no run: there is no config.json in it. Give the folder of a run")
    return read_object(folder / "config.json")
