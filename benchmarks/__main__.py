"""All benchmarks, one after another, each a process of its own; then the README's table from what they wrote.

    python -m benchmarks [--full] [--only peers ...]      quick: about 7 minutes on two idle cores; --full: about 1.5 hours

Each writes benchmarks/results/NAME_MACHINE_DATE.json (quick ones NAME_MACHINE_DATE_quick.json, which git ignores) and its
figure beside it. The last line of stdout is one line of JSON: the files, and which benchmarks failed, which means that they
ended with an error: the exit status is then 1. A target that is not reached is reported and is no failure.
"""

import argparse
import datetime
import json
import subprocess
import sys
from pathlib import Path

import jax

from benchmarks import table
from benchmarks.support.program import machine_name, say

PROGRAMS = (
    "peers", "full_vs_truncated", "windows_in_parallel", "memory_plan", "precision", "diagnostics_cost", "streaming", "gpu"
)  # fmt: skip


def result_file(folder: Path, name: str, device: str, date: datetime.date, *, quick: bool) -> Path:
    """Names a result: a quick run never overwrites a full one."""
    return folder / f"{name}_{machine_name(device)}_{date.isoformat()}{'_quick' if quick else ''}.json"


def run(name: str, out: Path, *, quick: bool) -> bool:
    """Runs one benchmark; whether it ended well. Its progress is shown as it comes."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *(["--quick"] if quick else []), "--out", str(out)]
    say(f"== {' '.join(command[1:])}")
    return subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode == 0


def main() -> None:
    """Runs what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="the full forms; the machine must be idle")
    parser.add_argument("--only", nargs="+", choices=PROGRAMS, default=PROGRAMS, help="default: all")
    parser.add_argument("--results", type=Path, default=table.RESULTS, help="folder for what is written")
    parser.add_argument("--readme", type=Path, default=table.README, help="the file that gets the table")
    flags = parser.parse_args()
    device, date = jax.devices()[0].device_kind, datetime.date.today()
    files = {name: result_file(flags.results, name, device, date, quick=not flags.full) for name in flags.only}
    failed = [name for name, out in files.items() if not run(name, out, quick=not flags.full)]
    for name in failed:
        say(f"FAILED: {name}")
    table.write(flags.readme, flags.results)
    print(json.dumps({"files": [str(files[name]) for name in files if name not in failed], "failed": failed}))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
