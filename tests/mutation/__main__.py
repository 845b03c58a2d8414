"""Measure how many small changes of the mathematics the tests notice.

    python -m tests.mutation                     draw 120 mutants of the tree as it is, try both
    tiers, print the survivors python -m tests.mutation --sample FILE       try the mutants of a
    recorded sample python -m tests.mutation --out FILE          write sample and outcomes as JSON

Every mutant runs against the test files that reach its line, recorded once by coverage contexts
(`--reach`); see `run.py`.
"""

import argparse
import dataclasses
import itertools
import json
import pathlib
import queue
import sys
import threading

from tests.mutation import reach, run
from tests.mutation.sites import Mutant, draw

ROOT = pathlib.Path(__file__).parents[2]
# The essential tier first; what it leaves is tried with the rest.
STAGES = (("-m", "not exhaustive"), ("-m", "exhaustive"))


def main() -> None:
    """Parse the flags, run the sample, print and write the outcomes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--number", type=int, default=120, help="mutants to draw")
    parser.add_argument("--seed", type=int, default=0, help="of the drawing")
    parser.add_argument(
        "--sample", type=pathlib.Path, help="a file written by --out: the same mutants again"
    )
    parser.add_argument(
        "--root", type=pathlib.Path, default=ROOT, help="the tree whose tests are tried"
    )
    parser.add_argument(
        "--reach",
        type=pathlib.Path,
        help="a file written by tests.mutation.reach; default: record it now",
    )
    parser.add_argument(
        "--stage",
        action="append",
        help="pytest arguments of a stage, as one word; default: the two tiers",
    )
    parser.add_argument(
        "--workers", type=int, default=2, help="mutants tried at once, a process each"
    )
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        help="where to write the record; an interrupted one is completed",
    )
    flags = parser.parse_args()
    if flags.sample:
        sample = [
            Mutant(**row["mutant"]) for row in json.loads(flags.sample.read_text())["mutants"]
        ]
    else:
        sample = draw(flags.root, flags.number, flags.seed)
    run.healthy(flags.root)
    recorded = reach.load(flags.reach) if flags.reach else reach.record(flags.root)
    stages = [stage.split() for stage in flags.stage] if flags.stage else STAGES
    known = outcomes_of(flags.out) if flags.out and flags.out.exists() else {}
    write_lock = threading.Lock()

    def save(outcomes) -> None:
        if flags.out:
            with write_lock:
                rows = [
                    {"mutant": dataclasses.asdict(m), **dataclasses.asdict(o)}
                    for m, o in zip(sample, outcomes, strict=True)
                    if o
                ]
                head = {
                    "seed": flags.seed,
                    "stages": [list(s) for s in stages],
                    **summary(outcomes, stages),
                }
                flags.out.write_text(json.dumps({**head, "mutants": rows}, indent=1) + "\n")

    outcomes = try_all(sample, flags.root, recorded, stages, flags.workers, known, save)
    for m, outcome in zip(sample, outcomes, strict=True):
        if outcome.killed_by is None:
            print(f"survivor: {m.file}:{m.line}: {m.old!r} -> {m.new!r} ({outcome.note})")
    print(json.dumps(summary(outcomes, stages)))


def outcomes_of(file: pathlib.Path) -> dict[Mutant, run.Outcome]:
    """Read what an interrupted run had written."""
    names = [field.name for field in dataclasses.fields(run.Outcome)]
    rows = json.loads(file.read_text())["mutants"]
    return {
        Mutant(**row["mutant"]): run.Outcome(**{name: row[name] for name in names}) for row in rows
    }


def summary(outcomes, stages) -> dict[str, object]:
    """Count the killed mutants, in all and by stage."""
    outcomes = [o for o in outcomes if o is not None]
    killed = [o.stage for o in outcomes if o.stage is not None]
    return {
        "number": len(outcomes),
        "killed": len(killed),
        "killed_by_stage": [killed.count(i) for i in range(len(stages))],
        "seconds": round(sum(o.seconds for o in outcomes), 1),
    }


def try_all(sample, root, recorded, stages, workers, known, save) -> list[run.Outcome]:
    """Try the mutants without an outcome on copies of the tree, one a worker; save after each."""
    outcomes: list[run.Outcome | None] = [known.get(mutant) for mutant in sample]
    waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
    for index, outcome in enumerate(outcomes):
        if outcome is None:
            waiting.put(index)
    counted = itertools.count(len(sample) - waiting.qsize() + 1)

    def work() -> None:
        tree = run.Tree(root, sys.executable)
        try:
            while True:
                try:
                    index = waiting.get_nowait()
                except queue.Empty:
                    return
                mutant = sample[index]
                files = run.closest_first(mutant, recorded.lines, recorded.seconds)
                outcome = outcomes[index] = tree.attempt(mutant, files, stages)
                save(outcomes)
                said = (
                    f"killed by {outcome.note}"
                    if outcome.killed_by
                    else f"SURVIVED: {outcome.note}"
                )
                where = f"{mutant.file}:{mutant.line}"
                print(
                    f"[{next(counted)}/{len(sample)}] {where} {said} ({outcome.seconds} s)",
                    file=sys.stderr,
                    flush=True,
                )
        finally:
            tree.close()

    threads = [threading.Thread(target=work) for _ in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    missing = [i for i, o in enumerate(outcomes) if o is None]
    if missing:
        sys.exit(f"mutants: a worker stopped; not tried: {missing}")
    return outcomes  # type: ignore[return-value]


if __name__ == "__main__":
    main()
