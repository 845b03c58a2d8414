"""Full BPTT in less memory: what does each plan keep, and what does it cost?

    python -m benchmarks.memory_plan [--quick] [--out FILE]      about 4 minutes on two idle cores; --quick: 1 minute

One gradient of one LSTM layer at T=1000, B=32, D=32, H=128 and at T=10,000, B=8, D=8, H=128 by: the textbook scan, `unroll`
as it comes, `remat=CarriesOnly()`, `remat=Segments()`, and `remat=MemoryBudget(5 % of the textbook's bytes)`. Expected,
from issue 4: as it comes, at the first size, 1.8 times as fast as the textbook in at most half its bytes; the budget, at
the second, in at most 1.35 times the textbook's time. Gradients are compared first; more than 1e-3 apart is an error.

`ratio` of a row: how many times as fast as the textbook. `predicted_bytes`: what `tbptt.memory_plan` says before anything
is compiled; `temp_bytes`: what XLA plans; `plan`: what the budget chose. The last line of stdout is the summary as JSON.
"""

import argparse
from typing import Any

import tbptt
from benchmarks import clock
from benchmarks.support import problem, program
from benchmarks.support.program import say

SHORT, LONG = (1000, 32, 32, 128), (10_000, 8, 8, 128)  # T, B, D, H
QUICK = ((200, 32, 32, 128), (1000, 8, 8, 128))
TEXTBOOK, DEFAULT, BUDGET = "textbook scan", "tbptt unroll", "tbptt MemoryBudget"
SHARE = 0.05  # of the textbook's bytes
TOLERANCE = 1e-3


def plans_of(made: problem.Problem, textbook_bytes: int) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Makes our plans: each a function with its arguments, what it promises, and notes on budgets that nothing fits."""
    asked = {
        DEFAULT: None,
        "tbptt CarriesOnly()": tbptt.CarriesOnly(),
        "tbptt Segments()": tbptt.Segments(),
        BUDGET: tbptt.MemoryBudget(int(SHARE * textbook_bytes)),
    }
    systems, promised, notes = {}, {}, []
    for name, remat in asked.items():
        try:
            promised[name] = tbptt.memory_plan(made.cell, made.readout, made.params, made.batch, remat=remat)
        except ValueError as error:  # at tiny sizes the weights' gradient alone is more than the budget
            notes.append(f"{name} is left out: {error}")
            continue
        systems[name] = problem.estimating(tbptt.full_bptt(problem.our_loss(made, remat=remat)), made)
    return systems, promised, notes


def measure_size(T: int, B: int, D: int, H: int, repeats: int) -> tuple[list[dict[str, Any]], list[str]]:
    """Makes the rows of one size, and notes; a ValueError if a plan's gradient is not the textbook's."""
    made = problem.make(T, B, D, H)
    programs = {TEXTBOOK: clock.prepare(problem.textbook_gradient, made.params, made.carry, made.batch)}
    systems, promised, notes = plans_of(made, programs[TEXTBOOK].temp_bytes)
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
        plan = promised.get(name)
        row |= {"predicted_bytes": plan and plan.predicted_bytes, "plan": str(plan.remat) if plan else None}
        share = timing.temp_bytes / timings[TEXTBOOK].temp_bytes
        said = f"{timing.seconds:8.3f} s {timing.temp_bytes / 2**20:8.1f} MiB, {share:.1%} of the textbook's"
        say(f"T={T:6} {name:20} {said}{f'; chose {plan.remat}' if plan and name == BUDGET else ''}")
        rows.append(row)
    for note in notes:
        say(note)
    return rows, notes


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
    repeats = 3 if flags.quick else 7
    (short, notes), (long, more) = (measure_size(*size, repeats) for size in (QUICK if flags.quick else (SHORT, LONG)))
    return {"rows": short + long, "targets": targets(short, long), "notes": notes + more}


def main() -> None:
    """Runs the table."""
    program.run(__doc__, measure)


if __name__ == "__main__":
    main()
