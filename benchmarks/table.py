"""Rewrite the tables of benchmarks/README.md and experiments/README.md from the results files.

    python -m benchmarks.table [--results DIR] [--readme FILE]      a second; it measures nothing

Replaces the text between two marker comments of each file; with --results or --readme of the
first file alone. Of every benchmark and unroll function, a full run comes before a quick one,
then the newest; results of other devices than a CPU have a section of their own. The last line of
stdout is JSON: the results files that were used.
"""

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.support.program import NUMBA, SCAN, say
from benchmarks.systems import registry
from experiments import table as experiments_table
from experiments.support.common.markdown import grid, replace_between

HERE = Path(__file__).parent
RESULTS = HERE / "results"
README = HERE / "README.md"
BEGIN = "<!-- benchmarks: begin; written by python -m benchmarks.table -->"
END = "<!-- benchmarks: end -->"
LARGE = "peers_large"  # the cases that take longest, in a file of their own
COMMANDS = {LARGE: 'peers --cases "B=64 H=512"'}
PEERS = ("peers", LARGE)
NAMES = (
    *PEERS,
    "full_vs_truncated",
    "windows_in_parallel",
    "memory_plan",
    "precision",
    "streaming",
)

Summary = dict[str, Any]


class Result(NamedTuple):
    """A results file: name of the benchmark, unroll function, path, content."""

    name: str
    unroll: str | None
    path: Path
    summary: Summary


def unroll_of(name: str, summary: Summary) -> str | None:
    """Return the unroll function that a run timed: "scan", "numba", or None if it does not apply.

    Runs without the key were measured when compiled loops ran wherever numba was installed.
    """
    if name in (*PEERS, "precision", "gpu"):
        return None
    had_numba = "numba" in summary["environment"]["versions"]
    return summary.get("unroll", NUMBA if had_numba else SCAN)


def renamed(summary: Summary) -> Summary:
    """Rename the systems of an older run of `peers`, which called the compiled loops `tbptt`."""
    rows = summary["rows"]
    if any(row["system"].startswith(registry.NUMBA) for row in rows):
        return summary
    if "numba" not in summary["environment"]["versions"]:
        return summary

    def name(text: str) -> str:
        ours = text.startswith(registry.OURS)
        return text.replace(registry.OURS, registry.NUMBA, 1) if ours else text

    targets = [
        row | {"ours": name(row["ours"])} if "ours" in row else row
        for row in summary.get("targets", [])
    ]
    return summary | {
        "rows": [row | {"system": name(row["system"])} for row in rows],
        "targets": targets,
        "reference": registry.NUMBA,
    }


def results(folder: Path) -> list[Result]:
    """Return the result to show of every benchmark and unroll function, in the order of NAMES."""
    found = []
    for name in NAMES:
        seen: dict[str | None, list[tuple[bool, str, Result]]] = {}
        patterns = (f"{name}_cpu_*.json", f"{name}_{NUMBA}_cpu_*.json")
        for path in (path for pattern in patterns for path in sorted(folder.glob(pattern))):
            summary = json.loads(path.read_text())
            machine = summary.get("environment", {})
            if machine.get("device") == "cpu":
                summary = renamed(summary) if name in PEERS else summary
                result = Result(name, unroll_of(name, summary), path, summary)
                key = not summary["quick"], machine["date"]
                seen.setdefault(result.unroll, []).append((*key, result))
        for runs in seen.values():
            found.append(max(runs, key=lambda run: run[:2])[2])
    return found


def number(value: float | None) -> str:
    """Return a number with three digits, or a dash."""
    return "–" if value is None else f"{value:.3g}"


