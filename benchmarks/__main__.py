"""Run all benchmarks, each in a process of its own, then rewrite the tables from their results.

    python -m benchmarks [--full] [--only peers ...] [--unroll scan|numba]

Quick forms: about 7 minutes on two idle cores; --full: hours. Each benchmark writes
benchmarks/results/NAME_MACHINE_DATE.json (NAME_numba_... with --unroll numba; quick ones end in
_quick.json, which git ignores) and its figure next to it. The last line of stdout is JSON: the
files, and the benchmarks that ended with an error; the exit status is then 1. A target that is
not reached is reported and is no error.
"""

import argparse
import datetime
import json
import subprocess
import sys
from pathlib import Path

import jax

from benchmarks import table
from benchmarks.support import program
from benchmarks.support.program import machine_name, say

PROGRAMS = (
    "peers",
    "full_vs_truncated",
    "windows_in_parallel",
    "memory_plan",
    "precision",
    "diagnostics_cost",
    "streaming",
    "gpu",
)
# Programs with the flag --unroll; `peers` measures both unroll functions.
WITH_UNROLL = (
    "full_vs_truncated",
    "windows_in_parallel",
    "memory_plan",
    "diagnostics_cost",
    "streaming",
)


def result_file(
    folder: Path, name: str, device: str, date: datetime.date, *, quick: bool, unroll: str
) -> Path:
    """Return the path of a result; a quick run never overwrites a full one."""
    form = f"_{unroll}" if name in WITH_UNROLL and unroll != program.SCAN else ""
    end = "_quick" if quick else ""
    return folder / f"{name}{form}_{machine_name(device)}_{date.isoformat()}{end}.json"


def run(name: str, out: Path, *, quick: bool, unroll: str) -> bool:
    """Run one benchmark and return whether it ended without an error; stderr is not captured."""
    command = [sys.executable, "-m", f"benchmarks.{name}", "--out", str(out)]
    command += ["--quick"] if quick else []
    command += ["--unroll", unroll] if name in WITH_UNROLL else []
    say(f"== {' '.join(command[1:])}")
    return subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode == 0


def main() -> None:
    """Run the chosen benchmarks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="full forms, on an idle machine")
    parser.add_argument(
        "--only", nargs="+", choices=PROGRAMS, default=PROGRAMS, help="default: all"
    )
    parser.add_argument("--results", type=Path, default=table.RESULTS, help="folder of the results")
    parser.add_argument("--readme", type=Path, default=table.README, help="file with the table")
    program.add_unroll_flag(parser)
    flags = parser.parse_args()
    device, date = jax.devices()[0].device_kind, datetime.date.today()
    form = {"quick": not flags.full, "unroll": flags.unroll}
    files = {name: result_file(flags.results, name, device, date, **form) for name in flags.only}
    failed = [name for name, out in files.items() if not run(name, out, **form)]
    for name in failed:
        say(f"FAILED: {name}")
    table.write(flags.readme, flags.results)
    written = [str(path) for name, path in files.items() if name not in failed]
    print(json.dumps({"files": written, "failed": failed}))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
