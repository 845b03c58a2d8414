"""Time and memory of full BPTT under each rematerialisation plan.

    python -m benchmarks.memory_plan [--quick] [--unroll scan|numba] [--out FILE]

About 4 minutes on two idle cores; --quick: 1 minute. One gradient of one LSTM layer at T=1000,
B=32, D=32, H=128 and at T=10,000, B=8, D=8, H=128 by: the textbook scan, the default plan,
`remat=CarriesOnly()`, `remat=Segments()`, and `remat=MemoryBudget(5 % of the textbook's bytes)`.
Expected: the default plan, at the first size, 1.8 times as fast as the textbook in at most half
its bytes; the budget, at the second size, in at most 1.35 times the textbook's time. The
gradients are compared first; more than 1e-3 apart is an error.

`ratio` of a row: how many times as fast as the textbook. `predicted_bytes`: the prediction of
`tbptt.memory_plan` before compilation; `temp_bytes`: what XLA plans; `plan`: the plan that is
used. The last line of stdout is JSON.
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


def plans_of(
    made: problem.Problem, textbook_bytes: int, unroll: tbptt.UnrollFn
) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """Return functions with arguments, predictions, and notes on budgets that no plan fits."""
    plans = {
        DEFAULT: None,
        "tbptt CarriesOnly()": tbptt.CarriesOnly(),
        "tbptt Segments()": tbptt.Segments(),
        BUDGET: tbptt.MemoryBudget(int(SHARE * textbook_bytes)),
    }
    systems, predictions, notes = {}, {}, []
    for name, remat in plans.items():
        try:
            predictions[name] = tbptt.memory_plan(
                made.cell, made.readout, made.params, made.batch, remat=remat
            )
        except ValueError as error:  # at tiny sizes the weight gradient alone exceeds the budget
            notes.append(f"{name} is left out: {error}")
            continue
        loss_fn = problem.our_loss(made, remat=remat, unroll=unroll)
        systems[name] = problem.estimating(tbptt.full_bptt(loss_fn), made)
    return systems, predictions, notes


def measure_size(
    T: int, B: int, D: int, H: int, repeats: int, unroll: tbptt.UnrollFn = tbptt.unroll
) -> tuple[list[dict[str, Any]], list[str]]:
    """Make the rows of one size, and notes.

    Raises:
      ValueError: the gradient of a plan differs from the textbook's.
    """
    made = problem.make(T, B, D, H)
    arguments = made.params, made.carry, made.batch
    programs = {TEXTBOOK: clock.compile_program(problem.textbook_gradient, *arguments)}
    systems, predictions, notes = plans_of(made, programs[TEXTBOOK].temp_bytes, unroll)
    programs |= {name: clock.compile_program(f, *args) for name, (f, args) in systems.items()}
    reference = programs[TEXTBOOK].run(*programs[TEXTBOOK].args)[1]
    for name, compiled in programs.items():
        difference = problem.relative_difference(compiled.run(*compiled.args)[1], reference)
        if not difference <= TOLERANCE:
            raise ValueError(
                f"{name}: the gradient differs by {difference:.1e}, more than {TOLERANCE:g}: "
                "nothing is timed"
            )
    timings = clock.time_interleaved(programs, repeats)
    rows = []
    for name, timing in timings.items():
        row = {"case": {"T": T, "B": B, "D": D, "H": H}, "system": name, **timing._asdict()}
        row["steps_per_second"] = T / timing.seconds
        row["ratio"] = timings[TEXTBOOK].seconds / timing.seconds
        plan = predictions.get(name)
        row["predicted_bytes"] = plan and plan.predicted_bytes
        row["plan"] = str(plan.remat) if plan else None
        share = timing.temp_bytes / timings[TEXTBOOK].temp_bytes
        text = f"{timing.seconds:8.3f} s {timing.temp_bytes / 2**20:8.1f} MiB"
        chosen = f"; chose {plan.remat}" if plan and name == BUDGET else ""
        say(f"T={T:6} {name:20} {text}, {share:.1%} of the textbook's{chosen}")
        rows.append(row)
    for note in notes:
        say(note)
    return rows, notes


def targets(short: list[dict[str, Any]], long: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the targets of time and memory."""
    made, here, sizes = [], {row["system"]: row for row in short}, short[0]["case"]
    case = "full BPTT, " + ", ".join(f"{key}={value}" for key, value in sizes.items())
    share = here[DEFAULT]["temp_bytes"] / here[TEXTBOOK]["temp_bytes"]
    made.append(program.target(case, "times as fast", TEXTBOOK, 1.8, here[DEFAULT]["ratio"]))
    what = "times the temporary bytes"
    made.append(program.target(case, what, TEXTBOOK, 0.5, share, most=True))
    here, sizes = {row["system"]: row for row in long}, long[0]["case"]
    case = "full BPTT by a budget, " + ", ".join(f"{key}={value}" for key, value in sizes.items())
    time = share = None
    if BUDGET in here:
        time = 1 / here[BUDGET]["ratio"]
        share = here[BUDGET]["temp_bytes"] / here[TEXTBOOK]["temp_bytes"]
    made.append(program.target(case, "times the seconds", TEXTBOOK, 1.35, time, most=True))
    made.append(program.target(case, what, TEXTBOOK, SHARE, share, most=True))
    return made


def measure(flags: argparse.Namespace) -> dict[str, Any]:
    """Measure both sizes."""
    repeats, unroll = 3 if flags.quick else 7, program.unroll_of(flags.unroll)
    sizes = QUICK if flags.quick else (SHORT, LONG)
    (short, notes), (long, more) = (measure_size(*size, repeats, unroll) for size in sizes)
    return {"rows": short + long, "targets": targets(short, long), "notes": notes + more}


def main() -> None:
    """Run the benchmark."""
    program.run(__doc__, measure, add_flags=program.add_unroll_flag)


if __name__ == "__main__":
    main()
