"""Rewrite the tables of experiments/README.md from the results files.

    python -m experiments.table [--results DIR] [--runs DIR] [--readme FILE]      a second

Of every experiment it takes the newest full run with the default settings: the one in
experiments/results/NAME, or a newer one in runs/NAME, whose summary, config and figures are then
copied to experiments/results/NAME. Quick runs are ignored. The text between two marker comments
of the file is replaced. `python -m benchmarks.table` rewrites this file, too. The last line of
stdout is JSON: `rows` of experiment, expected, measured, reached, and how many are reached. The
exit status is 0 even if a number is not reached.
"""

import ast
import dataclasses
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import tyro

from experiments.support.common import targets
from experiments.support.common.console import console
from experiments.support.common.markdown import grid, replace_between

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
# Group -> programs. Those of the lecture share the results of `lecture`.
LECTURE = (
    "powers_of_w",
    "lyapunov",
    "finite_precision",
    "repeated_tanh",
    "clipping_cliff",
    "gates",
    "truncation",
    "lag_profile",
)
GROUPS = {
    "The cost of a window": ("window_tradeoff",),
    "The lecture: gradients through time": ("lecture", *LECTURE),
    "Beyond a fixed window": (
        "influence_balancing",
        "staleness",
        "estimator_frontier",
        "window_choice",
        "adaptive_copy",
    ),
    "Tasks with expected numbers": NAMES,
    "Your own data, and this file": ("train", "predict", "untuned", "table"),
}
BEGIN = "<!-- experiments: begin; written by python -m experiments.table -->"
END = "<!-- experiments: end -->"
HERE = Path(__file__).parent

Summary = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Config:
    """Folders of the results, and the file whose tables are replaced."""

    results: Path = HERE / "results"
    """committed results, one folder per experiment"""
    runs: Path = Path("runs")
    """runs of this machine: RUNS/NAME/TIMESTAMP"""
    readme: Path = HERE / "README.md"
    """file with the two marker comments"""


def read(path: Path) -> Summary:
    """Read a summary.

    Raises:
      ValueError: the file is not a JSON object; the message names it.
    """
    try:
        summary = json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} is not JSON ({error}): delete that run, or write it again"
        ) from error
    if not isinstance(summary, dict):
        kind = type(summary).__name__
        raise ValueError(f"{path} must hold a JSON object; got {kind}: delete that run")
    return summary


def newest(name: str, results: Path, runs: Path) -> tuple[Path, Summary] | None:
    """Return path and summary of the newest full run with default settings; None without one.

    Some committed results are older than the key `standard`; a run in `runs` must have it.
    """
    kept = results / name / "summary.json"
    paths = [kept, *sorted((runs / name).glob("*/summary.json"))]
    found = [(path, read(path)) for path in paths if path.exists()]
    full = [
        (path, summary)
        for path, summary in found
        if any(summary.get(key) for key in ("targets", "claims", "rows"))
        and not summary["quick"]
        and summary.get("standard", path == kept)
    ]
    return max(full, key=lambda item: item[1]["environment"]["date"]) if full else None


def keep(path: Path, results: Path, name: str) -> Path:
    """Copy the summary, config and figures of a run to results/NAME, and return the new path."""
    home = results / name
    if path.parent.resolve() != home.resolve():
        home.mkdir(parents=True, exist_ok=True)
        for old in home.glob("*.png"):
            old.unlink()
        for file in (path, path.parent / "config.json", *path.parent.glob("*.png")):
            shutil.copy(file, home / file.name)
    return home / "summary.json"


def row_of(name: str, summary: Summary | None) -> dict[str, Any]:
    """Make one row of the JSON."""
    if summary is None:
        nothing = {"expected": None, "measured": None, "reached": False}
        return {"experiment": name, **nothing, "verdict": "no full run yet"}
    missed = [row for row in summary["targets"] if not row["reached"]]
    reasons = [
        f"{row['what']}: {targets.describe(row)}. {row['otherwise']}".strip() for row in missed
    ]
    return {
        "experiment": name,
        "expected": summary["expected"],
        "measured": summary["measured"],
        "reached": not missed,
        "seeds": summary["seeds"],
        "seconds": summary["seconds"],
        "verdict": f"NOT reached: {' '.join(dict.fromkeys(reasons))}" if missed else "reached",
    }


def description(name: str) -> str:
    """Return the first line of the docstring of a program."""
    docstring = ast.get_docstring(ast.parse((HERE / f"{name}.py").read_text())) or ""
    return docstring.partition("\n")[0]


def verdict(summary: Summary) -> str:
    """Return how many numbers of a run are reached, or how many of its claims hold."""
    rows, word = summary.get("targets"), "reached"
    if not rows:
        rows, word = summary.get("claims"), "holds"
    if not rows:
        return "-"
    good = sum(row[word] for row in rows)
    text = f"{good} of {len(rows)} {'reached' if word == 'reached' else 'hold'}"
    return text if good == len(rows) else f"**{text}**"


def program_rows(names: tuple[str, ...], summaries: dict[str, Summary]) -> list[list[str]]:
    """Make the rows of one group: program, description, measured seconds, verdict."""
    rows = []
    for name in names:
        summary = summaries.get(name)
        if summary is not None:
            seconds = f"{summary['seconds']:.0f}" if "seconds" in summary else "-"
            result = f"[{verdict(summary)}](#{name})" if details(name, summary, "") else "-"
        elif name in LECTURE:
            seconds, result = "-", "see `lecture`"
        else:
            seconds, result = "-", "no full run yet" if name in NAMES else "-"
        rows.append([f"`{name}`", description(name), seconds, result])
    return rows


