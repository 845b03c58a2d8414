"""The same training work in every peer: how many times faster is ours?

    python -m benchmarks.peers [--quick] [--out FILE]      the first two cases take 8 minutes on two cores with
                                                           --repeats 4 --compiles 1
    python -m benchmarks.peers --cases characters --systems tbptt PyTorch

One LSTM layer and a linear readout, clip 1.0 and Adam after every chunk of k steps, carry handed on, float32; N chunks are
an epoch. Every system starts from the same weights and data and lives in a process of its own; the processes take turns,
one epoch each (warmed up if it is short), and only one works at a time. A system whose first losses differ from the
textbook's is refused, not timed. JAX peers are measured in two forms: `per chunk`, the jitted step called as documented,
and `one program`, the step scanned over the chunks. Each library's documented form: `benchmarks/systems/`, one file each.

`ratio` of a row: how many times faster ours (`tbptt`, one program) is, medians of interleaved epochs. Expected: `targets`.
Peers are in an extra: pip install tbptt[peers] (PyTorch's CPU build as its site says). The last line of stdout is JSON.
"""

import argparse
import signal
from typing import Any

from benchmarks.clock import take_turns
from benchmarks.support import peer_rows, program
from benchmarks.support.program import say
from benchmarks.support.worker import Worker, WorkerError
from benchmarks.systems.registry import SYSTEMS, TEXTBOOK
from benchmarks.systems.work import Case

CASES = (
    Case("B=1 H=64", 400, 20, 1, 2, 64),
    Case("B=1 H=128", 200, 50, 1, 2, 128),
    Case("B=32 H=128", 100, 50, 32, 32, 128),
    Case("B=20 H=256", 40, 35, 20, 200, 256),
    Case("characters", 40, 64, 32, 82, 256, symbols=True),
    Case("full BPTT T=2000", 1, 2000, 8, 8, 128),
    Case(peer_rows.FULL_GRADIENT, 1, 1000, 32, 32, 128),
    Case("B=64 H=512", 10, 100, 64, 512, 512),
)
QUICK_CASES = (CASES[0]._replace(N=200),)
SETTLE = 0.02  # seconds between turns: OpenMP's threads spin a little before they sleep
# Before an epoch shorter than this, untimed ones fill WARM seconds: the process has slept, and the caches hold the data of
# the process before. And where all are as short, each is timed MORE times as often.
SHORT_EPOCH, WARM, MORE = 1.0, 0.5, 3


def measure_case(case: Case, workers: dict[str, Worker], repeats: int, compiles: int) -> list[dict[str, Any]]:
    """Prepares a case in every worker, one after another, then lets all that agree take turns."""
    prepared: dict[tuple[str, str], dict[str, Any]] = {}
    failed = []
    for name, worker in workers.items():
        try:
            for form, seen in worker.prepare(case._asdict(), compiles).items():
                prepared[name, form] = seen
                say(f"  {name}, {form}: {seen['seconds']:.3f} s an epoch, first loss {seen['losses'][0]:.6f}")
        except WorkerError as error:
            failed.append({"case": case._asdict(), "system": name, "failed": str(error)})
            say(f"  {error}")
    reference = next(seen["losses"] for (name, _), seen in prepared.items() if name == TEXTBOOK)
    warm_seconds = {}
    for key, seen in prepared.items():
        warm_seconds[key] = seen.pop("seconds")
        seen["loss_difference"] = peer_rows.difference(seen.pop("losses"), reference)
    agreeing = [key for key, seen in prepared.items() if seen["loss_difference"] <= peer_rows.TOLERANCE]
    names = {f"{name}, {form}": (name, form) for name, form in agreeing}
    runs = {
        label: lambda key=key: workers[key[0]].epoch(key[1], warm=WARM if warm_seconds[key] < SHORT_EPOCH else 0)
        for label, key in names.items()
    }
    repeats *= MORE if max(warm_seconds.values()) < SHORT_EPOCH else 1
    seconds = take_turns(runs, repeats, settle=SETTLE)
    rows = peer_rows.make_rows(case, prepared, {names[label]: times for label, times in seconds.items()})
    for row in rows:
        what = row.get("refused") or f"{row['seconds']:8.3f} s an epoch; ours is {row['ratio'] or 0:.2f} times as fast"
        say(f"  {row['system']:24} {row['form']:24} {what}")
    return rows + failed


def measure(flags: argparse.Namespace) -> dict[str, Any]:
    """Starts the workers, measures the cases, compares with the targets."""
    cases = [case for case in CASES if case.name in flags.cases] if flags.cases else QUICK_CASES if flags.quick else CASES
    repeats = flags.repeats or (3 if flags.quick else 7)
    say("starting a process for every system")
    # The textbook is always there: it is the reference of the losses.
    chosen = [name for name in SYSTEMS if not flags.systems or name in (*flags.systems, TEXTBOOK)]
    workers = {name: Worker(name) for name in chosen}
    rows: list[dict[str, Any]] = []
    case, stopped_at = None, None
    try:
        for name in chosen:
            if not workers[name].ready():
                rows.append(peer_rows.missing_row(name, workers[name].missing or {}))
                workers.pop(name).close()
                say(f"  {name} is missing: {rows[-1]['remedy']}")
        for case in cases:
            say(f"{case.name}: N={case.N} k={case.k} B={case.B} D={case.D} H={case.H}")
            rows += measure_case(case, workers, repeats, compiles=flags.compiles or (1 if flags.quick else 3))
    except KeyboardInterrupt:  # SIGTERM too, see main: what took a quarter of an hour is not thrown away
        stopped_at = case and case.name
        say(f"stopped while measuring {stopped_at}: the cases before it are the result")
    finally:
        for worker in workers.values():
            worker.close()
    return {"rows": rows, "targets": peer_rows.targets(rows), "stopped_at": stopped_at}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags that choose a part of the table."""
    parser.add_argument("--cases", nargs="+", choices=[case.name for case in CASES], help="default: all")
    parser.add_argument("--systems", nargs="+", choices=list(SYSTEMS), help="default: all; the textbook scan always")
    parser.add_argument(
        "--repeats", type=int, help="timed epochs of each, of short ones thrice as many; default: 7, quick 3"
    )
    parser.add_argument("--compiles", type=int, help="compilations of each, of which the median counts; default 3, quick 1")


def stop_once(number: int, frame: Any) -> None:
    """Interrupts, once: `timeout` sends the signal twice, and the second one would lose the result."""
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def main() -> None:
    """Runs the table."""
    signal.signal(signal.SIGTERM, stop_once)
    program.run(__doc__, measure, add_flags=add_flags)


if __name__ == "__main__":
    main()
