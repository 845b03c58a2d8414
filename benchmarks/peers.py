"""Speed of the same training work in other libraries.

    python -m benchmarks.peers [--quick] [--out FILE]      hours on two idle cores; --quick: minutes
    python -m benchmarks.peers --cases characters --systems tbptt "tbptt numba" PyTorch
    python -m benchmarks.peers --quick --systems tbptt --before ../earlier

The last command also measures `tbptt` of another checkout, to see what a change costs.

One LSTM layer and a linear readout, clipping at 1.0 and Adam after every chunk of k steps, carry
kept between chunks, float32; N chunks are an epoch. Every system starts from the same weights and
data and runs in a process of its own. The processes take turns, one epoch each (warmed up if it
is short), and one computes at a time. A system whose first losses differ from the textbook's is
refused and not timed. JAX libraries are measured in two forms: `per chunk`, the jitted step
called as documented, and `one program`, the step scanned over the chunks. `benchmarks/systems/`
has one file per library. Ours are `tbptt`, with `tbptt.unroll`, and `tbptt numba`, with
`unroll=tbptt.backends.numba_cpu.unroll`.

`ratio` of a row: how many times as long as `tbptt`, one program, it takes; medians of interleaved
epochs. Expected: `targets`. `make .venv/.installed-peers` installs the libraries. The last
line of stdout is JSON.
"""

import argparse
import signal
from pathlib import Path
from typing import Any

from benchmarks.clock import interleave
from benchmarks.support import peer_rows, program
from benchmarks.support.program import say
from benchmarks.support.worker import Worker, WorkerError
from benchmarks.systems.registry import BEFORE, OURS, SYSTEMS, TEXTBOOK
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
SETTLE = 0.02  # seconds between turns: OpenMP's threads spin before they sleep
# Before an epoch shorter than SHORT_EPOCH seconds, untimed epochs run for WARM seconds: the process
# was idle, and the caches hold the data of another process. If the epochs of all systems are short,
# MORE times as many are timed.
SHORT_EPOCH, WARM, MORE = 1.0, 0.5, 3


def measure_case(
    case: Case, workers: dict[str, Worker], repeats: int, compiles: int
) -> list[dict[str, Any]]:
    """Prepare a case in every worker, one after another, then time those that agree in turns."""
    prepared: dict[tuple[str, str], dict[str, Any]] = {}
    failed = []
    for name, worker in workers.items():
        try:
            for form, seen in worker.prepare(case._asdict(), compiles).items():
                prepared[name, form] = seen
                loss = seen["losses"][0]
                say(f"  {name}, {form}: {seen['seconds']:.3f} s per epoch, first loss {loss:.6f}")
        except WorkerError as error:
            failed.append({"case": case._asdict(), "system": name, "failed": str(error)})
            say(f"  {error}")
    reference = next(seen["losses"] for (name, _), seen in prepared.items() if name == TEXTBOOK)
    warm_seconds = {}
    for key, seen in prepared.items():
        warm_seconds[key] = seen.pop("seconds")
        seen["loss_difference"] = peer_rows.difference(seen.pop("losses"), reference)
    names = {
        f"{name}, {form}": (name, form)
        for (name, form), seen in prepared.items()
        if seen["loss_difference"] <= peer_rows.TOLERANCE
    }

    def epoch(key: tuple[str, str]) -> float:
        warm = WARM if warm_seconds[key] < SHORT_EPOCH else 0
        return workers[key[0]].epoch(key[1], warm=warm)

    runs = {label: lambda key=key: epoch(key) for label, key in names.items()}
    repeats *= MORE if max(warm_seconds.values()) < SHORT_EPOCH else 1
    seconds = interleave(runs, repeats, settle=SETTLE)
    times = {names[label]: values for label, values in seconds.items()}
    rows = peer_rows.make_rows(case, prepared, times)
    for row in rows:
        text = row.get("refused")
        if not text:
            text = f"{row['seconds']:8.3f} s per epoch, {row['ratio'] or 0:.2f} times tbptt's"
        say(f"  {row['system']:28} {row['form']:24} {text}")
    return rows + failed


def measure(flags: argparse.Namespace) -> dict[str, Any]:
    """Start the workers, measure the cases, and compare with the targets."""
    cases = QUICK_CASES if flags.quick else CASES
    if flags.cases:
        cases = [case for case in CASES if case.name in flags.cases]
    repeats = flags.repeats or (3 if flags.quick else 7)
    compiles = flags.compiles or (1 if flags.quick else 3)
    say("starting a process for every system")
    # The textbook is always measured: it is the reference of the losses.
    wanted = (*flags.systems, TEXTBOOK) if flags.systems else tuple(SYSTEMS)
    chosen = [name for name in SYSTEMS if name in wanted]
    workers = {name: Worker(name) for name in chosen}
    if flags.before:
        workers[BEFORE] = Worker(OURS, flags.before)
    rows: list[dict[str, Any]] = []
    case, stopped_at = None, None
    try:
        for name in list(workers):
            if not workers[name].ready():
                rows.append(peer_rows.missing_row(name, workers[name].missing or {}))
                workers.pop(name).close()
                say(f"  {name} is missing: {rows[-1]['remedy']}")
        for case in cases:
            say(f"{case.name}: N={case.N} k={case.k} B={case.B} D={case.D} H={case.H}")
            rows += measure_case(case, workers, repeats, compiles)
    except KeyboardInterrupt:  # SIGTERM, too, see main: the finished cases are kept
        stopped_at = case and case.name
        say(f"stopped while measuring {stopped_at}: the result has the cases before it")
    finally:
        for worker in workers.values():
            worker.close()
    return {"rows": rows, "targets": peer_rows.targets(rows), "stopped_at": stopped_at}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that choose a part of the table."""
    names = [case.name for case in CASES]
    parser.add_argument("--cases", nargs="+", choices=names, help="default: all")
    parser.add_argument(
        "--systems",
        nargs="+",
        choices=list(SYSTEMS),
        help="default: all; the textbook scan is always measured",
    )
    parser.add_argument(
        "--before",
        type=Path,
        metavar="FOLDER",
        help=f"also measure `{OURS}` of the checkout in this folder, as `{BEFORE}`",
    )
    parser.add_argument(
        "--repeats",
        type=int,
        help="timed epochs per system, 3 times as many if all are short (default: 7; quick: 3)",
    )
    parser.add_argument(
        "--compiles",
        type=int,
        help="compilations of each system, of which the median is reported (default: 3; quick: 1)",
    )


def stop_once(number: int, frame: Any) -> None:
    """Interrupt once: `timeout` sends the signal twice, and two would lose the result."""
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def main() -> None:
    """Run the benchmark."""
    signal.signal(signal.SIGTERM, stop_once)
    program.run(__doc__, measure, add_flags=add_flags)


if __name__ == "__main__":
    main()