def origin(result: Result) -> str:
    """Return command, date, machine and versions of a run in one line."""
    summary = result.summary
    machine = summary["environment"]
    load = (machine.get("load") or machine.get("load_before") or [float("nan")])[0]
    left_out = ("jaxlib", "matplotlib")
    versions = [f"{k} {v}" for k, v in machine["versions"].items() if k not in left_out]
    cpu = " with ".join(filter(None, (machine["cpu"], machine.get("vectors"))))
    cores = machine.get("cpus") or machine.get("cores")
    where = f"{machine['date'][:10]}, {cpu}, {cores} cores, load {load:.1f} before"
    quick = " **Quick run: too short for conclusions.**" if summary["quick"] else ""
    note = summary.get("note", "")
    note = f" {note[0].upper()}{note[1:]}." if note else ""
    unroll = f" --unroll {result.unroll}" if result.unroll else ""
    command = f"python -m benchmarks.{COMMANDS.get(result.name, result.name)}{unroll}"
    return f"`{command}`: {where}; {', '.join(versions)}.{quick}{note}"


def targets(found: list[Result]) -> list[str]:
    """Return the table of all targets: wanted, measured, reached."""
    rows = []
    for result in found:
        for row in result.summary.get("targets", []):
            other = row.get("against_any_form")
            any_form = ""
            if other:
                any_form = f"{number(other['ratio'])} ({other['system']}, {other['form']})"
            default = number(row.get("default_unroll")) if "ours" in row else ""
            ours = row.get("ours", f"unroll: {result.unroll}" if result.unroll else "")
            rows.append(
                [
                    row["case"],
                    row["against"],
                    row["what"],
                    f"{row['bound']} {row['wanted']:g}",
                    number(row["measured"]),
                    "reached" if row["reached"] else "**NOT reached**",
                    ours,
                    default,
                    any_form,
                ]
            )
    head = ["case", "against", "measure", "wanted", "measured", "", "ours"]
    head += ["with `tbptt.unroll`", "against the fastest of any form"]
    return ["### Targets", "", *grid(head, rows)] if rows else []


def peers(result: Result) -> list[str]:
    """Return the table of ratios of every system and form, with the smallest and the largest."""
    summary = result.summary
    rows = [row for row in summary["rows"] if row.get("ratio") is not None]
    cases = list(dict.fromkeys(row["case"]["name"] for row in rows))
    systems = list(dict.fromkeys((row["system"], row["form"]) for row in rows))
    ratios = {(row["system"], row["form"], row["case"]["name"]): row["ratio"] for row in rows}
    reference = summary.get("reference", registry.OURS)
    lines = [f"### Other libraries: {', '.join(cases)}", ""]
    lines += [f"Seconds divided by those of `{reference}`, one program; below 1 is faster:", ""]
    lines += grid(
        ["system", "form", *cases],
        [
            [system, form, *(number(ratios.get((system, form, case))) for case in cases)]
            for system, form in systems
        ],
    )
    others = [row for row in rows if not registry.is_ours(row["system"])]
    if others:
        ends = [pick(others, key=lambda row: row["ratio"]) for pick in (min, max)]
        texts = (
            f"{number(r['ratio'])} ({r['case']['name']}, {r['system']}, {r['form']})" for r in ends
        )
        lines += ["", "Smallest ratio {}, largest {}.".format(*texts)]
    for row in summary["rows"]:
        reason = row.get("missing") or row.get("refused") or row.get("failed")
        where = f" ({row['case']['name']})" if row["case"] else ""
        lines += ["", f"Not compared: {row['system']}{where}: {reason}."] if reason else []
    return lines


def lengths(result: Result) -> list[str]:
    """Return the table of seconds and bytes by T, one column per system."""
    rows, cells = result.summary["rows"], {}
    systems = list(dict.fromkeys(row["system"] for row in rows))
    for row in rows:
        time = "not run" if row.get("skipped") else f"{number(row['seconds'])} s"
        memory = f"{number(row['temp_bytes'] / 2**20)} MiB"
        cells[row["case"]["T"], row["system"]] = f"{time}, {memory}"
    lines = [f"### One gradient by its length (unroll: {result.unroll})", ""]
    lines += ["B=8, D=8, H=128, seconds and temporary MiB:", ""]
    T = sorted({row["case"]["T"] for row in rows})
    table = [[f"{t:,}", *(cells.get((t, s), "–") for s in systems)] for t in T]
    return lines + grid(["T", *systems], table)


