"""The lecture, claim by claim: runs every experiment of the gradient laboratory and writes one HTML page.

    python -m experiments.lecture            about 4 minutes on two cores
    python -m experiments.lecture --quick    at most 90 CPU seconds

Expected: all twelve claims hold. The page (lecture.html, by its absolute path in the summary) is self-contained: figures
inlined, nothing fetched. If a claim does not hold, stderr and the summary name it and the exit status is 1; the page and the
summary are written all the same.
"""

import dataclasses
import json
import sys
import time
from pathlib import Path
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
from experiments.support import page, program, run_folder
from experiments.support.console import console
from tbptt.data import DataUnavailable

# (experiment, heading, what the lecture says, in our words), in the order of the page
CHAPTERS = (
    (
        powers_of_w,
        "Powers of W (claims 2 and 3)",
        "Without a nonlinearity a state is multiplied by W at every step, so it grows or fades like the n-th power of an "
        "eigenvalue; the gradient does the same, backwards in time. Above 1 it explodes, below 1 it vanishes.",
    ),
    (
        lyapunov,
        "Lyapunov exponents (claim 3, for any network)",
        "For a nonlinear network the eigenvalue becomes a Lyapunov exponent: the mean growth rate of a small change along its own "
        "trajectory. It predicts how far back a gradient reaches before any training is done.",
    ),
    (
        finite_precision,
        "Finite precision (claim 4)",
        "An explosion ends in inf or NaN. A vanishing gradient stops training long before it is zero: once the update is below half "
        "the spacing of the numbers around a parameter, nothing changes at all.",
    ),
    (
        repeated_tanh,
        "Repeated tanh (claim 5)",
        "tanh has slope 1 at 0 and less everywhere else. Applied again and again it gets ever flatter; this alone can only vanish.",
    ),
    (
        clipping_cliff,
        "Clipping (claim 6)",
        "If the norm of a gradient g exceeds G_max, use G_max g / |g|: the same direction, a smaller step. That no clipped step "
        "leaps is true by construction; whether descents end better is measured, and mostly they do, though not from every start. "
        "Which G_max is an engineering choice, and a sweep shows how much room there is.",
    ),
    (
        gates,
        "Gates (claim 7)",
        "Vanishing has no such simple fix; the lecture's is another architecture. Measured: it is the forget bias that decides "
        "how far a gated network reaches, and an orthogonal W helps a simple network too.",
    ),
    (
        truncation,
        "Full and truncated BPTT (claims 1, 8, 9, 11 and 12)",
        "BPTT is a sum over time. Over a long recording it is heavy and gives few updates; cut into windows it updates on the way. "
        "Which window? It depends: try it. And k1 need not be k2.",
    ),
    (
        lag_profile,
        "A compound solution (claim 10)",
        "A short window neither explodes nor vanishes, and it is biased. How much follows from how the gradient falls with the lag.",
    ),
)


@dataclasses.dataclass(frozen=True)
class Config(program.Common):
    """Runs all chapters into one folder."""


def combine(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Gathers the chapters' rows by claim 1 .. 12; a claim holds if every row of it does; one without rows does not."""
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
    """Runs every chapter, writes the page and returns the summary."""
    folder = run_folder.open_folder(config.out, "lecture", config)
    start, cpu, rows, sections = time.perf_counter(), time.process_time(), [], []
    for index, (module, heading, text) in enumerate(CHAPTERS):
        name = module.__name__.rsplit(".", 1)[-1]
        console.print(f"[{index + 1}/{len(CHAPTERS)}] {name} ...")
        settings = module.Config(seed=config.seed, quick=config.quick, out=folder / name)
        # Quick programs run for less time than XLA takes to optimize them.
        with program.optimizations(most=not config.quick):
            summary = program.execute(module, settings)
        program.tell(summary)
        rows += summary["claims"]
        figures = [folder / name / figure for figure in summary["figures"]]
        command = f"python -m experiments.{name}" + (" --quick" if config.quick else "")
        sections.append(
            {"heading": heading, "text": text, "rows": summary["claims"], "figures": figures, "command": command}
        )
    claims, where = combine(rows), run_folder.environment()
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu
    quick = "Quick form: smaller and shorter than the full one. " if config.quick else ""
    footer = (
        f"{quick}Measured {where['date']} on {where['cpus']} CPU cores ({where['machine']}), Python {where['python']}, "
        f"jax {where['jax']}, in {seconds:.0f} s. "
        f"{sum(c['holds'] for c in claims)} of 12 claims hold."
    )
    intro = "Vanishing and exploding gradients and truncated back-propagation through time, measured. Every number was computed by this run."
    page.write(folder / "lecture.html", "Gradients through time: twelve claims, measured", intro, sections, footer)
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
    console.print(f"{sum(c['holds'] for c in claims)} of 12 claims hold; page: {folder / 'lecture.html'}")
    return summary


if __name__ == "__main__":
    try:
        result = main(tyro.cli(Config, description=__doc__))
    except (DataUnavailable, FileExistsError, FloatingPointError, ValueError) as error:
        sys.exit(f"lecture: {error}")
    program.finish(result)
