"""The README's table of benchmarks, from the newest results; what is not reached says so.

    python -m benchmarks.table [--results DIR] [--readme FILE]      a second; reads files, measures nothing

Replaces what stands between two marker comments of the README. A full run is taken before a quick one, then the newest;
results of another device than a CPU are left to their own section. The last line of stdout is JSON: the files it is from.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.support.program import say

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parent.parent / "README.md"
BEGIN = "<!-- benchmarks: begin; written by python -m benchmarks.table -->"
END = "<!-- benchmarks: end -->"
LARGE = "peers_large"  # cases that take long, in a file of their own: perhaps of another machine than the others
COMMANDS = {LARGE: 'peers --cases "B=64 H=512"'}
NAMES = ("peers", LARGE, "full_vs_truncated", "windows_in_parallel", "memory_plan", "precision", "streaming")


def newest(name: str, folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The result to show of one benchmark, or None."""
    known = []
    for path in folder.glob(f"{name}_cpu_*.json"):
        summary = json.loads(path.read_text())
        if summary.get("environment", {}).get("device") == "cpu":
            known.append((not summary["quick"], summary["environment"]["date"], path, summary))
    return max(known, key=lambda k: k[:2])[2:] if known else None


def grid(head: list[str], rows: list[list[str]]) -> list[str]:
    """A markdown table."""
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def number(value: float | None) -> str:
    """Three digits; a dash where there is nothing."""
    return "–" if value is None else f"{value:.3g}"


def origin(name: str, summary: dict[str, Any]) -> str:
    """Says where a result comes from."""
    machine, quick = summary["environment"], " **Quick run: too short to conclude from.**" if summary["quick"] else ""
    load = machine["load_before"][0] if machine["load_before"] else float("nan")
    versions = ", ".join(
        f"{key} {value}" for key, value in machine["versions"].items() if key not in ("jaxlib", "matplotlib")
    )
    cpu = " with ".join(filter(None, (machine["cpu"], machine.get("vectors"))))  # older results do not name the vectors
    where = f"{machine['date'][:10]}, {cpu}, {machine['cores']} cores, load {load:.1f} before"
    note = f" {summary['note'][0].upper()}{summary['note'][1:]}." if summary.get("note") else ""
    return f"`python -m benchmarks.{COMMANDS.get(name, name)}`: {where}; {versions}.{quick}{note}"


def targets(summaries: dict[str, dict[str, Any]]) -> list[str]:
    """What was wanted, and whether it is reached, every row of every benchmark."""
    rows = []
    for summary in summaries.values():
        for row in summary.get("targets", []):
            other = row.get("against_any_form")
            any_form = f"{number(other['ratio'])} ({other['system']}, {other['form']})" if other else ""
            rows.append([
                row["case"], row["against"], row["what"], f"{row['bound']} {row['wanted']:g}", number(row["measured"]),
                "reached" if row["reached"] else "**NOT reached**", row.get("ours", ""),
                number(row["on_one_device"]) if "on_one_device" in row else "", any_form,
            ])  # fmt: skip
    head = ["case", "against", "measure", "wanted", "measured", "", "ours", "ours on one device", "the fastest of any form"]
    return grid(head, rows) if rows else []


def peers(summary: dict[str, Any]) -> list[str]:
    """How many times faster ours is than every system in every form; the smallest number as large as the largest."""
    rows = [row for row in summary["rows"] if row.get("ratio") is not None]
    cases = list(dict.fromkeys(row["case"]["name"] for row in rows))
    systems = list(dict.fromkeys((row["system"], row["form"]) for row in rows))
    ratios = {(row["system"], row["form"], row["case"]["name"]): row["ratio"] for row in rows}
    lines = ["How many times faster `tbptt` (`make_train_epoch`, one program) trains; below 1 the other one is faster:", ""]
    lines += grid(
        ["system", "form", *cases],
        [[system, form, *(number(ratios.get((system, form, case))) for case in cases)] for system, form in systems],
    )
    others = [row for row in rows if not row["system"].startswith("tbptt")]
    if others:
        least, most = (pick(others, key=lambda row: row["ratio"]) for pick in (min, max))
        said = (f"{number(r['ratio'])} ({r['case']['name']}, {r['system']}, {r['form']})" for r in (least, most))
        lines += ["", "Smallest ratio {}, largest {}.".format(*said)]
    for row in summary["rows"]:
        what = row.get("missing") or row.get("refused") or row.get("failed")
        where = f" ({row['case']['name']})" if row["case"] else ""
        lines += ["", f"Not compared: {row['system']}{where}: {what}."] if what else []
    return lines


def lengths(summary: dict[str, Any]) -> list[str]:
    """Seconds and bytes against T, a column a system."""
    systems = list(dict.fromkeys(row["system"] for row in summary["rows"]))
    cells = {}
    for row in summary["rows"]:
        time = "not run" if row.get("skipped") else f"{number(row['seconds'])} s"
        cells[row["case"]["T"], row["system"]] = f"{time}, {number(row['temp_bytes'] / 2**20)} MiB"
    lines = ["One gradient, B=8, H=128, seconds and temporary MiB:", ""]
    T = sorted({row["case"]["T"] for row in summary["rows"]})
    return lines + grid(["T", *systems], [[f"{t:,}", *(cells.get((t, s), "–") for s in systems)] for t in T])


def precision(summary: dict[str, Any]) -> list[str]:
    """The worst error of each precision."""
    worst = summary["worst_relative_error"]
    rows = [[system, "not run" if value is None else f"{value:.1e}"] for system, value in worst.items()]
    return ["Largest relative error of the gradient against float64, over all cells and lengths:", ""] + grid(
        ["precision", "error"], rows
    )


def markdown(folder: Path) -> tuple[str, list[Path]]:
    """Makes the text between the markers, and names the files that it is from."""
    found = {name: result for name in NAMES if (result := newest(name, folder))}
    summaries = {name: summary for name, (_, summary) in found.items()}
    parts = [targets(summaries)]
    makers = {"peers": peers, LARGE: peers, "full_vs_truncated": lengths, "precision": precision}
    parts += [maker(summaries[name]) for name, maker in makers.items() if name in summaries]
    parts.append([f"- {origin(name, summary)}" for name, summary in summaries.items()])
    missing = [name for name in NAMES if name not in found]
    parts += [[f"No results yet of: {', '.join(missing)}."]] if missing else []
    return "\n\n".join("\n".join(part) for part in parts if part), [path for path, _ in found.values()]


def write(readme: Path, folder: Path) -> list[Path]:
    """Replaces what stands between the markers; a ValueError if the README has not exactly one pair."""
    text = readme.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"{readme} must hold each of these two lines once, in this order: {BEGIN!r} and {END!r}")
    made, files = markdown(folder)
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    readme.write_text(f"{before}{BEGIN}\n\n{made}\n\n{END}{after}")
    return files


def main() -> None:
    """Writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--readme", type=Path, default=README)
    flags = parser.parse_args()
    files = write(flags.readme, flags.results)
    say(f"{flags.readme}: from {len(files)} results")
    print(json.dumps({"files": [str(path) for path in files]}))


if __name__ == "__main__":
    main()
