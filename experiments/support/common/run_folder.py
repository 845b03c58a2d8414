"""A run's folder, and the summary as the last line of stdout (design: progress and logs go to stderr)."""

import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import jax


def environment() -> dict[str, Any]:
    """Returns what a reader needs to judge a timing: machine, versions, date."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "versions": {name: importlib.metadata.version(name) for name in ("jaxlib", "flax", "optax", "numpy")},
    }


def open_folder(out: Path | None, name: str, config: Any) -> Path:
    """Makes `out`, or runs/NAME/TIMESTAMP, and writes config.json; a folder that holds a run already is refused.

    Raises:
      FileExistsError: `out` already holds a config.json: another folder, or delete it.
    """
    stamp = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    folder = out if out is not None else Path("runs") / name / stamp
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "config.json").exists():
        raise FileExistsError(f"--out {folder} already holds a run (config.json); give another folder or delete it")
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(config).items()}
    (folder / "config.json").write_text(json.dumps({"experiment": name, **settings}, indent=2) + "\n")
    return folder


def append_metrics(folder: Path, row: dict[str, Any]) -> None:
    """Adds one line to metrics.jsonl."""
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


def finish(folder: Path, summary: dict[str, Any]) -> None:
    """Writes summary.json and prints it as one line, the last of stdout."""
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    sys.stderr.flush()
    print(json.dumps(summary), flush=True)
