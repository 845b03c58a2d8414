"""The frame of an experiment: flags, a folder, a measurement written to a file, figures drawn from that file alone."""

import contextlib
import dataclasses
import importlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import tyro

from experiments.support.common import run_folder
from experiments.support.common import targets as known
from experiments.support.common.console import console
from tbptt.data import DataUnavailable

# An experiment is a module with
#   Config                     a frozen dataclass with at least seed, out, quick
#   measure(config) -> data    what was measured, as JSON; data["claims"] is a list of `claim(...)`, data["known"] one of
#                              `known.expect(...)`, each if there is any; data["results"], if it is there, is a dict that
#                              the summary takes up; data["judged"] is False if this run is too short for its claims
#   draw(data, folder)         writes PNG figures; never measures
#
# The exit status of a program, `exit_status`, is 1
#   if a claim does not hold, in every form of the program, unless data["judged"] is False
#   if a standard run does not reach an expected number. A standard run has the experiment's own settings (any --seed) and
#   no --quick; the number is not expected of other runs.
# Otherwise it is 0. What fails without being judged is a warning. All files are written before the program exits, and the
# summary is the last line of stdout.


def claim(number: int, text: str, measured: Any, expected: str, holds: Any) -> dict[str, Any]:
    """Make one row of a summary: what the lecture says, what was measured, what was expected, and whether it holds."""
    return {"claim": number, "text": text, "measured": measured, "expected": expected, "holds": bool(holds)}


def execute(module: ModuleType, config: Any) -> dict[str, Any]:
    """Run an experiment into its folder and return its summary; verdicts are computed from what was measured."""
    name = module.__name__.rsplit(".", 1)[-1] if module.__name__ != "__main__" else Path(str(module.__file__)).stem
    folder = run_folder.open_folder(config.out, name, config)
    start, cpu = time.perf_counter(), time.process_time()
    data = module.measure(config)
    (folder / "data.json").write_text(json.dumps(data) + "\n")
    claims, rows = data.get("claims", []), data.get("known", [])
    for row in (*claims, *rows):
        run_folder.append_metrics(folder, row)
    module.draw(json.loads((folder / "data.json").read_text()), folder)
    summary = {
        "experiment": name,
        "quick": config.quick,
        "standard": is_standard(config),
        "seed": config.seed,
        "judged": bool(data.get("judged", True)),
        "claims": claims,
        **(known.summarise(rows) if rows else {}),
        **data.get("results", {}),
        "figures": sorted(path.name for path in folder.glob("*.png")),
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),  # of all threads; on a shared machine the fairer number
        "environment": run_folder.environment(),
        "folder": str(folder),
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    return summary


def is_standard(config: Any) -> bool:
    """Return whether an experiment runs with its own settings: only these enter the README's tables."""
    return dataclasses.replace(config, seed=0, out=None, quick=False) == dataclasses.replace(type(config)(), seed=0)


def tell(summary: dict[str, Any]) -> None:
    """Print the claims and the known numbers a person reads."""
    for row in summary["claims"]:
        mark = "[green]holds[/green]" if row["holds"] else "[bold red]DOES NOT HOLD[/bold red]"
        console.print(
            f"claim {row['claim']}: {row['text']}\n    measured {row['measured']}; expected {row['expected']}: {mark}"
        )
    known.tell(summary.get("targets", []))
    figures = ", ".join(str(Path(summary["folder"]) / name) for name in summary["figures"])
    console.print(f"{summary['experiment']}: {summary['seconds']} s; figures: {figures}")


def run(path: str) -> None:
    """Run the experiment of a file, `program.run(__file__)` under `if __name__ == "__main__"`, and exit as above."""
    module = importlib.import_module(f"experiments.{Path(path).stem}")
    try:
        summary = execute(module, tyro.cli(module.Config, description=module.__doc__))
    except (DataUnavailable, FileExistsError, FloatingPointError, ValueError) as error:
        sys.exit(f"{Path(path).stem}: {error}")
    tell(summary)
    finish(summary)


def finish(summary: dict[str, Any]) -> None:
    """Say on stderr what failed, print the summary as the last line of stdout, and exit with 1 if anything failed."""
    status = exit_status(summary)
    run_folder.finish(Path(summary["folder"]), summary)
    if status:
        sys.exit(status)


def exit_status(summary: dict[str, Any]) -> int:
    """Return 1 if a claim does not hold or a standard run misses an expected number, else 0; say which on stderr."""
    failed = list(dict.fromkeys(str(row["claim"]) for row in summary["claims"] if not row["holds"]))
    missed = [row["what"] for row in summary.get("targets", []) if not row["reached"]]
    wrong = bool(failed) and summary.get("judged", True)
    short = bool(missed) and summary["standard"] and not summary["quick"]
    if failed:
        text = f"claim {failed[0]} does not hold" if len(failed) == 1 else f"claims {', '.join(failed)} do not hold"
        _say(wrong, text, "claims", "this run is too short for its claims")
    if missed:
        why = "this run is quick, or its settings are not the standard ones"
        _say(short, f"not reached: {'; '.join(missed)}", "targets", why)
    return int(wrong or short)


def _say(is_error: bool, text: str, where: str, otherwise: str) -> None:
    kind, why = ("error", "") if is_error else ("warning", f"; {otherwise}")
    print(f"{kind}: {text} (see `{where}` in the summary){why}", file=sys.stderr)


@contextlib.contextmanager
def optimizations(most: bool) -> Iterator[None]:
    """Compile with XLA's usual optimizations, or without most of them; afterwards as before."""
    name = "jax_disable_most_optimizations"
    before = jax.config.values[name]
    jax.config.update(name, not most)
    try:
        yield
    finally:
        jax.config.update(name, before)


@dataclasses.dataclass(frozen=True)
class Common:
    """Flags of every experiment."""

    seed: int = 0
    out: Path | None = None
    """folder of the run; default runs/NAME/TIMESTAMP"""
    quick: bool = False
    """smaller, under 30 seconds; the summary says so"""


@dataclasses.dataclass(frozen=True)
class Seeded(Common):
    """Flags of an experiment with known numbers, run for several seeds at once."""

    quick: bool = False
    """smaller, under 60 seconds; the summary says so"""
    seeds: int = 5
    """runs, side by side: each its own parameters and data, all drawn from --seed"""
