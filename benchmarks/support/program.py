"""What every benchmark program shares: flags, progress on stderr, and the summary as JSON.

The summary is the last line of stdout and, with --out, a file. A target that is not reached
leaves the exit status at 0, because speed and memory depend on the machine, its load and the
installed versions. A gradient that differs is an error, and the exit status is 1.
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

import tbptt
from experiments.support.common.environment import environment

Flags = argparse.Namespace

SCAN, NUMBA = "scan", "numba"


def unroll_of(name: str) -> tbptt.UnrollFn:
    """Return the unroll function of `--unroll scan|numba`."""
    from experiments.support.common.unroll_choice import choose_unroll  # imports rich

    return choose_unroll(name)  # pyright: ignore[reportArgumentType]


def add_unroll_flag(parser: argparse.ArgumentParser) -> None:
    """Add `--unroll scan|numba` to a benchmark that times our training."""
    parser.add_argument(
        "--unroll",
        choices=(SCAN, NUMBA),
        default=SCAN,
        help="run the cell by tbptt.unroll or by tbptt.backends.numba_cpu.unroll (default: scan)",
    )


def say(text: str) -> None:
    """Print progress to stderr; stdout holds the summary alone."""
    print(text, file=sys.stderr, flush=True)


def run(
    doc: str | None,
    measure: Callable[[Flags], dict[str, Any]],
    *,
    add_flags: Callable[[argparse.ArgumentParser], None] = lambda parser: None,
    draw: Callable[[dict[str, Any], Path], None] | None = None,
    argv: list[str] | None = None,
) -> dict[str, Any]:
    """Run a benchmark: parse flags, measure, write and print the summary.

    Args:
      doc: the module's docstring, shown by --help.
      measure: `flags -> what was measured`, as JSON.
      add_flags: adds flags beyond --quick and --out.
      draw: `(summary, file.png)` draws the figure from the summary alone; called with --out.
      argv: the command line; None for that of the process.
    """
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="smaller and shorter")
    parser.add_argument("--out", type=Path, help="write summary and figure to this path, too")
    add_flags(parser)
    flags = parser.parse_args(argv)
    began, machine = time.perf_counter(), environment()
    if machine["load"] and machine["load"][0] > 0.5:
        say(
            f"warning: this machine is busy (load average {machine['load'][0]:.1f}): ratios are "
            "less reliable, most of all those of systems with several threads"
        )
    unroll = {"unroll": flags.unroll} if hasattr(flags, "unroll") else {}
    summary = {"quick": flags.quick, **unroll, **measure(flags)}
    machine["load_after"] = os.getloadavg() if hasattr(os, "getloadavg") else None
    minutes = round((time.perf_counter() - began) / 60, 2)
    summary |= {"minutes": minutes, "environment": machine}
    if flags.out:
        flags.out.parent.mkdir(parents=True, exist_ok=True)
        flags.out.write_text(json.dumps(summary, indent=1) + "\n")
        if draw:
            draw(json.loads(flags.out.read_text()), flags.out.with_suffix(".png"))
            say(f"figure: {flags.out.with_suffix('.png')}")
    for row in summary.get("targets", []):
        say(describe(row))
    print(json.dumps(summary))
    return summary


def target(
    case: Any, what: str, against: str, wanted: float, measured: float | None, *, most: bool = False
) -> dict[str, Any]:
    """Make one row of `targets`: the wanted number, the measured one, and whether it is reached.

    Args:
      case: the sizes, as text.
      what: the unit of the numbers: "times as fast", "times the temporary bytes", ...
      against: the system that is compared with.
      wanted: the bound.
      measured: the number, or None if it could not be measured; None is not reached.
      most: `wanted` is an upper bound; otherwise a lower one.
    """
    reached = measured is not None and (measured <= wanted if most else measured >= wanted)
    return {
        "case": case,
        "what": what,
        "against": against,
        "bound": "at most" if most else "at least",
        "wanted": wanted,
        "measured": measured,
        "reached": reached,
    }


def describe(row: dict[str, Any]) -> str:
    """Return one line about a target."""
    measured = "not measured" if row["measured"] is None else f"{row['measured']:.3g}"
    verdict = "reached" if row["reached"] else "NOT reached"
    text = f"{verdict}: {row['case']}: {measured} {row['what']} against {row['against']}"
    text += f" ({row['bound']} {row['wanted']:g})"
    if other := row.get("against_any_form"):
        text += f"; {other['ratio']:.3g} against {other['system']}, {other['form']}, "
        text += "the fastest of any form"
    return text


def machine_name(device: str) -> str:
    """Return a short name of a device for file names: 'NVIDIA H100 80GB HBM3' -> 'h100'."""
    words = [word for word in re.split(r"[^a-z0-9]+", device.lower()) if word and word != "nvidia"]
    return words[0] if words else "unknown"
