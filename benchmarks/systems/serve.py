"""Run one system in its own process, with commands on stdin and answers on stdout, as JSON.

    python -m benchmarks.systems.serve "haiku"

    {"do": "prepare", "case": {...}, "compiles": n}
        -> {"forms": {name: {compile_seconds, temp_bytes, losses, seconds}}}
    {"do": "epoch", "form": ..., "warm": seconds}   -> {"seconds": of one epoch from a fresh start}

`losses` are those of the first updates, by which equal work is checked; `seconds` of "prepare" is
a rough time of one epoch. The first line reports whether the system could be imported. Between
commands the process is idle.
"""

import importlib
import importlib.util
import json
import os
import statistics
import sys
from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.clock import time_call
from benchmarks.systems.registry import SYSTEMS, System
from benchmarks.systems.work import Case, Form, draw_data, draw_weights
from tbptt.distributed import split_cpu

CHECKED_LOSSES = 8
REMEDY = "make .venv/.installed-peers"


def missing(system: System) -> str | None:
    """Return the first package that is not installed, or None."""
    return next((name for name in system.needs if importlib.util.find_spec(name) is None), None)


def prepare(forms: dict[str, Form], compiles: int) -> dict[str, dict[str, Any]]:
    """Compile every form, then run each until there are enough losses to compare."""
    # All are compiled before any runs: each compilation clears jax's caches.
    compiled = {name: [form.compile() for _ in range(compiles)] for name, form in forms.items()}
    return {name: _warm_up(form) | _summary(compiled[name]) for name, form in forms.items()}


def _summary(compiled: list[tuple[float | None, int | None]]) -> dict[str, Any]:
    seconds = [s for s, _ in compiled if s is not None]
    return {
        "compile_seconds": statistics.median(seconds) if seconds else None,
        "temp_bytes": compiled[0][1],
    }


def _warm_up(form: Form) -> dict[str, Any]:
    losses: list[float] = []
    state = form.begin()
    while len(losses) < CHECKED_LOSSES:  # one update alone does not show its gradient
        state, new = form.epoch(state)
        losses += [float(loss) for loss in new]
    seconds = time_call(form.epoch, form.begin(), block=form.block)
    return {"losses": losses[:CHECKED_LOSSES], "seconds": seconds}


def epoch(form: Form, *, warm: float) -> float:
    """Time one epoch from a fresh start, after untimed epochs that take `warm` seconds.

    The process was idle before, and the processor's caches hold the data of another system.
    """
    spent = 0.0
    while spent < warm:
        spent += time_call(form.epoch, form.begin(), block=form.block)
    return time_call(form.epoch, form.begin(), block=form.block)


def serve(system: System, lines: Iterable[str], answer: Callable[[dict[str, Any]], None]) -> None:
    """Answer commands until stdin ends; an exception is an answer, too."""
    if name := missing(system):
        return answer({"missing": name, "remedy": REMEDY})
    if system.cores:
        split_cpu()
    module, _, function = system.path.partition(":")
    make_forms = getattr(importlib.import_module(module), function)
    answer({"ready": True})
    forms: dict[str, Form] = {}
    for line in lines:
        command = json.loads(line)
        try:
            if command["do"] == "prepare":
                forms.clear()  # free the previous case first
                case = Case(**command["case"])
                forms |= make_forms(case, draw_weights(case), draw_data(case))
                answer({"forms": prepare(forms, command["compiles"])})
            else:
                answer({"seconds": epoch(forms[command["form"]], warm=command["warm"])})
        except Exception as error:  # the other systems still have to be measured
            answer({"error": f"{type(error).__name__}: {error}"})


def main() -> None:
    """Serve on the original stdout, and send whatever a library prints to stderr."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(reply: dict[str, Any]) -> None:
        channel.write(json.dumps(reply) + "\n")
        channel.flush()

    serve(SYSTEMS[sys.argv[1]], sys.stdin, answer)


if __name__ == "__main__":
    main()
