"""Curves and titles of figures, in the style of `experiments.support.common.style`."""

from typing import Any

from experiments.support.common.style import COLORS, LINES, MARKERS


def curve(index: int) -> dict[str, Any]:
    """Return color, dash and marker of the index-th curve."""
    n = index % len(COLORS)
    return {"color": COLORS[n], "ls": LINES[n], "marker": MARKERS[n], "lw": 1.8, "ms": 5}


def by_system(axis: Any, rows: list[dict[str, Any]], x: str, y: str, *, scale: float = 1.0) -> None:
    """Draw one curve per system over `case[x]`, from the rows that have `y`.

    The index of a system among all rows chooses its look, so it looks the same in every panel.
    """
    for n, system in enumerate(dict.fromkeys(row["system"] for row in rows)):
        own = (row for row in rows if row["system"] == system and row.get(y) is not None)
        points = sorted((row["case"][x], row[y] / scale) for row in own)
        if points:
            axis.plot(*zip(*points, strict=True), label=system, **curve(n))


def title(summary: dict[str, Any], text: str) -> str:
    """Return a figure's title: the text, the machine, the date, and whether the run was quick."""
    machine = summary["environment"]
    quick = "QUICK RUN; " if summary["quick"] else ""
    cpu = f"{machine['cpu']}, {machine['cpus']} cores"
    where = cpu if machine["device"] == "cpu" else machine["device"]
    return f"{quick}{text}; {where}, jax {machine['versions']['jax']}, {machine['date'][:10]}"