def details(name: str, summary: Summary, link: str) -> list[str]:
    """Make the lines of one experiment with its numbers: expected, measured, verdict."""
    if summary.get("targets"):
        rows = [
            [
                row["what"],
                row["expected"],
                targets.describe(row),
                "reached" if row["reached"] else "**NOT reached**",
            ]
            for row in summary["targets"]
        ]
        head = ["number", "expected", "measured", ""]
    elif summary.get("claims"):
        rows = [
            [
                str(row["claim"]),
                str(row.get("text", "")),
                str(row["expected"]),
                _number(row["measured"]),
                "holds" if row["holds"] else "**does NOT hold**",
            ]
            for row in summary["claims"]
        ]
        head = ["", "claim", "expected", "measured", ""]
    else:
        head, rows = [], []
    drawn = LECTURE if name == "lecture" else (name,)  # older summaries do not list their figures
    figures = summary.get("figures", [f"{one}.png" for one in drawn])
    links = "".join(f"; [{Path(file).stem}.png]({link}/{name}/{file})" for file in figures)
    lines = [f"### {name}", "", f"`python -m experiments.{name}`: {origin(summary)}{links}.", ""]
    lines += grid(head, rows)
    if name == "window_tradeoff":
        lines += ["", *_sweep(summary)]
    missed = [row for row in summary.get("targets", []) if not row["reached"] and row["otherwise"]]
    for row in missed:
        lines += ["", f"NOT reached: {row['what']}. {row['otherwise']}"]
    return lines


def _sweep(summary: Summary) -> list[str]:
    """Make the table of the sweep, and a line about the chosen window."""
    head = ["sweep", "updates", "temporary MiB per step", "validation MSE, median of the seeds"]
    rows = [
        [
            row["estimator"],
            f"{row['updates']:,}",
            f"{row['temp_bytes'] / 2**20:.1f}",
            f"{row['valid_mse']:.3f}",
        ]
        for row in summary["rows"]
    ]
    chosen = summary["chosen"]
    seeds = ", ".join(f"{mse:.3f}" for mse in chosen["test_mse_seeds"])
    base = ", ".join(f"{name} {mse:.3f}" for name, mse in summary["baselines"]["test"].items())
    return [
        *grid(head, rows),
        "",
        f"Test MSE of {chosen['estimator']}, trained longer: {chosen['test_mse']:.3f} (mean "
        f"forecast; single seeds {seeds}). Without a network: {base}.",
    ]


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def origin(summary: Summary) -> str:
    """Return time, machine and versions of a run in one line."""
    machine = summary["environment"]
    versions = {"python": machine["python"], "jax": machine["jax"], **machine.get("versions", {})}
    where = f"{machine['date'][:10]}, {machine['device']}, {machine['cpus']} cores"
    run = f"{summary['seconds']:.0f} s, " if "seconds" in summary else ""
    run += f"seed {summary['seed']}, " if "seed" in summary else ""
    run += f"{summary['seeds']} seeds, " if "seeds" in summary else ""
    names = ("python", "jax", "flax", "optax", "numpy", "numba")
    used = ", ".join(f"{name} {versions[name]}" for name in names if name in versions)
    return f"{run}{where}, {used}"


def markdown(summaries: dict[str, Summary], reached: int, link: str) -> str:
    """Make the text between the markers; `link` is the path from the file to the results."""
    blocks = []
    for group, names in GROUPS.items():
        head = ["program", "what it does", "seconds", "result"]
        blocks.append([f"## {group}", "", *grid(head, program_rows(names, summaries))])
        if names == NAMES:
            blocks.append([f"{reached} of {len(NAMES)} reached."])
    blocks.append(["## Numbers"])
    blocks += [details(name, summary, link) for name, summary in summaries.items()]
    return "\n\n".join("\n".join(block) for block in blocks)


def main(config: Config) -> dict[str, Any]:
    """Rewrite the tables, and return what the last line of stdout holds."""
    names = [name for group in GROUPS.values() for name in group]
    found = {name: item for name in names if (item := newest(name, config.results, config.runs))}
    files = {name: keep(path, config.results, name) for name, (path, _) in found.items()}
    summaries = {name: summary for name, (_, summary) in found.items()}
    rows = [row_of(name, summaries.get(name)) for name in NAMES]
    reached = sum(row["reached"] for row in rows)
    home, results = config.readme.resolve().parent, config.results.resolve()
    inside = results.is_relative_to(home)
    link = results.relative_to(home).as_posix() if inside else results.as_posix()
    replace_between(config.readme, BEGIN, END, markdown(summaries, reached, link))
    text = f"{config.readme}: {reached} of {len(rows)} reached, from {len(files)} full runs"
    console.print(text)
    paths = [str(path) for path in files.values()]
    return {"rows": rows, "reached": reached, "of": len(rows), "files": paths}


if __name__ == "__main__":
    try:
        result = main(tyro.cli(Config, description=__doc__))
    except (OSError, ValueError) as error:
        sys.exit(f"table: {error}")
    print(json.dumps(result), flush=True)
