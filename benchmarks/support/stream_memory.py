"""Make some updates on a file in a process of its own, and print its peak memory.

    python -m benchmarks.support.stream_memory FILE UPDATES STEPS BATCH CHUNK HIDDEN [--load]

`--load` loads the whole recording before training begins, for comparison. The last line of stdout
is JSON.
"""

import argparse
import json
import resource
import sys
import time
from pathlib import Path

import jax

from benchmarks.support.program import add_unroll_flag, unroll_of
from benchmarks.support.stream_problem import Sizes, make_trainer, open_stream
from tbptt.data import read_ahead


def peak_bytes() -> int:
    """Return the peak resident memory of this process."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux: ru_maxrss there starts at the peak of the parent process
        lines = status.read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    """Train for the given number of updates, and print time and memory."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path)
    parser.add_argument("updates", type=int)
    parser.add_argument("steps", type=int)
    parser.add_argument("batch", type=int)
    parser.add_argument("chunk", type=int)
    parser.add_argument("hidden", type=int)
    parser.add_argument("--load", action="store_true")
    add_unroll_flag(parser)
    flags = parser.parse_args()
    began = time.perf_counter()
    sizes = Sizes(flags.steps, flags.batch, flags.chunk, flags.hidden)
    stream = open_stream(flags.file, sizes)
    opened = time.perf_counter() - began
    train = make_trainer(sizes, stream.chunk(0).batch, unroll_of(flags.unroll))
    if flags.load:
        held = [jax.device_put(stream.chunk(i).batch) for i in range(len(stream))]
        _, loss = train(held[i % len(held)] for i in range(flags.updates))
    else:
        _, loss = train(chunk.batch for _, chunk in read_ahead(stream, 0, flags.updates))
    seconds = time.perf_counter() - began
    measured = {"peak_bytes": peak_bytes(), "open_seconds": opened, "seconds": seconds}
    print(json.dumps(measured | {"loss": float(loss)}))


if __name__ == "__main__":
    main()
