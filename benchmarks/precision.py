"""How far is a gradient through T steps from the float64 one, in float32, in bfloat16, and in both mixed?

    python -m benchmarks.precision [--quick] [--out FILE]      about 3 minutes on two cores; --quick: 40 s

The gradient of one layer (B=8, D=8, H=64; LSTM, GRU, Elman) with respect to all its parameters, loss at every step, for
T = 10 .. 3000: relative norm of the error and cosine against a plain float64 `lax.scan` at the same parameters. `float32`
and `bfloat16` have parameters, inputs and carry of that type; `mixed` keeps them float32 and multiplies matrices in
bfloat16 (`compute_dtype`). Expected up to T = 100: float32 under 1e-6, mixed 2e-3 to 6e-3, bfloat16 4e-3 to 9e-3.
No error was larger at T = 3000 than at T = 10 (benchmarks/results/). No times are taken.

With --out a figure of the curves is drawn beside the file. The last line of stdout is the summary as JSON.
"""

import argparse
import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import tbptt
from benchmarks.support import program
from benchmarks.support.program import say

B, D, H = 8, 8, 64
LENGTHS, QUICK_LENGTHS = (10, 30, 100, 300, 1000, 3000), (10, 30, 100)
CELLS = {"LSTM": tbptt.LSTM, "GRU": tbptt.GRU, "Elman": tbptt.Elman}

# A system: the fields of its cell, and the dtype of everything that it is given.
System = tuple[Mapping[str, Any], Any]
SYSTEMS: dict[str, System] = {
    "tbptt float32": ({"dtype": jnp.float32}, jnp.float32),
    "tbptt bfloat16": ({"dtype": jnp.bfloat16}, jnp.bfloat16),
    "tbptt mixed": ({"dtype": jnp.float32, "compute_dtype": jnp.bfloat16}, jnp.float32),
}
REFERENCE: System = ({"dtype": jnp.float64}, jnp.float64)


def lacks(cell_type: Any, system: System) -> list[str]:
    """Names the fields that a system sets and this cell does not have."""
    return sorted(set(system[0]) - {field.name for field in dataclasses.fields(cell_type)})


def plain(cell: Any, params: Any, carry: Any, xs: Any) -> tuple[Any, Any]:
    """The scan that the engine is held against: no engine at all."""
    return jax.lax.scan(functools.partial(cell, params), carry, xs)


def gradient(cell_type: Any, system: System, T: int, unroll: Callable[..., Any] = tbptt.unroll) -> Any:
    """The gradient of the mean squared output error of T steps, in the system's types; the same numbers for all."""
    fields, dtype = system
    cell = cell_type(D, H, **fields)
    keys = jax.random.split(jax.random.key(0), 4)
    # Drawn in float32, then cast: rounding the parameters is a part of what a type costs.
    drawn = cell_type(D, H, dtype=jnp.float32).init(keys[0]), jax.random.normal(keys[1], (H,), jnp.float32) / H**0.5
    params, readout = jax.tree.map(lambda a: a.astype(dtype), drawn)
    xs = jax.random.normal(keys[2], (T, B, D), jnp.float32).astype(dtype)
    targets = jax.random.normal(keys[3], (T, B), jnp.float32).astype(dtype)
    # The loss itself is summed in float32 at least: it is the recurrence that is asked about.
    wide = jnp.promote_types(dtype, jnp.float32)

    def loss(params: Any) -> Any:
        _, ys = unroll(cell, params, cell.initial_carry((B,)), xs)
        return jnp.mean(((ys @ readout - targets).astype(wide)) ** 2)

    return jax.jit(jax.grad(loss))(params)


def error(got: Any, exact: Any) -> tuple[float, float]:
    """||got - exact|| / ||exact|| and the cosine between them, over all leaves as one vector, in float64."""
    a, b = (jnp.concatenate([leaf.astype(jnp.float64).ravel() for leaf in jax.tree.leaves(g)]) for g in (got, exact))
    norm = jnp.linalg.norm
    return float(norm(a - b) / norm(b)), float(jnp.vdot(a, b) / (norm(a) * norm(b)))


def curves(
    lengths: Any, systems: Mapping[str, System], tell: Callable[[str], None] = say
) -> tuple[list[dict[str, Any]], list[str]]:
    """Makes the rows of all cells, systems and lengths, and notes on what could not be run."""
    rows, notes = [], []
    for cell, cell_type in CELLS.items():
        able = {name: system for name, system in systems.items() if not lacks(cell_type, system)}
        notes += [
            f"{cell} has no {lacks(cell_type, s)}: {name} is left out" for name, s in systems.items() if name not in able
        ]
        for T in lengths:
            exact = gradient(cell_type, REFERENCE, T, plain)
            for name, system in able.items():
                relative, cosine = error(gradient(cell_type, system, T), exact)
                case = {"cell": cell, "T": T, "B": B, "D": D, "H": H}
                rows.append({"case": case, "system": name, "relative_error": relative, "cosine": cosine})
                tell(f"{cell:6} T={T:5} {name:16} relative error {relative:.2e}, cosine {cosine:.6f}")
    for note in notes:
        tell(note)
    return rows, notes


def measure(flags: argparse.Namespace) -> dict[str, Any]:
    """Runs the curves, with float64 there to compare with."""
    with jax.enable_x64(True):
        rows, notes = curves(QUICK_LENGTHS if flags.quick else LENGTHS, SYSTEMS)
    worst = {system: max((r["relative_error"] for r in rows if r["system"] == system), default=None) for system in SYSTEMS}
    return {"rows": rows, "worst_relative_error": worst, "notes": notes}


def draw(summary: dict[str, Any], path: Path) -> None:
    """Draws the error against T, a panel a cell; reads the summary alone."""
    from benchmarks.support import figures

    figure, axes = figures.panels(len(CELLS), figures.title(summary, f"gradient against float64, B={B}, H={H}"))
    for axis, cell in zip(axes, CELLS, strict=True):
        figures.by_system(axis, [row for row in summary["rows"] if row["case"]["cell"] == cell], "T", "relative_error")
        axis.set(xscale="log", yscale="log", xlabel="T (steps)", title=cell)
    axes[0].set(ylabel="relative error of the gradient")
    axes[0].legend(fontsize=8)
    figures.save(figure, path)


def main() -> None:
    """Runs the curves."""
    program.run(__doc__, measure, draw=draw)


if __name__ == "__main__":
    main()
