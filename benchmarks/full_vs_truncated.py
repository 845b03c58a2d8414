"""What does the length of a sequence cost? Full BPTT against TBPTT(k1, k2): time, temporary bytes, compile time.

    python -m benchmarks.full_vs_truncated [--quick] [--out FILE]      about 25 minutes on two idle cores; --quick: 1 minute

One gradient of one LSTM layer (B=8, D=8, H=128) at fixed parameters over T = 100 .. 100,000 steps. Expected: the bytes of
full BPTT grow with T, those of TBPTT stay; the seconds of both grow with T; compile time grows with neither. Lengths at
which XLA plans more than 4 GiB of temporary memory are compiled, not run, and say so. Then the cost per step of
TBPTT(k1, k2) for k2/k1 = 1 .. 16, in the middle of a stream: within 20 % of a straight line.

`ratio` of a row: how many times as fast as `tbptt full_bptt` at this T; null where that was not run. With --out a figure is
drawn beside the file. The last line of stdout is the summary as JSON.
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
WINDOWS, QUICK_WINDOWS = ((10, 10), (50, 50), (100, 100), (50, 100), (50, 200)), ((50, 50), (50, 100))
MOST_BYTES = 4 * 2**30
FULL, TEXTBOOK = "tbptt full_bptt", "textbook scan"
# Compile time "flat in T": the longest length's over the shortest's. Compilation itself drifts by some tens of per cent.
FLAT = 1.5


def measure_length(
    T: int, windows: Any, repeats: int, compiles: int = 1, most_bytes: int = MOST_BYTES
) -> list[dict[str, Any]]:
    """Makes the rows of one length."""
    made = problem.make(T, B, D, H)
    loss_fn = problem.our_loss(made)
    systems = {FULL: problem.estimating(tbptt.full_bptt(loss_fn), made)}
    for k1, k2 in windows:
        systems[f"tbptt truncated_bptt({k1}, {k2})"] = problem.estimating(tbptt.truncated_bptt(loss_fn, k1, k2), made)
    systems[TEXTBOOK] = (problem.textbook_gradient, (made.params, made.carry, made.batch))
    programs = {name: clock.prepare(function, *args, compiles=compiles) for name, (function, args) in systems.items()}
    fitting = {name: p for name, p in programs.items() if p.temp_bytes <= most_bytes}
    timings = clock.race(fitting, repeats)
    rows = []
    for name, compiled in programs.items():
        row = {"case": {"T": T, "B": B, "D": D, "H": H}, "system": name}
        row |= {"temp_bytes": compiled.temp_bytes, "compile_seconds": compiled.compile_seconds}
        if name in timings:
            seconds = timings[name].seconds
            full = timings[FULL].seconds / seconds if FULL in timings else None
            row |= {"steps_per_second": T / seconds, "ratio": full, **timings[name]._asdict()}
        else:
            row["skipped"] = f"it would need {compiled.temp_bytes / 2**30:.1f} GiB, more than {most_bytes / 2**30:g}"
            row |= {"steps_per_second": None, "ratio": None}
        say(f"T={T:7} {name:32} {_said(row)}")
        rows.append(row)
    return rows


def _said(row: dict[str, Any]) -> str:
    if "skipped" in row:
        return f"skipped: {row['skipped']}"
    return f"{row['seconds']:9.4f} s {row['temp_bytes'] / 2**20:9.1f} MiB, compiled in {row['compile_seconds']:.1f} s"


def repeats_for(T: int, quick: bool) -> int:
    """Fewer at lengths where one repeat takes a minute over all systems."""
    return 3 if quick or T > 1000 else 7


def compile_targets(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Compile time: against the textbook's at the median length, and flat in T."""
    made = []
    lengths = sorted({row["case"]["T"] for row in rows})
    seconds = {(row["case"]["T"], row["system"]): row["compile_seconds"] for row in rows}
    for system in dict.fromkeys(row["system"] for row in rows if row["system"] != TEXTBOOK):
        middle, ends = lengths[len(lengths) // 2], (lengths[0], lengths[-1])
        share = seconds[middle, system] / seconds[middle, TEXTBOOK]
        if "truncated" not in system:  # a truncated gradient is a larger program than the scan that it is compared with
            made.append(program.target(f"T={middle}", "times the compile time", TEXTBOOK, 1.5, share, most=True))
        growth = seconds[ends[1], system] / seconds[ends[0], system]
        made.append(
            program.target(
                f"{system}, T={ends[1]}", "times the compile time", f"itself at T={ends[0]}", FLAT, growth, most=True
            )
        )
    return made


def measure(flags: argparse.Namespace) -> dict[str, Any]:
    """Runs all lengths, then the line."""
    rows = []
    windows = QUICK_WINDOWS if flags.quick else WINDOWS
    for T in QUICK_LENGTHS if flags.quick else LENGTHS:
        rows += measure_length(T, windows, repeats_for(T, flags.quick), compiles=1 if flags.quick else 3)
    cost = line.measure(*((10, 32, B, D, H, 3) if flags.quick else (50, 80, B, D, H, 5)))
    say(f"cost per step against k2/k1: off a straight line by {cost['largest_deviation']:.1%}")
    return {"rows": rows, "line": cost, "targets": line.targets(cost) + compile_targets(rows)}


def draw(summary: dict[str, Any], path: Path) -> None:
    """Draws seconds and bytes against T, and the line; reads the summary alone."""
    from benchmarks.support import figures

    figure, (time, memory, cost) = figures.panels(3, figures.title(summary, f"LSTM, B={B}, H={H}"))
    figures.by_system(time, summary["rows"], "T", "seconds")
    figures.by_system(memory, summary["rows"], "T", "temp_bytes", scale=2**20)
    time.set(xscale="log", yscale="log", xlabel="T (steps)", ylabel="seconds of one gradient")
    memory.set(xscale="log", yscale="log", xlabel="T (steps)", ylabel="temporary MiB")
    memory.axhline(MOST_BYTES / 2**20, color=figures.COLORS[-1], lw=1, ls=":", label="above: compiled, not run")
    memory.legend(fontsize=8)
    time.legend(fontsize=8)
    fitted, xs = summary["line"], [0, *summary["line"]["ratios"]]
    cost.plot(fitted["ratios"], [s * 1e3 for s in fitted["seconds_per_step"]], "o", color=figures.COLORS[0])
    cost.plot(xs, [(fitted["intercept"] + fitted["slope"] * x) * 1e3 for x in xs], color=figures.COLORS[1], ls="--")
    cost.set(xlabel="k2 / k1", ylabel="ms a step", title=f"off the line by at most {fitted['largest_deviation']:.0%}")
    figures.save(figure, path)


def main() -> None:
    """Runs the table."""
    program.run(__doc__, measure, draw=draw)


if __name__ == "__main__":
    main()
