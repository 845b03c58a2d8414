"""Error of a gradient in float32, bfloat16 and mixed precision against float64.

    python -m benchmarks.precision [--quick] [--out FILE]      3 minutes on two cores; --quick: 40 s

The gradient of one layer (B=8, D=8, H=64; LSTM, GRU, Elman) by all its parameters, with a loss at
every step, for T = 10 .. 3000: relative norm of the error and cosine against a plain float64
`lax.scan` at the same parameters. `float32` and `bfloat16` have parameters, inputs and carry of
that dtype; `mixed` has them in float32 and multiplies matrices in bfloat16 (`compute_dtype`).
Expected up to T = 100: float32 below 1e-6, mixed 2e-3 to 6e-3, bfloat16 4e-3 to 9e-3. In the
committed result no error at T = 3000 is larger than at T = 10. Nothing is timed.

With --out a figure of the curves is drawn next to the file. The last line of stdout is the
summary as JSON.
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

# A system: the fields of its cell, and the dtype of its arguments.
System = tuple[Mapping[str, Any], Any]
SYSTEMS: dict[str, System] = {
    "tbptt float32": ({"dtype": jnp.float32}, jnp.float32),
    "tbptt bfloat16": ({"dtype": jnp.bfloat16}, jnp.bfloat16),
    "tbptt mixed": ({"dtype": jnp.float32, "compute_dtype": jnp.bfloat16}, jnp.float32),
}
REFERENCE: System = ({"dtype": jnp.float64}, jnp.float64)


def lacks(cell_type: Any, system: System) -> list[str]:
    """Return the fields that a system sets and this cell does not have."""
    fields = {field.name for field in dataclasses.fields(cell_type)}
    return sorted(set(system[0]) - fields)


def plain(cell: Any, params: Any, carry: Any, xs: Any) -> tuple[Any, Any]:
    """Run the cell by `lax.scan`, differentiated by JAX: the reference."""
    return jax.lax.scan(functools.partial(cell, params), carry, xs)


def gradient(
    cell_type: Any, system: System, T: int, unroll: Callable[..., Any] = tbptt.unroll
) -> Any:
    """Return the gradient of the mean squared output error of T steps, in the system's dtypes.

    All systems have the same parameters, inputs and targets.
    """
    fields, dtype = system
    cell = cell_type(D, H, **fields)
    keys = jax.random.split(jax.random.key(0), 4)
    # Drawn in float32, then cast: the rounding of the parameters is a part of the error.
    readout = jax.random.normal(keys[1], (H,), jnp.float32) / H**0.5
    drawn = cell_type(D, H, dtype=jnp.float32).init(keys[0]), readout
    params, readout = jax.tree.map(lambda a: a.astype(dtype), drawn)
    xs = jax.random.normal(keys[2], (T, B, D), jnp.float32).astype(dtype)
    targets = jax.random.normal(keys[3], (T, B), jnp.float32).astype(dtype)
    # The loss is summed in float32 at least: the error of the recurrence is measured.
    wide = jnp.promote_types(dtype, jnp.float32)

    def loss(params: Any) -> Any:
        _, ys = unroll(cell, params, cell.initial_carry((B,)), xs)
        return jnp.mean(((ys @ readout - targets).astype(wide)) ** 2)

    return jax.jit(jax.grad(loss))(params)


def error(got: Any, exact: Any) -> tuple[float, float]:
    """Return ||got - exact|| / ||exact|| and the cosine, over all leaves, in float64."""

    def vector(tree: Any) -> Any:
        leaves = jax.tree.leaves(tree)
        return jnp.concatenate([leaf.astype(jnp.float64).ravel() for leaf in leaves])

    a, b = vector(got), vector(exact)
    norm = jnp.linalg.norm
    return float(norm(a - b) / norm(b)), float(jnp.vdot(a, b) / (norm(a) * norm(b)))


def curves(
    lengths: Any, systems: Mapping[str, System], report: Callable[[str], None] = say
) -> tuple[list[dict[str, Any]], list[str]]:
    """Make the rows of all cells, systems and lengths, and notes on what could not be run."""
    rows, notes = [], []
    for cell, cell_type in CELLS.items():
        able = {name: s for name, s in systems.items() if not lacks(cell_type, s)}
        notes += [
            f"{cell} has no {lacks(cell_type, s)}: {name} is left out"
            for name, s in systems.items()
            if name not in able
        ]
        for T in lengths:
            exact = gradient(cell_type, REFERENCE, T, plain)
            for name, system in able.items():
                relative, cosine = error(gradient(cell_type, system, T), exact)
                case = {"cell": cell, "T": T, "B": B, "D": D, "H": H}
                row = {"case": case, "system": name}
                rows.append(row | {"relative_error": relative, "cosine": cosine})
                text = f"relative error {relative:.2e}, cosine {cosine:.6f}"
                report(f"{cell:6} T={T:5} {name:16} {text}")
    for note in notes:
        report(note)
    return rows, notes


def measure(flags: argparse.Namespace) -> dict[str, Any]:
    """Measure all curves, with float64 enabled for the reference."""
    with jax.enable_x64(True):
        rows, notes = curves(QUICK_LENGTHS if flags.quick else LENGTHS, SYSTEMS)
    errors = {name: [r["relative_error"] for r in rows if r["system"] == name] for name in SYSTEMS}
    worst = {name: max(values, default=None) for name, values in errors.items()}
    return {"rows": rows, "worst_relative_error": worst, "notes": notes}


def draw(summary: dict[str, Any], path: Path) -> None:
    """Draw the error against T, one panel per cell, from the summary alone."""
    from benchmarks.support import figures
    from experiments.support.common import style

    title = figures.title(summary, f"gradient against float64, B={B}, H={H}")
    figure, axes = style.panels(len(CELLS), title=title)
    for axis, cell in zip(axes, CELLS, strict=True):
        rows = [row for row in summary["rows"] if row["case"]["cell"] == cell]
        figures.by_system(axis, rows, "T", "relative_error")
        axis.set(xscale="log", yscale="log", xlabel="T (steps)", title=cell)
    axes[0].set(ylabel="relative error of the gradient")
    axes[0].legend(fontsize=8)
    style.save(figure, path.parent, path.stem)


def main() -> None:
    """Run the benchmark."""
    program.run(__doc__, measure, draw=draw)


if __name__ == "__main__":
    main()
