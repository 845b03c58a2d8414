"""Recordings on disk: what does it cost to train from a file, in speed and in memory?

    python -m benchmarks.streaming [--quick] [--out FILE]      about 3 minutes on two idle cores; --quick: half a minute

Speed: one LSTM (H=128, 32 lanes, TBPTT(100, 100), one-step forecasts) trains on batches that wait in memory, and on the
same ones read from a .npy, a .parquet or a .csv file, with and without reading ahead, in turns. The parameters that come
out must be the same to the bit, else nothing is reported. Memory: processes of their own train on recordings of 100,000
and 10,000,000 steps (H=16, 128 lanes, TBPTT(250, 250)); as many updates on both, one pass over the longer one, because
the first hundred updates of any program add to its memory, streams or not. The number is the peak resident memory, all
of it, opening and converting included. Files are read by position and not mapped, so no page of them is left out of it.
Expected, from issue 6: from disk at least 0.95 times the steps/s; at most 1.1 times the memory for 100 times the steps.

`ratio` of a row: its steps/s over those from memory. The last line of stdout is the summary as JSON.
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

from benchmarks import clock
from benchmarks.support import program, stream_problem
from benchmarks.support.program import say
from benchmarks.support.stream_problem import Sizes
from tbptt.data import read_ahead

MEMORY, AHEAD = "from memory", "{} read ahead"
SPEED, QUICK_SPEED = Sizes(320_000, 32, 100, 128), Sizes(64_000, 32, 100, 128)
PEAK = Sizes(10_000_000, 128, 250, 16)
SHORT, QUICK_LONG = 100_000, 1_000_000


def speed(folder: Path, sizes: Sizes, suffixes: tuple[str, ...], repeats: int) -> list[dict[str, Any]]:
    """Trains one pass over one recording from memory and from files of it, in turns; rows of steps/s."""
    streams = {
        suffix: stream_problem.open_stream(
            stream_problem.write_file(folder / f"speed{suffix}", sizes.steps), sizes
        )
        for suffix in suffixes
    }  # fmt: skip
    first = streams[suffixes[0]]
    held = [jax.device_put(first.chunk(i).batch) for i in range(len(first))]
    train = stream_problem.make_trainer(sizes, held[0])
    feeds: dict[str, Callable[[], Iterable[Any]]] = {MEMORY: lambda: held}
    for suffix, stream in streams.items():
        feeds[AHEAD.format(suffix)] = lambda stream=stream: (chunk.batch for _, chunk in read_ahead(stream))
    feeds[f"{suffixes[0]} not read ahead"] = lambda: (first.chunk(i).batch for i in range(len(first)))
    reference = train(held)
    for name, feed in feeds.items():
        if not all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), train(feed()), reference))):
            raise ValueError(f"{name}: what was trained differs from what was trained {MEMORY}: nothing is reported")
    seconds = clock.take_turns(
        {name: lambda f=feed: clock.once(lambda: train(f())) for name, feed in feeds.items()}, repeats
    )
    memory, rows = clock.spread(seconds[MEMORY]), []
    for name in feeds:
        found = clock.spread(seconds[name])
        row = {"case": sizes._asdict(), "system": name, **found._asdict(), "ratio": memory.seconds / found.seconds}
        row |= {"steps_per_second": sizes.steps / found.seconds, "updates": len(first)}
        say(f"{name:22} {row['steps_per_second']:12,.0f} steps/s, {row['ratio']:.3f} times those {MEMORY}")
        rows.append(row)
    return rows


def peak(folder: Path, sizes: Sizes, suffix: str, updates: int, *, load: bool = False) -> dict[str, Any]:
    """Trains in a process of its own; the row of its peak memory."""
    file = folder / f"{sizes.steps}{suffix}"
    if not file.exists():
        stream_problem.write_file(file, sizes.steps)
    command = [sys.executable, "-m", "benchmarks.support.stream_memory", str(file), str(updates), *map(str, sizes)]
    env = os.environ | {"TBPTT_DATA": str(folder / "cache")}
    ended = subprocess.run(
        [*command, *(["--load"] if load else [])], stdout=subprocess.PIPE, text=True, env=env, check=True
    )
    found = json.loads(ended.stdout.splitlines()[-1])
    name = f"{suffix} loaded whole" if load else AHEAD.format(suffix)
    row = {"case": sizes._asdict(), "system": name, "updates": updates, **found, "file_bytes": file.stat().st_size}
    say(f"{name:22} {sizes.steps:12,} steps: peak {found['peak_bytes'] / 2**20:7.1f} MiB in {found['seconds']:.1f} s")
    return row


def targets(speeds: list[dict[str, Any]], peaks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The two numbers of issue 6, for every kind of file."""
    made = []
    for row in speeds:
        if row["system"].endswith(" read ahead") and "not" not in row["system"]:
            case = f"{row['system']}, H={row['case']['hidden']}"
            made.append(program.target(case, "times the steps/s", MEMORY, 0.95, row["ratio"]))
    for system in dict.fromkeys(row["system"] for row in peaks if "loaded" not in row["system"]):
        short, long = sorted((r for r in peaks if r["system"] == system), key=lambda r: r["case"]["steps"])
        share, steps = long["peak_bytes"] / short["peak_bytes"], (f"{r['case']['steps']:,} steps" for r in (long, short))
        made.append(program.target(f"{system}, {next(steps)}", "times the peak memory", next(steps), 1.1, share, most=True))
    return made


