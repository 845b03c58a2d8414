"""Some updates on a file in a process of its own, for its peak memory.

    python -m benchmarks.support.stream_memory FILE UPDATES STEPS LANES CHUNK HIDDEN [--load]      ends in JSON

`--load`: the other way, for comparison: the whole recording is loaded and laid out in lanes before training begins.
"""

import argparse
import json
import resource
import sys
import time
from pathlib import Path

import jax

from benchmarks.support.stream_problem import Sizes, make_trainer, open_stream
from tbptt.data import read_ahead


def peak_bytes() -> int:
    """The most resident memory this process has had."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux: there ru_maxrss begins at what the parent had when it started this process
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    """Trains, pass after pass, and prints what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("updates", type=int)
    parser.add_argument("steps", type=int)
    parser.add_argument("lanes", type=int)
    parser.add_argument("chunk", type=int)
    parser.add_argument("hidden", type=int)
    parser.add_argument("--load", action="store_true")
    flags = parser.parse_args()
    began = time.perf_counter()
    sizes = Sizes(flags.steps, flags.lanes, flags.chunk, flags.hidden)
    stream = open_stream(flags.file, sizes)
    opened = time.perf_counter() - began
    train = make_trainer(sizes, stream.chunk(0).batch)
    if flags.load:
        held = [jax.device_put(stream.chunk(i).batch) for i in range(len(stream))]
        _, loss = train(held[i % len(held)] for i in range(flags.updates))
    else:
        _, loss = train(chunk.batch for _, chunk in read_ahead(stream, 0, flags.updates))
    seconds = time.perf_counter() - began
    print(json.dumps({"peak_bytes": peak_bytes(), "open_seconds": opened, "seconds": seconds, "loss": float(loss)}))


if __name__ == "__main__":
    main()
