"""The README's table of tasks with known numbers: expected, measured, reached; what is not reached says so.

    python -m experiments.table [--results DIR] [--runs DIR] [--readme FILE]      a second; reads files, measures nothing

Of every experiment it takes the newest full run with the experiment's own settings: what experiments/results/NAME holds, or
a newer one of runs/NAME, which is then kept there (summary, config, figures), so that the README links to no file that is
missing elsewhere. A quick run is never taken. What stands between two marker comments of the README is replaced. The last
line of stdout is JSON: `rows` of experiment, expected, measured, reached, and how many of them are reached. The exit status
is 0 even if a number is not reached: the run that measured it ended with 1.
"""

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import tyro

from experiments.support.common import targets as known
from experiments.support.common.console import console

NAMES = (
    "adding",
    "copy_memory",
    "temporal_order",
    "continual_reber",
    "pixel_digits",
    "char_lm",
    "chorales",
    "ecg",
    "pulse_65k",
)
BEGIN = "<!-- experiments: begin; written by python -m experiments.table -->"
END = "<!-- experiments: end -->"
HERE = Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Config:
    """Where results are read from, and the file whose table is replaced."""

    results: Path = HERE / "results"
    """results that are kept, a folder an experiment"""
    runs: Path = Path("runs")
    """runs of this machine: RUNS/NAME/TIMESTAMP"""
    readme: Path = HERE.parent / "README.md"
    """file with the two marker comments"""


def read(path: Path) -> dict[str, Any]:
    """Reads a summary.

    Raises:
      ValueError: the file is no JSON object; the message names it.
    """
    try:
        summary = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}): delete that run, or write it again") from error
    if not isinstance(summary, dict):
        raise ValueError(f"{path} must hold a JSON object; got {type(summary).__name__}: delete that run")
    return summary


def newest(name: str, results: Path, runs: Path) -> tuple[Path, dict[str, Any]] | None:
    """Finds the summary to show of one experiment: the newest full run with standard settings; None if there is none."""
    paths = [results / name / "summary.json", *sorted((runs / name).glob("*/summary.json"))]
    found = [(path, read(path)) for path in paths if path.exists()]
    full = [item for item in found if item[1].get("targets") and not item[1]["quick"] and item[1].get("standard")]
    return max(full, key=lambda item: item[1]["environment"]["date"]) if full else None


def keep(path: Path, results: Path, name: str) -> Path:
    """Copies a run's summary, config and figures into results/NAME, in place of what is there; returns where."""
    home = results / name
    if path.parent.resolve() != home.resolve():
        home.mkdir(parents=True, exist_ok=True)
        for old in home.glob("*.png"):
            old.unlink()
        for file in (path, path.parent / "config.json", *path.parent.glob("*.png")):
            shutil.copy(file, home / file.name)
    return home / "summary.json"


def row_of(name: str, summary: dict[str, Any] | None) -> dict[str, Any]:
    """Makes one row of the JSON."""
    if summary is None:
        return {"experiment": name, "expected": None, "measured": None, "reached": False, "verdict": "no full run yet"}
    missed = [row for row in summary["targets"] if not row["reached"]]
    said = " ".join(dict.fromkeys(f"{row['what']}: {known.describe(row)}. {row['otherwise']}".strip() for row in missed))
    return {
        "experiment": name,
        "expected": summary["expected"],
        "measured": summary["measured"],
        "reached": not missed,
        "seeds": summary["seeds"],
        "seconds": summary["seconds"],
        "verdict": f"NOT reached: {said}" if missed else "reached",
    }


def markdown(rows: list[dict[str, Any]], summaries: dict[str, dict[str, Any]], link: str) -> str:
    """Makes the text between the markers; `link` leads from the README to the results."""
    lines = ["| experiment | expected | measured | seeds | seconds | |", "|---|---|---|---|---|---|"]
    for row in rows:
        name, summary = row["experiment"], summaries.get(row["experiment"])
        if summary is None:
            lines.append(f"| `{name}` | | | | | no full run yet |")
            continue
        expected = "<br>".join(f"{target['what']}: {target['expected']}" for target in summary["targets"])
        measured = "<br>".join(
            known.describe(target) + ("" if target["reached"] else " **(NOT reached)**") for target in summary["targets"]
        )
        verdict = "reached" if row["reached"] else "**NOT reached**"
        figures = " ".join(f"[{Path(file).stem}]({link}/{name}/{file})" for file in summary["figures"])
        cells = (f"`{name}`<br>{figures}", expected, measured, str(row["seeds"]), f"{row['seconds']:.0f}", verdict)
        lines.append(f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |")
    done = [row for row in rows if row["expected"] is not None]
    lines += ["", f"{sum(row['reached'] for row in rows)} of {len(rows)} reached."]
    lines += [f"`{row['experiment']}` {row['verdict']}" for row in done if not row["reached"]]
    lines += [""] + [f"- `python -m experiments.{name}`: {origin(summary)}" for name, summary in summaries.items()]
    return "\n".join(lines)


def origin(summary: dict[str, Any]) -> str:
    """Says where and with what a run was made."""
    machine = summary["environment"]
    versions = {"python": machine["python"], "jax": machine["jax"], **machine.get("versions", {})}
    where = f"{machine['date'][:10]}, {machine['device']}, {machine['cpus']} cores ({machine['machine']})"
    return f"{where}, seed {summary['seed']}; " + ", ".join(f"{key} {value}" for key, value in versions.items())


def write(readme: Path, made: str) -> None:
    """Replaces what stands between the markers; a ValueError if the README has not exactly one pair."""
    text = readme.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"{readme} must hold each of these two lines once, in this order: {BEGIN!r} and {END!r}")
    readme.write_text(f"{text.split(BEGIN)[0]}{BEGIN}\n\n{made}\n\n{END}{text.split(END)[1]}")


def main(config: Config) -> dict[str, Any]:
    """Writes the table and returns what the last line says."""
    found = {name: item for name in NAMES if (item := newest(name, config.results, config.runs))}
    files = {name: keep(path, config.results, name) for name, (path, _) in found.items()}
    summaries = {name: summary for name, (_, summary) in found.items()}
    rows = [row_of(name, summaries.get(name)) for name in NAMES]
    home, results = config.readme.resolve().parent, config.results.resolve()
    link = results.relative_to(home).as_posix() if results.is_relative_to(home) else results.as_posix()
    write(config.readme, markdown(rows, summaries, link))
    reached = sum(row["reached"] for row in rows)
    console.print(f"{config.readme}: {reached} of {len(rows)} reached, from {len(files)} full runs")
    return {"rows": rows, "reached": reached, "of": len(rows), "files": [str(path) for path in files.values()]}


if __name__ == "__main__":
    try:
        result = main(tyro.cli(Config, description=__doc__))
    except (OSError, ValueError) as error:
        sys.exit(f"table: {error}")
    print(json.dumps(result), flush=True)
