"""Rows and targets of the comparison with other libraries."""

from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.clock import spread
from benchmarks.support.program import target
from benchmarks.systems.registry import OURS, SYSTEMS, TEXTBOOK, TORCH, is_ours
from benchmarks.systems.work import Case

# Largest relative difference of the first losses. Float32 rounding gives 1e-6, and the libraries'
# epsilons give 1e-5. Gates in the wrong order or a lost carry give 1e-3 and more
# (tests/benchmarks/test_systems.py).
TOLERANCE = 1e-4
BEST, PER_CHUNK = "one program", "per chunk"

# Wanted: name of the case -> times as fast as (the fastest JAX library called per chunk, PyTorch).
WANTED = {
    "B=1 H=64": (3.0, 10.0),
    "B=1 H=128": (2.0, 4.0),
    "B=32 H=128": (1.5, 1.0),
    "B=20 H=256": (1.5, 1.0),
    "B=64 H=512": (1.5, 1.0),
    "characters": (1.5, 1.0),
}
FULL_GRADIENT = "full gradient"  # compared with the textbook scan alone


def difference(losses: Iterable[float], reference: Iterable[float]) -> float:
    """Return the largest relative difference; NaN counts as infinite."""
    worst = max(abs(a - b) / abs(b) for a, b in zip(losses, reference, strict=True))
    return worst if worst == worst else float("inf")


def make_rows(
    case: Case,
    prepared: Mapping[tuple[str, str], dict[str, Any]],
    seconds: Mapping[tuple[str, str], list[float]],
) -> list[dict[str, Any]]:
    """Make the rows of a case.

    Args:
      case: the sizes.
      prepared: by (system, form): compile_seconds, temp_bytes, loss_difference.
      seconds: by (system, form): of every timed epoch. A system without an entry is refused.
    """
    ours = spread(seconds[OURS, BEST]).seconds if (OURS, BEST) in seconds else None
    rows = []
    for (system, form), seen in prepared.items():
        row = {"case": case._asdict(), "system": system, "form": form, **seen}
        if (system, form) not in seconds:
            row["refused"] = f"its losses differ from the textbook's by more than {TOLERANCE:g}"
        else:
            times = spread(seconds[system, form])
            row |= {"steps_per_second": case.N * case.k / times.seconds, **times._asdict()}
            row["ratio"] = None if ours is None else times.seconds / ours
        rows.append(row)
    return rows


def missing_row(system: str, reply: Mapping[str, Any]) -> dict[str, Any]:
    """Make the row of a system whose package is not installed."""
    row = {"case": None, "system": system, "missing": reply["missing"]}
    return row | {"remedy": reply["remedy"]}


def targets(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Compare every measured case with what is wanted; the compared systems are named."""
    made: list[dict[str, Any]] = []
    names = dict.fromkeys(row["case"]["name"] for row in rows if row.get("case"))
    for name in names:
        here = [r for r in rows if r.get("case") and r["case"]["name"] == name and "seconds" in r]
        here = [r for r in here if r["system"] in SYSTEMS]  # not of another checkout
        jax_peers = [r for r in here if not is_ours(r["system"]) and SYSTEMS[r["system"]].jax]
        textbook = [r for r in jax_peers if r["system"] == TEXTBOOK]
        all_ours = [r for r in here if is_ours(r["system"])]
        default = {r["form"]: r for r in all_ours if r["system"] == OURS}
        if name in WANTED:
            to_jax, to_torch = WANTED[name]
            torch = [r for r in here if r["system"] == TORCH]
            made.append(_speed(name, all_ours, "the fastest JAX peer", jax_peers, to_jax))
            made.append(_speed(name, all_ours, TORCH, torch, to_torch))
        if name == FULL_GRADIENT:
            scans = [r for r in jax_peers if r["system"].startswith(TEXTBOOK)]
            made.append(_speed(name, all_ours, TEXTBOOK, scans, 1.8))
            ours = default.get(BEST)
            made.append(
                _share(name, "times the temporary bytes", "temp_bytes", ours, textbook, 0.5)
            )
        ours, what = default.get(PER_CHUNK), "times the compile time"
        made.append(_share(name, what, "compile_seconds", ours, textbook, 1.5))
    return made


def _speed(
    case: str,
    ours: list[dict[str, Any]],
    against: str,
    peers: list[dict[str, Any]],
    wanted: float,
) -> dict[str, Any]:
    """Compare our fastest form with the fastest peer in its documented form, which is the target.

    The row also has the number of `tbptt.unroll` in one program on one device (`default_unroll`),
    and the ratio to the fastest peer in any form and on all cores (`against_any_form`).
    """
    peers = sorted((row for row in peers if "seconds" in row), key=lambda row: row["seconds"])
    in_docs = [r for r in peers if r["form"] == PER_CHUNK and not SYSTEMS[r["system"]].cores]
    fastest = min(ours, key=lambda row: row["seconds"], default=None)
    measured = in_docs[0]["seconds"] / fastest["seconds"] if in_docs and fastest else None
    who = f"{against} as documented ({in_docs[0]['system']})" if in_docs else against
    row = target(case, "times as fast", who, wanted, measured)
    if peers and fastest:
        row["ours"] = f"{fastest['system']}, {fastest['form']}"
        one = next((r for r in ours if (r["system"], r["form"]) == (OURS, BEST)), None)
        default = in_docs[0]["seconds"] / one["seconds"] if in_docs and one else None
        row["default_unroll"] = default
        any_form = {key: peers[0][key] for key in ("system", "form")}
        ratio = peers[0]["seconds"] / fastest["seconds"]
        row["against_any_form"] = any_form | {"ratio": ratio}
    return row


def _share(
    case: str, what: str, field: str, ours: Any, peers: list[dict[str, Any]], wanted: float
) -> dict[str, Any]:
    """Compare the bytes or the compile time of `tbptt.unroll` with those of a peer."""
    in_docs = [row for row in peers if row["form"] == PER_CHUNK]
    measured = ours[field] / in_docs[0][field] if ours and in_docs else None
    return target(case, what, TEXTBOOK, wanted, measured, most=True)
