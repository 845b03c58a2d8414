"""Generate calls of the public functions and compare them with a reference in numpy.

    make fuzz      10,000 calls; writes tests/fuzz/results.json

Every call must return what the reference returns, or raise an error of the library that names an
argument. A call has a program (`programs.py`: function, shapes, dtypes, windows) and values, with
NaN and inf where they must have no effect. Of the library the reference uses the type Batch only.
"""

import argparse
import collections
import json
import pathlib
import re
import sys
import time

import jax
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from tests.fuzz.calls import outcome
from tests.fuzz.programs import program_of


def main() -> None:
    """Run the campaign and write its counts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--programs", type=int, default=600, help="programs to draw from")
    parser.add_argument("--seed", type=int, default=0, help="of hypothesis")
    parser.add_argument("--out", type=pathlib.Path, help="where to write the counts")
    flags = parser.parse_args()
    counts: collections.Counter[str] = collections.Counter()
    by_function: collections.Counter[str] = collections.Counter()
    failures: dict[str, str] = {}
    started = time.perf_counter()

    @seed(flags.seed)
    @settings(
        max_examples=flags.calls,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.integers(0, flags.programs - 1), st.integers(0, 2**32 - 1))
    def campaign(number, values):
        program = program_of(number)
        try:
            found = outcome(program, values)
        except AssertionError as error:
            found = "failed"
            said = re.sub(r"[-0-9.e\[\] ]+", " ", str(error).splitlines()[0])[:120]
            if said not in failures:
                print(error, file=sys.stderr, flush=True)
            failures.setdefault(said, str(error)[:1500])
        counts[found] += 1
        by_function[f"{program.function}: {found}"] += 1

    campaign()
    record = {
        "calls": sum(counts.values()),
        "counts": dict(counts),
        "by_function": dict(sorted(by_function.items())),
        "failures": list(failures.values()),
        "programs": flags.programs,
        "seed": flags.seed,
        "seconds": round(time.perf_counter() - started, 1),
        "jax": jax.__version__,
    }
    if flags.out:
        flags.out.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))
    raise SystemExit(1 if failures else 0)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main()
