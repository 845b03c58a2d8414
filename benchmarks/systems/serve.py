"""One system in its own process. Reads commands from stdin and answers each on stdout, a line of JSON for a line of JSON.

    python -m benchmarks.systems.serve "haiku"

    {"do": "prepare", "case": {...}, "compiles": n} -> {"forms": {name: {compile_seconds, temp_bytes, losses, seconds}}}
    {"do": "epoch", "form": ..., "warm": seconds}   -> {"seconds": of one epoch from a fresh start}

`losses` are of the first updates and show that the work is the same; `seconds` is of one epoch, roughly. A first
line says whether the system could be imported. Between commands the process waits in `read` and uses no processor.
"""

import importlib
import importlib.util
import json
import os
import statistics
import sys
from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.clock import once
from benchmarks.systems.registry import SYSTEMS, System
from benchmarks.systems.work import Case, Form, draw_data, draw_weights
from tbptt.distributed import split_cpu

CHECKED_LOSSES = 8
REMEDY = "pip install tbptt[peers]"


def missing(system: System) -> str | None:
    """Names the first package that is not installed here."""
    return next((name for name in system.needs if importlib.util.find_spec(name) is None), None)


def prepare(forms: dict[str, Form], compiles: int) -> dict[str, dict[str, Any]]:
    """Compiles every form, then warms each up until there are enough losses to compare."""
    # All are compiled before any runs: compiling empties jax's caches, and so would make the others compile again.
    compiled = {name: [form.compile() for _ in range(compiles)] for name, form in forms.items()}
    return {name: _warm_up(form) | _summary(compiled[name]) for name, form in forms.items()}


def _summary(compiled: list[tuple[float | None, int | None]]) -> dict[str, Any]:
    seconds = [s for s, _ in compiled if s is not None]
    return {"compile_seconds": statistics.median(seconds) if seconds else None, "temp_bytes": compiled[0][1]}


def _warm_up(form: Form) -> dict[str, Any]:
    losses: list[float] = []
    state = form.begin()
    while len(losses) < CHECKED_LOSSES:  # an epoch of one update says nothing about its gradient: train on
        state, new = form.epoch(state)
        losses += [float(loss) for loss in new]
    return {"losses": losses[:CHECKED_LOSSES], "seconds": once(form.epoch, form.begin(), block=form.block)}


def epoch(form: Form, *, warm: float) -> float:
    """Times one epoch from a fresh start, after as many untimed ones as take `warm` seconds: the process has slept, and the
    caches held another system's data."""
    spent = 0.0
    while spent < warm:
        spent += once(form.epoch, form.begin(), block=form.block)
    return once(form.epoch, form.begin(), block=form.block)


def serve(system: System, lines: Iterable[str], answer: Callable[[dict[str, Any]], None]) -> None:
    """Answers commands until they end; an exception is an answer too, and the process goes on."""
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
                forms.clear()  # frees the last case before the next is built
                case = Case(**command["case"])
                forms |= make_forms(case, draw_weights(case), draw_data(case))
                answer({"forms": prepare(forms, command["compiles"])})
            else:
                answer({"seconds": epoch(forms[command["form"]], warm=command["warm"])})
        except Exception as error:  # whatever a library raises, the others are still to be measured
            answer({"error": f"{type(error).__name__}: {error}"})


def main() -> None:
    """Keeps the answers' channel apart from whatever a library prints."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(reply: dict[str, Any]) -> None:
        channel.write(json.dumps(reply) + "\n")
        channel.flush()

    serve(SYSTEMS[sys.argv[1]], sys.stdin, answer)


if __name__ == "__main__":
    main()
