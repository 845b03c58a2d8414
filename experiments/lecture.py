"""Run the experiments on the twelve claims of the lecture and write one HTML page.

    python -m experiments.lecture            about 4 minutes on two cores
    python -m experiments.lecture --quick    at most 90 CPU seconds

Expected: all twelve claims hold. The page, lecture.html, contains its figures; the summary has its
absolute path. If a claim does not hold, stderr and the summary name it, and the exit status is 1.
The page and the summary are written in either case.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import tyro

from experiments import (
    clipping_cliff,
    finite_precision,
    gates,
    lag_profile,
    lyapunov,
    powers_of_w,
    repeated_tanh,
    truncation,
)
from experiments.support.common import page, program, run_folder
from experiments.support.common.console import console
from tbptt.data import DataUnavailable

# (experiment, heading, statement of the lecture), in the order of the page
CHAPTERS = (
    (
        powers_of_w,
        "Powers of W (claims 2 and 3)",
        "Without a nonlinearity every step multiplies the state by W, so the state grows or decays "
        "like the n-th power of an "
        "eigenvalue λ. The gradient does the same, backwards in time. It explodes for λ above 1 "
        "and vanishes for λ below 1.",
    ),
    (
        lyapunov,
        "Lyapunov exponents (claim 3, for any network)",
        "For a nonlinear network the Lyapunov exponent takes the place of log λ. It is the mean "
        "growth rate of a small change "
        "of the state along the network's own trajectory. It predicts, before any training, how "
        "far back a gradient reaches.",
    ),
    (
        finite_precision,
        "Finite precision (claim 4)",
        "An exploding gradient ends as inf or NaN. A vanishing gradient stops training long before "
        "it is zero: an update that "
        "is smaller than half the spacing of the numbers around a parameter does not change the "
        "parameter.",
    ),
    (
        repeated_tanh,
        "Repeated tanh (claim 5)",
        "The slope of tanh is 1 at 0 and smaller everywhere else. The more often tanh is applied, "
        "the flatter the map becomes. "
        "This alone can only make gradients vanish.",
    ),
    (
        clipping_cliff,
        "Clipping (claim 6)",
        "If the norm of a gradient g exceeds max_norm, it is replaced by max_norm g / ‖g‖, which has "
        "the same direction and norm max_norm. A clipped step is short by construction. Whether descents end at a lower error is "
        "measured: most do, but not "
        "from every start. max_norm is an engineering choice; the sweep shows how much it matters.",
    ),
    (
        gates,
        "Gates (claim 7)",
        "Vanishing gradients have no such simple remedy. The lecture proposes other architectures, "
        "GRU and LSTM. The "
        "measurements show that the forget bias decides how far back a gated network learns, and "
        "that an orthogonal W helps a "
        "simple network too.",
    ),
    (
        truncation,
        "Full and truncated BPTT (claims 1, 8, 9, 11 and 12)",
        "The gradient by BPTT is a sum over time. Over a long sequence it needs much memory and "
        "gives few updates. Truncated "
        "BPTT updates after every window. The best window length depends on the task and is found "
        "by trying. k1 and k2 may "
        "differ.",
    ),
    (
        lag_profile,
        "Truncation against all three problems (claim 10)",
        "The gradient of a short window neither explodes nor vanishes, and it is biased. The bias "
        "follows from how the gradient "
        "falls with the lag.",
    ),
)


@dataclasses.dataclass(frozen=True)
class Config(program.Common):
    """Run all chapters into one folder and write one page."""


def combine(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Combine the chapters' rows by claim 1 .. 12: a claim holds if it has rows and all of them hold."""
    combined = []
    for number in range(1, 13):
        mine = [row for row in rows if row["claim"] == number]
        combined.append(
            {
                "claim": number,
                "measured": "; ".join(f"{row['text']}: {row['measured']}" for row in mine),
                "expected": "; ".join(row["expected"] for row in mine),
                "holds": bool(mine) and all(row["holds"] for row in mine),
            }
        )
    return combined


def main(config: Config) -> dict[str, Any]:
    """Run every chapter, write the page and return the summary."""
    folder = run_folder.open_folder(config.out, "lecture", config)
    start, cpu, rows, sections = time.perf_counter(), time.process_time(), [], []
    for index, (module, heading, text) in enumerate(CHAPTERS):
        name = module.__name__.rsplit(".", 1)[-1]
        console.print(f"[{index + 1}/{len(CHAPTERS)}] {name} ...")
        settings = module.Config(seed=config.seed, quick=config.quick, out=folder / name)
        # Quick programs run for less time than XLA needs to optimize them.
        with program.optimizations(most=not config.quick):
            summary = program.execute(module, settings)
        program.show(summary)
        rows += summary["claims"]
        figures = [folder / name / figure for figure in summary["figures"]]
        command = f"python -m experiments.{name}" + (" --quick" if config.quick else "")
        sections.append(
            {
                "heading": heading,
                "text": text,
                "rows": summary["claims"],
                "figures": figures,
                "command": command,
            }
        )
    claims, where = combine(rows), run_folder.environment()
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    held = sum(claim["holds"] for claim in claims)
    quick = (
        "This is the quick form: it runs smaller and shorter experiments, and compiles most "
        "programs with few optimizations. "
        if config.quick
        else ""
    )
    footer = (
        f"{quick}Measured on {where['date']} on {where['cpus']} CPU cores ({where['machine']}) "
        f"with Python {where['python']} and "
        f"jax {where['jax']} in {seconds:.0f} s."
    )
    failed = [str(claim["claim"]) for claim in claims if not claim["holds"]]
    intro = (
        "This page measures twelve claims of a lecture on vanishing and exploding gradients and "
        "truncated back-propagation "
        f"through time (BPTT). The run that wrote the page computed every number on it. {held} of "
        f"12 claims hold" + (f"; these do not: {', '.join(failed)}." if failed else ".")
    )
    page.write(
        folder / "lecture.html",
        "Gradients through time: twelve claims, measured",
        intro,
        sections,
        footer,
    )
    summary = {
        "experiment": "lecture",
        "quick": config.quick,
        "claims": claims,
        "page": str((folder / "lecture.html").resolve()),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "environment": where,
        "folder": str(folder),
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    console.print(f"{held} of 12 claims hold; page: {folder / 'lecture.html'}")
    return summary


def run(argv: Sequence[str] | None = None) -> None:
    """Run the program; the exit status is 1 if a claim does not hold."""
    try:
        result = main(tyro.cli(Config, args=argv, description=__doc__))
    except (DataUnavailable, FileExistsError, FloatingPointError, ValueError) as error:
        sys.exit(f"lecture: {error}")
    program.finish(result)


if __name__ == "__main__":
    run()
