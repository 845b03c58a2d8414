"""Time, memory and compile time of full BPTT and of TBPTT(k1, k2) by the length T.

    python -m benchmarks.full_vs_truncated [--quick] [--unroll scan|numba] [--out FILE]

About 25 minutes on two idle cores; --quick: 1 minute. One gradient of one LSTM layer (B=8, D=8,
H=128) at fixed parameters over T = 100 .. 100,000 steps. Expected: the bytes of full BPTT grow
with T, those of TBPTT do not; the seconds of both grow with T; compile time does not. Programs
for which XLA plans more than 4 GiB of temporary memory are compiled and not run, which `skipped`
reports. Then the cost per step of TBPTT(k1, k2) for k2/k1 = 1 .. 16, in the middle of a stream:
within 20 % of a straight line.

`ratio` of a row: how many times as fast as `tbptt full_bptt` at this T; null if that was not run.
With --out a figure is drawn next to the file. The last line of stdout is the summary as JSON.
"""

import argparse
from pathlib import Path
from typing import Any

import tbptt
from benchmarks import clock
from benchmarks.support import line, problem, program
from benchmarks.support.program import say

B, D, H = 8, 8, 128
LENGTHS, QUICK_LENGTHS = (100, 300, 1000, 3000, 10_000, 30_000, 100_000), (100, 400, 1600)
WINDOWS, QUICK_WINDOWS = (
    ((10, 10), (50, 50), (100, 100), (50, 100), (50, 200)),
    ((50, 50), (50, 100)),
)
MOST_BYTES = 4 * 2**30
FULL, TEXTBOOK = "tbptt full_bptt", "textbook scan"
# Compile time of the longest length over the shortest: compile times vary by some tens of per cent.
FLAT = 1.5


def measure_length(
    T: int,
    windows: Any,
    repeats: int,
    compiles: int = 1,
    most_bytes: int = MOST_BYTES,
    unroll: tbptt.UnrollFn = tbptt.unroll,
) -> list[dict[str, Any]]:
    """Make the rows of one length."""
    made = problem.make(T, B, D, H)
    loss_fn = problem.our_loss(made, unroll=unroll)
    systems = {FULL: problem.estimating(tbptt.full_bptt(loss_fn), made)}
    for k1, k2 in windows:
        estimator = tbptt.truncated_bptt(loss_fn, k1, k2)
        systems[f"tbptt truncated_bptt({k1}, {k2})"] = problem.estimating(estimator, made)
    systems[TEXTBOOK] = (problem.textbook_gradient, (made.params, made.carry, made.batch))
    programs = {
        name: clock.compile_program(function, *args, compiles=compiles)
        for name, (function, args) in systems.items()
    }
    fitting = {name: p for name, p in programs.items() if p.temp_bytes <= most_bytes}
    timings = clock.time_interleaved(fitting, repeats)
    rows = []
    for name, compiled in programs.items():
        row = {"case": {"T": T, "B": B, "D": D, "H": H}, "system": name}
        row |= {"temp_bytes": compiled.temp_bytes, "compile_seconds": compiled.compile_seconds}
        if name in timings:
            seconds = timings[name].seconds
            full = timings[FULL].seconds / seconds if FULL in timings else None
            row |= {"steps_per_second": T / seconds, "ratio": full, **timings[name]._asdict()}
        else:
            need, limit = compiled.temp_bytes / 2**30, most_bytes / 2**30
            row["skipped"] = f"it needs {need:.1f} GiB, more than {limit:g}"
            row |= {"steps_per_second": None, "ratio": None}
        say(f"T={T:7} {name:32} {_text(row)}")
        rows.append(row)
    return rows


def _text(row: dict[str, Any]) -> str:
    if "skipped" in row:
        return f"skipped: {row['skipped']}"
    measured = f"{row['seconds']:9.4f} s {row['temp_bytes'] / 2**20:9.1f} MiB"
    return f"{measured}, compiled in {row['compile_seconds']:.1f} s"