def measure(flags: argparse.Namespace) -> dict[str, Any]:
    """Runs both halves, in a folder that is gone afterwards."""
    try:
        import pyarrow  # noqa: F401

        suffixes, notes = (".npy", ".parquet", ".csv"), []
    except ImportError:
        suffixes, notes = (".npy",), ["pyarrow is not installed: .parquet and .csv are left out"]
    with tempfile.TemporaryDirectory(prefix="tbptt-streaming-") as name:
        folder = Path(name)
        os.environ["TBPTT_DATA"] = str(folder / "cache")
        speeds = speed(folder, QUICK_SPEED if flags.quick else SPEED, suffixes, 3 if flags.quick else 11)
        peaks, most = [], QUICK_LONG if flags.quick else PEAK.steps
        updates = -(-most // (PEAK.lanes * PEAK.chunk))
        for suffix in suffixes[:1] if flags.quick else suffixes:
            for steps in (SHORT, most):
                peaks.append(peak(folder, PEAK._replace(steps=steps), suffix, updates))
                if suffix == ".npy" and not flags.quick:
                    peaks.append(peak(folder, PEAK._replace(steps=steps), suffix, updates, load=True))
    return {"rows": speeds, "memory": peaks, "targets": targets(speeds, peaks), "notes": notes}


def draw(summary: dict[str, Any], path: Path) -> None:
    """Draws steps/s by system, and peak memory against the recording's length; reads the summary alone."""
    from benchmarks.support import figures

    figure, (left, right) = figures.panels(2, figures.title(summary, "training from disk"))
    names = [row["system"] for row in summary["rows"]]
    for n, row in enumerate(summary["rows"]):
        middle = row["case"]["steps"] / row["seconds"]
        ends = [[middle - row["case"]["steps"] / row["upper"]], [row["case"]["steps"] / row["lower"] - middle]]
        left.barh(n, middle / 1e3, xerr=[[e[0] / 1e3] for e in ends], color=figures.COLORS[n], capsize=3)
        left.text(0, n, f"  {row['ratio']:.1%} of from memory", va="center", color="white", fontsize=8)
    left.set(yticks=range(len(names)), yticklabels=names, xlabel="thousand steps/s (median; quartiles)")
    left.invert_yaxis()
    left.set_title("TBPTT(100, 100), LSTM, H=128, 32 lanes", fontsize=9)
    figures.by_system(right, summary["memory"], "steps", "peak_bytes", scale=2**20)
    right.set(xscale="log", xlabel="steps of the recording", ylabel="peak resident MiB of the process")
    right.set_ylim(0, 1.1 * max(row["peak_bytes"] for row in summary["memory"]) / 2**20)
    right.set_title(f"{summary['memory'][0]['updates']} updates of TBPTT(250, 250), LSTM, H=16, 128 lanes", fontsize=9)
    right.legend(fontsize=8, loc="lower right")
    figures.save(figure, path)


def main() -> None:
    """Runs both halves."""
    program.run(__doc__, measure, draw=draw)


if __name__ == "__main__":
    main()
