"""Speed and memory of training from recordings on disk.

    python -m benchmarks.streaming [--quick] [--unroll scan|numba] [--out FILE]

About 3 minutes on two idle cores; --quick: half a minute. Speed: one LSTM (B=32, H=128,
TBPTT(100, 100), one-step forecasts) trains on batches in memory, and on the same batches read
from a .npy, a .parquet or a .csv file, with and without reading ahead, interleaved. The trained
parameters must be equal to the bit, otherwise nothing is reported. Memory: separate processes
train on recordings of 100,000 and 10,000,000 steps (B=128, H=16, TBPTT(250, 250)). Both make as
many updates as one pass over the longer recording, because the first hundred updates of any
program add to its memory. The number is the whole peak resident memory, opening and converting
the file included. Files are read by position and not mapped. Expected: from disk at least 0.95
times the steps/s; at most 1.1 times the memory for 100 times the steps.

`ratio` of a row: its steps/s over those from memory. The last line of stdout is the summary as
JSON.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax

import tbptt
from benchmarks import clock
from benchmarks.support import program, stream_problem
from benchmarks.support.program import say
from benchmarks.support.stream_problem import Sizes
from tbptt.data import read_ahead

MEMORY, AHEAD = "from memory", "{} read ahead"
SPEED, QUICK_SPEED = Sizes(320_000, 32, 100, 128), Sizes(64_000, 32, 100, 128)
PEAK = Sizes(10_000_000, 128, 250, 16)
SHORT, QUICK_LONG = 100_000, 1_000_000


def speed(
    folder: Path,
    sizes: Sizes,
    suffixes: tuple[str, ...],
    repeats: int,
    unroll: tbptt.UnrollFn = tbptt.unroll,
) -> list[dict[str, Any]]:
    """Train one pass from memory and from files, interleaved, and return rows of steps/s."""
    streams = {}
    for suffix in suffixes:
        path = stream_problem.write_file(folder / f"speed{suffix}", sizes.steps)
        streams[suffix] = stream_problem.open_stream(path, sizes)
    first = streams[suffixes[0]]
    held = [jax.device_put(first.chunk(i).batch) for i in range(len(first))]
    train = stream_problem.make_trainer(sizes, held[0], unroll)
    feeds: dict[str, Callable[[], Iterable[Any]]] = {MEMORY: lambda: held}
    for suffix, stream in streams.items():
        name = AHEAD.format(suffix)
        feeds[name] = lambda stream=stream: (chunk.batch for _, chunk in read_ahead(stream))
    name = f"{suffixes[0]} not read ahead"
    feeds[name] = lambda: (first.chunk(i).batch for i in range(len(first)))
    reference = train(held)
    for name, feed in feeds.items():
        equal = jax.tree.map(lambda a, b: bool((a == b).all()), train(feed()), reference)
        if not all(jax.tree.leaves(equal)):
            raise ValueError(
                f"{name}: the trained parameters differ from those trained {MEMORY}: "
                "nothing is reported"
            )
    runs = {name: lambda f=f: clock.time_call(lambda: train(f())) for name, f in feeds.items()}
    seconds = clock.interleave(runs, repeats)
    memory, rows = clock.spread(seconds[MEMORY]), []
    for name in feeds:
        found = clock.spread(seconds[name])
        row = {"case": sizes._asdict(), "system": name, **found._asdict()}
        row |= {"ratio": memory.seconds / found.seconds, "updates": len(first)}
        row["steps_per_second"] = sizes.steps / found.seconds
        text = f"{row['steps_per_second']:12,.0f} steps/s, {row['ratio']:.3f} times those {MEMORY}"
        say(f"{name:22} {text}")
        rows.append(row)
    return rows


def peak(
    folder: Path,
    sizes: Sizes,
    suffix: str,
    updates: int,
    *,
    load: bool = False,
    unroll: str = program.SCAN,
) -> dict[str, Any]:
    """Train in a process of its own, and return the row of its peak memory."""
    file = folder / f"{sizes.steps}{suffix}"
    if not file.exists():
        stream_problem.write_file(file, sizes.steps)
    command = [sys.executable, "-m", "benchmarks.support.stream_memory", str(file), str(updates)]
    command += [*map(str, sizes), *(["--load"] if load else []), "--unroll", unroll]
    env = os.environ | {"TBPTT_DATA": str(folder / "cache")}
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=env, check=True)
    found = json.loads(ended.stdout.splitlines()[-1])
    name = f"{suffix} loaded whole" if load else AHEAD.format(suffix)
    row = {"case": sizes._asdict(), "system": name, "updates": updates, **found}
    row["file_bytes"] = file.stat().st_size
    text = f"peak {found['peak_bytes'] / 2**20:7.1f} MiB in {found['seconds']:.1f} s"
    say(f"{name:22} {sizes.steps:12,} steps: {text}")
    return row


def targets(speeds: list[dict[str, Any]], peaks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the targets of speed and memory, for every kind of file."""
    made = []
    for row in speeds:
        if row["system"].endswith(" read ahead") and "not" not in row["system"]:
            case = f"{row['system']}, H={row['case']['hidden']}"
            made.append(program.target(case, "times the steps/s", MEMORY, 0.95, row["ratio"]))
    for system in dict.fromkeys(row["system"] for row in peaks if "loaded" not in row["system"]):
        own = (row for row in peaks if row["system"] == system)
        short, long = sorted(own, key=lambda row: row["case"]["steps"])
        share = long["peak_bytes"] / short["peak_bytes"]
        more, fewer = (f"{row['case']['steps']:,} steps" for row in (long, short))
        case, what = f"{system}, {more}", "times the peak memory"
        made.append(program.target(case, what, fewer, 1.1, share, most=True))
    return made