def repeats_for(T: int, quick: bool) -> int:
    """Return fewer repeats for lengths at which one takes a minute over all programs."""
    return 3 if quick or T > 1000 else 7


def compile_targets(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the targets of compile time: against the textbook at the median length, and by T."""
    made = []
    lengths = sorted({row["case"]["T"] for row in rows})
    seconds = {(row["case"]["T"], row["system"]): row["compile_seconds"] for row in rows}
    for system in dict.fromkeys(row["system"] for row in rows if row["system"] != TEXTBOOK):
        middle, ends = lengths[len(lengths) // 2], (lengths[0], lengths[-1])
        share = seconds[middle, system] / seconds[middle, TEXTBOOK]
        what = "times the compile time"
        if "truncated" not in system:  # a truncated gradient is a larger program than the scan
            made.append(program.target(f"T={middle}", what, TEXTBOOK, 1.5, share, most=True))
        growth = seconds[ends[1], system] / seconds[ends[0], system]
        case, itself = f"{system}, T={ends[1]}", f"itself at T={ends[0]}"
        made.append(program.target(case, what, itself, FLAT, growth, most=True))
    return made


def measure(flags: argparse.Namespace) -> dict[str, Any]:
    """Measure all lengths, then the line."""
    rows, unroll = [], program.unroll_of(flags.unroll)
    windows, compiles = (QUICK_WINDOWS, 1) if flags.quick else (WINDOWS, 3)
    for T in QUICK_LENGTHS if flags.quick else LENGTHS:
        repeats = repeats_for(T, flags.quick)
        rows += measure_length(T, windows, repeats, compiles=compiles, unroll=unroll)
    sizes = (10, 32, B, D, H, 3) if flags.quick else (50, 80, B, D, H, 5)
    cost = line.measure(*sizes, unroll=unroll)
    say(f"cost per step against k2/k1: {cost['largest_deviation']:.1%} off a straight line")
    return {"rows": rows, "line": cost, "targets": line.targets(cost) + compile_targets(rows)}


def draw(summary: dict[str, Any], path: Path) -> None:
    """Draw seconds and bytes against T, and the line, from the summary alone."""
    from benchmarks.support import figures
    from experiments.support.common import style

    title = figures.title(summary, f"LSTM, B={B}, H={H}")
    figure, (time, memory, cost) = style.panels(3, title=title)
    figures.by_system(time, summary["rows"], "T", "seconds")
    figures.by_system(memory, summary["rows"], "T", "temp_bytes", scale=2**20)
    time.set(xscale="log", yscale="log", xlabel="T (steps)", ylabel="seconds of one gradient")
    memory.set(xscale="log", yscale="log", xlabel="T (steps)", ylabel="temporary MiB")
    above = {"color": style.COLORS[-1], "lw": 1, "ls": ":", "label": "above: compiled, not run"}
    memory.axhline(MOST_BYTES / 2**20, **above)
    memory.legend(fontsize=8)
    time.legend(fontsize=8)
    fitted, xs = summary["line"], [0, *summary["line"]["ratios"]]
    ms = [seconds * 1e3 for seconds in fitted["seconds_per_step"]]
    cost.plot(fitted["ratios"], ms, "o", color=style.COLORS[0])
    ms = [(fitted["intercept"] + fitted["slope"] * x) * 1e3 for x in xs]
    cost.plot(xs, ms, color=style.COLORS[1], ls="--")
    deviation = f"at most {fitted['largest_deviation']:.0%} off the line"
    cost.set(xlabel="k2 / k1", ylabel="ms per step", title=deviation)
    style.save(figure, path.parent, path.stem)


def main() -> None:
    """Run the benchmark."""
    program.run(__doc__, measure, draw=draw, add_flags=program.add_unroll_flag)


if __name__ == "__main__":
    main()