def precision(result: Result) -> list[str]:
    """Return the table of the largest error of each precision."""
    worst = result.summary["worst_relative_error"].items()
    rows = [[system, "not run" if value is None else f"{value:.1e}"] for system, value in worst]
    lines = ["### Precision", ""]
    lines += ["Largest relative error of the gradient against float64, all cells and lengths:", ""]
    return lines + grid(["precision", "error"], rows)


def accelerator(folder: Path) -> tuple[list[str], list[Path]]:
    """Return the tables of the results of `gpu` and `diagnostics_cost`, and their files."""
    lines, files = [], []
    runs = [path for path in sorted(folder.glob("gpu_*.json")) if "_cpu_" not in path.name]
    if runs:
        path = max(runs, key=lambda path: path.stem.rpartition("_")[2])
        summary = json.loads(path.read_text())
        machine = summary.get("environment", summary)
        device = f"{machine['device']}, jax {machine['jax']}"
        rows = []
        for row in summary["rows"]:
            sizes = ", ".join(f"{key}={value}" for key, value in row["case"].items())
            memory = number(row["temp_bytes"] / 2**20)
            rows.append([sizes, row["system"], number(row["seconds"] * 1e3), memory])
        lines += ["### Accelerator", "", f"One gradient of an LSTM layer on one {device}:", ""]
        lines += grid(["case", "system", "ms", "temporary MiB"], rows)
        files.append(path)
    rows = []
    for path in sorted(folder.glob("diagnostics_cost_*.json")):
        summary = json.loads(path.read_text())
        machine = summary.get("environment") or summary["machine"]
        unroll = summary.get("unroll", SCAN)
        if not summary["quick"]:
            files.append(path)
            for cell, overhead in summary["overhead"].items():
                rows.append([machine["device"], unroll, cell, f"{overhead:.1%}"])
    if rows:
        lines += ["", "### Diagnostics inside a train step", ""]
        lines += ["Added time of all diagnostics, B=32, H=128, TBPTT(50, 50):", ""]
        lines += grid(["device", "unroll", "cell", "overhead"], rows)
    return lines, files


def markdown(folder: Path) -> tuple[str, list[Path]]:
    """Return the text between the markers, and the files that it is from."""
    found = results(folder)
    blocks = [targets(found)]
    makers = {"peers": peers, LARGE: peers, "full_vs_truncated": lengths, "precision": precision}
    blocks += [makers[result.name](result) for result in found if result.name in makers]
    lines, files = accelerator(folder)
    blocks.append(lines)
    if found:
        blocks.append(["### Runs", "", *(f"- {origin(result)}" for result in found)])
    missing = [name for name in NAMES if name not in {result.name for result in found}]
    blocks += [[f"No results yet of: {', '.join(missing)}."]] if missing else []
    text = "\n\n".join("\n".join(block).strip() for block in blocks if block)
    return text, [*(result.path for result in found), *files]


def write(readme: Path, folder: Path) -> list[Path]:
    """Replace the text between the markers of a file, and return the results files it is from."""
    text, files = markdown(folder)
    replace_between(readme, BEGIN, END, text)
    return files


def main() -> None:
    """Rewrite the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--readme", type=Path, default=README)
    flags = parser.parse_args()
    files = [str(path) for path in write(flags.readme, flags.results)]
    say(f"{flags.readme}: from {len(files)} results")
    if (flags.results, flags.readme) == (RESULTS, README):
        files += experiments_table.main(experiments_table.Config())["files"]
    print(json.dumps({"files": files}))


if __name__ == "__main__":
    main()