def measure(flags: argparse.Namespace) -> dict[str, Any]:
    """Measure speed and memory, in a temporary folder."""
    try:
        import polars  # noqa: F401

        suffixes, notes = (".npy", ".parquet", ".csv"), []
    except ImportError:
        suffixes = (".npy",)
        notes = ["polars is not installed: .parquet and .csv are left out"]
    with tempfile.TemporaryDirectory(prefix="tbptt-streaming-") as name:
        folder = Path(name)
        os.environ["TBPTT_DATA"] = str(folder / "cache")
        sizes, repeats = (QUICK_SPEED, 3) if flags.quick else (SPEED, 11)
        speeds = speed(folder, sizes, suffixes, repeats, program.unroll_of(flags.unroll))
        peaks, most = [], QUICK_LONG if flags.quick else PEAK.steps
        updates = -(-most // (PEAK.batch * PEAK.chunk))
        for suffix in suffixes[:1] if flags.quick else suffixes:
            for steps in (SHORT, most):
                sizes, unroll = PEAK._replace(steps=steps), flags.unroll
                peaks.append(peak(folder, sizes, suffix, updates, unroll=unroll))
                if suffix == ".npy" and not flags.quick:
                    peaks.append(peak(folder, sizes, suffix, updates, load=True, unroll=unroll))
    return {"rows": speeds, "memory": peaks, "targets": targets(speeds, peaks), "notes": notes}


def draw(summary: dict[str, Any], path: Path) -> None:
    """Draw steps/s by system, and peak memory against the length, from the summary alone."""
    from benchmarks.support import figures
    from experiments.support.common import style

    title = figures.title(summary, "training from disk")
    figure, (left, right) = style.panels(2, title=title)
    names = [row["system"] for row in summary["rows"]]
    for n, row in enumerate(summary["rows"]):
        thousands = row["case"]["steps"] / 1e3
        middle = thousands / row["seconds"]
        error = [[middle - thousands / row["upper"]], [thousands / row["lower"] - middle]]
        left.barh(n, middle, xerr=error, color=style.COLORS[n], capsize=3)
        text = f"  {row['ratio']:.1%} of {MEMORY}"
        left.text(0, n, text, va="center", color="white", fontsize=8)
    left.set(yticks=range(len(names)), yticklabels=names)
    left.set(xlabel="thousand steps/s (median; quartiles)")
    left.invert_yaxis()
    left.set_title("TBPTT(100, 100), LSTM, B=32, H=128", fontsize=9)
    figures.by_system(right, summary["memory"], "steps", "peak_bytes", scale=2**20)
    right.set(
        xscale="log", xlabel="steps of the recording", ylabel="peak resident MiB of the process"
    )
    right.set_ylim(0, 1.1 * max(row["peak_bytes"] for row in summary["memory"]) / 2**20)
    updates = summary["memory"][0]["updates"]
    right.set_title(f"{updates} updates of TBPTT(250, 250), LSTM, B=128, H=16", fontsize=9)
    right.legend(fontsize=8, loc="lower right")
    style.save(figure, path.parent, path.stem)


def main() -> None:
    """Run the benchmark."""
    program.run(__doc__, measure, draw=draw, add_flags=program.add_unroll_flag)


if __name__ == "__main__":
    main()
