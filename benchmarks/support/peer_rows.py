"""From what workers answer to rows and targets: who agrees, how many times faster ours is, and what was wanted."""

from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.clock import spread
from benchmarks.support.program import target
from benchmarks.systems.registry import OURS, SYSTEMS, TEXTBOOK, TORCH, is_ours
from benchmarks.systems.work import Case

# Relative difference of the first losses. Float32 rounding gives 1e-6, the libraries' epsilons 1e-5; gates in the wrong
# order or a carry that is not handed on, 1e-3 and more (tests/benchmarks/test_systems.py).
TOLERANCE = 1e-4
BEST, PER_CHUNK = "one program", "per chunk"

# Issue 4: name of the case -> times as fast as (the fastest JAX peer called per chunk, PyTorch).
WANTED = {
    "B=1 H=64": (3.0, 10.0),
    "B=1 H=128": (2.0, 4.0),
    "B=32 H=128": (1.5, 1.0),
    "B=20 H=256": (1.5, 1.0),
    "B=64 H=512": (1.5, 1.0),
    "characters": (1.5, 1.0),
}
FULL_GRADIENT = "full gradient"  # against the textbook scan alone


def difference(losses: Iterable[float], reference: Iterable[float]) -> float:
    """The largest relative difference; NaN counts as infinite."""
    worst = max(abs(a - b) / abs(b) for a, b in zip(losses, reference, strict=True))
    return worst if worst == worst else float("inf")


def make_rows(
    case: Case, prepared: Mapping[tuple[str, str], dict[str, Any]], seconds: Mapping[tuple[str, str], list[float]]
) -> list[dict[str, Any]]:
    """Makes the rows of a case.

    Args:
      prepared: by (system, form): compile_seconds, temp_bytes, loss_difference.
      seconds: by (system, form): of every timed epoch; a system that is not in it is refused, its losses disagree.
    """
    ours = spread(seconds[OURS, BEST]).seconds if (OURS, BEST) in seconds else None
    rows = []
    for (system, form), known in prepared.items():
        row = {"case": case._asdict(), "system": system, "form": form, **known}
        if (system, form) not in seconds:
            row["refused"] = f"its losses differ from the textbook's by more than {TOLERANCE:g}"
        else:
            times = spread(seconds[system, form])
            row |= {"steps_per_second": case.N * case.k / times.seconds, **times._asdict()}
            row["ratio"] = None if ours is None else times.seconds / ours
        rows.append(row)
    return rows


def missing_row(system: str, reply: Mapping[str, Any]) -> dict[str, Any]:
    """The row of a system whose package is not installed."""
    return {"case": None, "system": system, "missing": reply["missing"], "remedy": reply["remedy"]}


def targets(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Compares every measured case with issue 4's table; the fastest peer is named."""
    made: list[dict[str, Any]] = []
    names = dict.fromkeys(row["case"]["name"] for row in rows if row.get("case"))
    for name in names:
        here = [row for row in rows if row.get("case") and row["case"]["name"] == name and "seconds" in row]
        jax_peers = [row for row in here if not is_ours(row["system"]) and SYSTEMS[row["system"]].jax]
        textbook = [row for row in jax_peers if row["system"] == TEXTBOOK]
        all_ours = [row for row in here if is_ours(row["system"])]
        ours = {row["form"]: row for row in all_ours if row["system"] == OURS}
        if name in WANTED:
            to_jax, to_torch = WANTED[name]
            made.append(_speed(name, all_ours, "the fastest JAX peer", jax_peers, to_jax))
            made.append(_speed(name, all_ours, TORCH, [row for row in here if row["system"] == TORCH], to_torch))
        if name == FULL_GRADIENT:
            made.append(_speed(name, all_ours, TEXTBOOK, [r for r in jax_peers if r["system"].startswith(TEXTBOOK)], 1.8))
            made.append(_share(name, "times the temporary bytes", "temp_bytes", ours.get(BEST), textbook, 0.5))
        made.append(_share(name, "times the compile time", "compile_seconds", ours.get(PER_CHUNK), textbook, 1.5))
    return made


def _speed(
    case: str, ours: list[dict[str, Any]], against: str, peers: list[dict[str, Any]], wanted: float
) -> dict[str, Any]:
    """Our fastest form against the fastest peer in its documented one, which is what counts; beside it stand what one
    device of ours has against the same, and the fastest peer in any form and on all cores."""
    known = sorted((row for row in peers if "seconds" in row), key=lambda row: row["seconds"])
    documented = [row for row in known if row["form"] == PER_CHUNK and not SYSTEMS[row["system"]].cores]
    fastest = min(ours, key=lambda row: row["seconds"], default=None)
    measured = documented[0]["seconds"] / fastest["seconds"] if documented and fastest else None
    who = f"{against} as documented ({documented[0]['system']})" if documented else against
    row = target(case, "times as fast", who, wanted, measured)
    if known and fastest:
        row["ours"] = f"{fastest['system']}, {fastest['form']}"
        one = next((row for row in ours if (row["system"], row["form"]) == (OURS, BEST)), None)
        row["on_one_device"] = documented[0]["seconds"] / one["seconds"] if documented and one else None
        any_form = {key: known[0][key] for key in ("system", "form")}
        row["against_any_form"] = any_form | {"ratio": known[0]["seconds"] / fastest["seconds"]}
    return row


def _share(case: str, what: str, field: str, ours: Any, theirs: list[dict[str, Any]], wanted: float) -> dict[str, Any]:
    """Our bytes or seconds of a step as a share of theirs."""
    documented = [row for row in theirs if row["form"] == PER_CHUNK]
    measured = ours[field] / documented[0][field] if ours and documented else None
    return target(case, what, TEXTBOOK, wanted, measured, most=True)
