"""Full BPTT in less memory: what does each plan keep, and what does it cost?

    python -m benchmarks.memory_plan [--quick] [--out FILE]      about 4 minutes on two idle cores; --quick: 1 minute

One gradient of one LSTM layer at T=1000, B=32, D=32, H=128 and at T=10,000, B=8, D=8, H=128 by: the textbook scan, `unroll`
as it comes, `remat=Segments()`, and `remat=MemoryBudget(5 % of the textbook's bytes)`. Expected, from issue 4: as it comes,
at the first size, 1.8 times as fast as the textbook in at most half its bytes; the budget, at the second, in at most 1.35
times the textbook's time. Gradients are compared first; more than 1e-3 apart is an error.

`ratio` of a row: how many times as fast as the textbook. `predicted_bytes`: what the plan itself said, null where it says
nothing; `temp_bytes`: what XLA plans. The last line of stdout is the summary as JSON.
"""

import argparse
from typing import Any

import tbptt
from benchmarks import clock
from benchmarks.support import problem, program
from benchmarks.support.program import say

SHORT, LONG = (1000, 32, 32, 128), (10_000, 8, 8, 128)  # T, B, D, H
QUICK = ((200, 32, 32, 128), (1000, 8, 8, 128))
TEXTBOOK, DEFAULT, SEGMENTS, BUDGET = "textbook scan", "tbptt unroll", "tbptt Segments()", "tbptt MemoryBudget"
SHARE = 0.05  # of the textbook's bytes
TOLERANCE = 1e-3


def systems_of(made: problem.Problem, textbook_bytes: int) -> tuple[dict[str, Any], dict[str, int | None]]:
    """Makes our plans, each a function with its arguments, and the bytes that a plan promises by itself."""
    plans: dict[str, Any] = {DEFAULT: None, SEGMENTS: tbptt.Segments()}
    # Looked up, not imported: an engine without the plan still runs the rest.
    budget = getattr(tbptt, "MemoryBudget", None)
    if budget is not None:
        plans[BUDGET] = budget(int(SHARE * textbook_bytes))
    systems = {}
    for name, remat in plans.items():
        loss_fn = problem.our_loss(made) if remat is None else problem.our_loss(made, remat=remat)
        systems[name] = problem.estimating(tbptt.full_bptt(loss_fn), made)
    return systems, {name: promised(remat) for name, remat in plans.items()}


def promised(remat: Any) -> int | None:
    """The bytes that a plan says it will need; None where it does not say."""
    return getattr(remat, "predicted_bytes", None)


def measure_size(T: int, B: int, D: int, H: int, repeats: int) -> list[dict[str, Any]]:
    """Makes the rows of one size; a ValueError if a plan's gradient is not the textbook's."""
    made = problem.make(T, B, D, H)
    programs = {TEXTBOOK: clock.prepare(problem.textbook_gradient, made.params, made.carry, made.batch)}
    systems, predicted = systems_of(made, programs[TEXTBOOK].temp_bytes)
    programs |= {name: clock.prepare(function, *args) for name, (function, args) in systems.items()}
    reference = programs[TEXTBOOK].run(*programs[TEXTBOOK].args)[1]
    for name, compiled in programs.items():
        difference = problem.relative_difference(compiled.run(*compiled.args)[1], reference)
        if not difference <= TOLERANCE:
            raise ValueError(f"{name}: the gradient differs by {difference:.1e}, more than {TOLERANCE:g}: nothing is timed")
    timings = clock.race(programs, repeats)
    rows = []
    for name, timing in timings.items():
        row = {"case": {"T": T, "B": B, "D": D, "H": H}, "system": name, **timing._asdict()}
        row |= {"steps_per_second": T / timing.seconds, "ratio": timings[TEXTBOOK].seconds / timing.seconds}
        row["predicted_bytes"] = predicted.get(name)
        share = timing.temp_bytes / timings[TEXTBOOK].temp_bytes
        say(
            f"T={T:6} {name:20} {timing.seconds:8.3f} s {timing.temp_bytes / 2**20:8.1f} MiB, {share:.1%} of the textbook's"
        )
        rows.append(row)
    return rows


def targets(short: list[dict[str, Any]], long: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of issue 4's table that are about memory."""
    made, here = [], {row["system"]: row for row in short}
    case = "full BPTT, " + ", ".join(f"{key}={value}" for key, value in short[0]["case"].items())
    share = here[DEFAULT]["temp_bytes"] / here[TEXTBOOK]["temp_bytes"]
    made.append(program.target(case, "times as fast", TEXTBOOK, 1.8, here[DEFAULT]["ratio"]))
    made.append(program.target(case, "times the temporary bytes", TEXTBOOK, 0.5, share, most=True))
    here = {row["system"]: row for row in long}
    case = "full BPTT by a budget, " + ", ".join(f"{key}={value}" for key, value in long[0]["case"].items())
    time = share = None
    if BUDGET in here:
        time = 1 / here[BUDGET]["ratio"]
        share = here[BUDGET]["temp_bytes"] / here[TEXTBOOK]["temp_bytes"]
    made.append(program.target(case, "times the seconds", TEXTBOOK, 1.35, time, most=True))
    made.append(program.target(case, "times the temporary bytes", TEXTBOOK, SHARE, share, most=True))
    return made


def measure(flags: argparse.Namespace) -> dict[str, Any]:
    """Runs both sizes."""
    short, long = (measure_size(*size, 3 if flags.quick else 7) for size in (QUICK if flags.quick else (SHORT, LONG)))
    notes = [] if hasattr(tbptt, "MemoryBudget") else ["this tbptt has no MemoryBudget: its rows are left out"]
    for note in notes:
        say(note)
    return {"rows": short + long, "targets": targets(short, long), "notes": notes}


def main() -> None:
    """Runs the table."""
    program.run(__doc__, measure)


if __name__ == "__main__":
    main()
