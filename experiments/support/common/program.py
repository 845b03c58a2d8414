"""Run an experiment: parse its flags, measure, write the data, and draw figures from them."""

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

from experiments.support.common import run_folder, targets
from experiments.support.common.console import console
from experiments.support.common.platform import check_platform
from experiments.support.common.unroll_choice import UnrollName, print_unroll
from tbptt.data import DataUnavailable

# An experiment is a module with
#   Config                     a frozen dataclass with at least the fields seed, out, quick
#   measure(config) -> data    the measurements, as JSON; optional keys are
#                              "claims", a list of `claim(...)`; "targets", a list of
#                              `targets.expect(...)`; "results", a dict that the summary includes;
#                              "judged", False if the run is too short for its claims
#   draw(data, folder)         writes PNG figures; never measures
#
# The exit status of a program, `exit_status`, is 1
#   if a claim does not hold, in a quick run too, unless data["judged"] is False;
#   if a standard run misses a target. A standard run has the default settings (any --seed) and
#   no --quick.
# Otherwise it is 0, and a claim or target that fails is a warning. All files are written before the
# program exits, and the summary is the last line of stdout.


def claim(number: int, text: str, measured: Any, expected: str, holds: Any) -> dict[str, Any]:
    """Make the row of a claim: its text, the measured and expected value, and whether it holds."""
    return {
        "claim": number,
        "text": text,
        "measured": measured,
        "expected": expected,
        "holds": bool(holds),
    }


def execute(module: ModuleType, config: Any) -> dict[str, Any]:
    """Run an experiment, write its folder, and return its summary.

    The measured data decide the verdicts.
    """
    name = (
        module.__name__.rsplit(".", 1)[-1]
        if module.__name__ != "__main__"
        else Path(str(module.__file__)).stem
    )
    folder = run_folder.open_folder(config.out, name, config)
    # Before the run: its load average is that of the machine.
    environment = run_folder.environment()
    if isinstance(config, Trained):
        print_unroll(config.unroll)
    start, cpu = time.perf_counter(), time.process_time()
    data = module.measure(config)
    (folder / "data.json").write_text(json.dumps(data) + "\n")
    claims, rows = data.get("claims", []), data.get("targets", [])
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
        **(targets.summarise(rows) if rows else {}),
        **data.get("results", {}),
        "figures": sorted(path.name for path in folder.glob("*.png")),
        "seconds": round(time.perf_counter() - start, 1),
        # Of all threads; on a shared machine the fairer number.
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "environment": environment,
        "folder": str(folder),
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    return summary


def is_standard(config: Any) -> bool:
    """Return whether an experiment runs with its default settings.

    Only such runs enter the README's tables.
    """
    return dataclasses.replace(config, seed=0, out=None, quick=False) == dataclasses.replace(
        type(config)(), seed=0
    )


def show(summary: dict[str, Any]) -> None:
    """Print the claims and the targets on stderr."""
    for row in summary["claims"]:
        mark = "[green]holds[/green]" if row["holds"] else "[bold red]DOES NOT HOLD[/bold red]"
        console.print(
            f"claim {row['claim']}: {row['text']}\n    measured {row['measured']}; expected "
            f"{row['expected']}: {mark}"
        )
    targets.show(summary.get("targets", []))
    figures = ", ".join(str(Path(summary["folder"]) / name) for name in summary["figures"])
    console.print(f"{summary['experiment']}: {summary['seconds']} s; figures: {figures}")


def run(path: str) -> None:
    """Run the experiment of a file and exit with its status.

    Call it as `program.run(__file__)` under `if __name__ == "__main__"`.
    """
    module = importlib.import_module(f"experiments.{Path(path).stem}")
    try:
        check_platform()
        summary = execute(module, tyro.cli(module.Config, description=module.__doc__))
    except (DataUnavailable, FileExistsError, FloatingPointError, ImportError, ValueError) as error:
        sys.exit(f"{Path(path).stem}: {error}")
    show(summary)
    finish(summary)


def finish(summary: dict[str, Any]) -> None:
    """Print failures on stderr and the summary as the last line of stdout.

    Exit with 1 if anything failed.
    """
    status = exit_status(summary)
    run_folder.finish(Path(summary["folder"]), summary)
    if status:
        sys.exit(status)


def exit_status(summary: dict[str, Any]) -> int:
    """Return 1 if a claim does not hold or a standard run misses a target, else 0.

    Print which on stderr.
    """
    failed = list(dict.fromkeys(str(row["claim"]) for row in summary["claims"] if not row["holds"]))
    missed = [row["what"] for row in summary.get("targets", []) if not row["reached"]]
    wrong = bool(failed) and summary.get("judged", True)
    short = bool(missed) and summary["standard"] and not summary["quick"]
    if failed:
        text = (
            f"claim {failed[0]} does not hold"
            if len(failed) == 1
            else f"claims {', '.join(failed)} do not hold"
        )
        _report(wrong, text, "claims", "this run is too short for its claims")
    if missed:
        why = "this run is quick or its settings are not the default ones"
        _report(short, f"target missed: {'; '.join(missed)}", "targets", why)
    return int(wrong or short)


def _report(is_error: bool, text: str, where: str, otherwise: str) -> None:
    kind, why = ("error", "") if is_error else ("warning", f"; {otherwise}")
    print(f"{kind}: {text} (see `{where}` in the summary){why}", file=sys.stderr)


@contextlib.contextmanager
def optimizations(most: bool) -> Iterator[None]:
    """Compile with or without most of XLA's optimizations; restore the setting at the end."""
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
    """seed of parameters and data"""
    out: Path | None = None
    """folder of the run; default runs/NAME/TIMESTAMP"""
    quick: bool = False
    """run a smaller version, under 30 seconds; the summary records it"""


@dataclasses.dataclass(frozen=True)
class Trained(Common):
    """Flags of an experiment that trains networks with `tbptt.sequence_loss`."""

    unroll: UnrollName = "scan"
    """function that runs the cell through time"""


@dataclasses.dataclass(frozen=True)
class Seeded(Trained):
    """Flags of an experiment that trains several seeds and compares the result with targets."""

    quick: bool = False
    """run a smaller version, under 60 seconds; the summary records it"""
    seeds: int = 5
    """number of seeds, each with its own parameters and data, all derived from --seed"""
