"""Create the folder of a run, append its metrics, and print its summary."""

import dataclasses
import datetime
import json
import sys
from pathlib import Path
from typing import Any

from experiments.support.common.environment import environment as environment


def open_folder(out: Path | None, name: str, config: Any) -> Path:
    """Create `out`, or runs/NAME/TIMESTAMP, and write config.json there.

    Raises:
      FileExistsError: `out` already contains a config.json.
    """
    stamp = datetime.datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    folder = out if out is not None else Path("runs") / name / stamp
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "config.json").exists():
        raise FileExistsError(
            f"--out {folder} already contains a run (config.json); give another folder or delete it"
        )
    settings = {
        k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(config).items()
    }
    (folder / "config.json").write_text(
        json.dumps({"experiment": name, **settings}, indent=2) + "\n"
    )
    return folder


def append_metrics(folder: Path, row: dict[str, Any]) -> None:
    """Append one line to metrics.jsonl."""
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


def finish(folder: Path, summary: dict[str, Any]) -> None:
    """Write summary.json and print it as the last line of stdout."""
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    sys.stderr.flush()
    print(json.dumps(summary), flush=True)
