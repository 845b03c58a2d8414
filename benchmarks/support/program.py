"""The frame of a benchmark: two flags, progress to stderr, the summary as the last line of stdout and, if asked, a file.

A target that is not reached leaves the exit status at 0. Speed and memory depend on the machine, its load and the versions
installed, so the summary and stderr report them, and the reader judges. A gradient that differs is an error, status 1.
"""

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.clock import environment

Flags = argparse.Namespace


def say(text: str) -> None:
    """Shows progress, on stderr: stdout is for the summary alone."""
    print(text, file=sys.stderr, flush=True)


def run(
    doc: str | None,
    measure: Callable[[Flags], dict[str, Any]],
    *,
    add_flags: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
    draw: Callable[[dict[str, Any], Path], None] | None = None,
    argv: list[str] | None = None,
) -> dict[str, Any]:
    """Runs a benchmark: parses flags, measures, writes and prints the summary.

    Args:
      doc: the module's docstring, shown by --help.
      measure: flags -> what was measured, as JSON.
      add_flags: adds flags beyond --quick and --out.
      draw: (summary, file.png) draws the figure from the summary alone; called where --out is given.
    """
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small and short; the summary says so")
    parser.add_argument("--out", type=Path, help="also write the summary to this file, and the figure beside it")
    add_flags(parser)
    flags = parser.parse_args(argv)
    began, machine = time.perf_counter(), environment()
    if machine["load_before"] and machine["load_before"][0] > 0.5:
        say(f"this machine is busy (load {machine['load_before'][0]:.1f}): trust ratios little, and threaded systems least")
    summary = {"quick": flags.quick, **measure(flags)}
    machine["load_after"] = os.getloadavg() if hasattr(os, "getloadavg") else None
    summary |= {"minutes": round((time.perf_counter() - began) / 60, 2), "environment": machine}
    if flags.out:
        flags.out.parent.mkdir(parents=True, exist_ok=True)
        flags.out.write_text(json.dumps(summary, indent=1) + "\n")
        if draw:
            draw(json.loads(flags.out.read_text()), flags.out.with_suffix(".png"))
            say(f"figure: {flags.out.with_suffix('.png')}")
    for target in summary.get("targets", []):
        say(describe(target))
    print(json.dumps(summary))
    return summary


def target(case: Any, what: str, against: str, wanted: float, measured: float | None, *, most: bool = False) -> dict:
    """Makes one row of `targets`: the number that was wanted, the one that was measured, and whether it is reached.

    Args:
      what: what the numbers are: "times as fast", "times the temporary bytes", ...
      measured: None where it could not be measured; then it is not reached.
      most: wanted is an upper bound; else a lower one.
    """
    reached = measured is not None and (measured <= wanted if most else measured >= wanted)
    bound = "at most" if most else "at least"
    return {
        "case": case, "what": what, "against": against, "bound": bound, "wanted": wanted, "measured": measured,
        "reached": reached,
    }  # fmt: skip


def describe(row: dict[str, Any]) -> str:
    """Says a target in one line; what is not reached says so."""
    measured = "not measured" if row["measured"] is None else f"{row['measured']:.3g}"
    verdict = "reached" if row["reached"] else "NOT reached"
    text = f"{verdict}: {row['case']}: {measured} {row['what']} against {row['against']} ({row['bound']} {row['wanted']:g})"
    if other := row.get("against_any_form"):
        text += f"; {other['ratio']:.3g} against {other['system']}, {other['form']}, the fastest of any form"
    return text


def machine_name(device: str) -> str:
    """Shortens a device's name for a file's: 'cpu', 'NVIDIA H100 80GB HBM3' -> 'h100'."""
    words = [word for word in re.split(r"[^a-z0-9]+", device.lower()) if word and word != "nvidia"]
    return words[0] if words else "unknown"
