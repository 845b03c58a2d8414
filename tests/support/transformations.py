"""Unroll functions under the transformations of JAX: the first table of docs/transformations.md.

    python -m tests.support.transformations      print the table as it is measured now

Every entry compares a row under a column with `plain_unroll` under the same column, or with what
the column means: a loop over examples, or a product with the gradient.
"""

import dataclasses
import functools
import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

import tbptt
from tbptt.backends import numba_cpu, pallas_gpu
from tbptt.cells import ClippedCell
from tbptt.unroll import CarriesOnly, Segments, plain_unroll
from tbptt.unroll.newton import newton_unroll, quasi_newton_unroll
from tests.support.problems import problem, scalar_loss

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "transformations.md"
T, B, D, H = 5, 2, 3, 4

ROWS = {
    "`unroll`, `LSTM`": (tbptt.unroll, tbptt.LSTM(D, H)),
    "`unroll`, `MinGRU`": (tbptt.unroll, tbptt.MinGRU(D, H)),
    "`unroll`, `Stack`": (tbptt.unroll, tbptt.Stack((tbptt.LSTM(D, H), tbptt.Elman(H, H)))),
    "`unroll`, `ClippedCell`": (tbptt.unroll, ClippedCell(tbptt.LSTM(D, H), 1e6)),
    "`unroll`, `CarriesOnly()`": (
        functools.partial(tbptt.unroll, remat=CarriesOnly()),
        tbptt.LSTM(D, H),
    ),
    "`unroll`, `Segments(2)`": (
        functools.partial(tbptt.unroll, remat=Segments(2)),
        tbptt.LSTM(D, H),
    ),
    "`unroll`, `reverse`": (functools.partial(tbptt.unroll, reverse=True), tbptt.LSTM(D, H)),
    "`parallel_unroll`, `MinGRU`": (tbptt.parallel_unroll, tbptt.MinGRU(D, H)),
    "`newton_unroll`, `GRU`": (newton_unroll, tbptt.GRU(D, H)),
    "`quasi_newton_unroll`, `GRU`": (quasi_newton_unroll, tbptt.GRU(D, H)),
    "`numba_cpu.unroll`, `LSTM`": (numba_cpu.unroll, tbptt.LSTM(D, H)),
    "`numba_cpu.unroll`, `Elman`": (numba_cpu.unroll, tbptt.Elman(D, H)),
    "`pallas_gpu.unroll`, `GRU`": (
        functools.partial(pallas_gpu.unroll, interpret=True),
        tbptt.GRU(D, H),
    ),
}


def squares(tree):
    return sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(tree))


def descent(f):
    """Return a scan of gradient steps over sequences `[N, T, ...]`."""

    def run(params, carry, xs, *flags):
        def step(params, xs):
            grads = jax.grad(f)(params, carry, xs, *flags)
            params = jax.tree.map(lambda p, g: p - 0.01 * g, params, grads)
            return params, squares(grads)

        return jax.lax.scan(step, params, xs)

    return run


def over(**axes):
    """Return in_axes of (params, carry, xs, resets, mask)."""
    return tuple(axes.get(name) for name in ("params", "carry", "xs", "resets", "mask"))


def mean(batched):
    return lambda *args: jnp.mean(batched(*args))


def tangents(args):
    def one(a):  # cos by numpy: eagerly, jax compiles a program per shape
        return jnp.asarray(np.cos(1.0 + np.arange(a.size)).reshape(a.shape))

    return jax.tree.map(one, args)


def pushed(f):
    """Return the directional derivative in params, carry and xs."""

    def run(params, carry, xs, *flags):
        args = (params, carry, xs)
        return jax.jvp(lambda *a: f(*a, *flags), args, tangents(args))

    return run


def steepness(f):
    """Return the squared norm of the gradient; differentiated, it needs second derivatives."""
    return lambda *args: squares(jax.jit(jax.grad(f))(*args))


# Name: (transformation of f(params, carry, xs, resets, mask) -> scalar, arguments with an axis N).
COLUMNS = {
    "value": (lambda f: f, ()),
    "grad": (lambda f: jax.grad(f, argnums=(0, 1, 2)), ()),
    "jvp": (pushed, ()),
    "grad of grad": (lambda f: jax.grad(steepness(f), argnums=(0, 1, 2)), ()),
    "jvp of grad": (lambda f: pushed(lambda *a: squares(jax.grad(f)(*a))), ()),
    "vmap params": (lambda f: jax.vmap(f, over(params=0)), ("params",)),
    "vmap carry": (lambda f: jax.vmap(f, over(carry=0)), ("carry",)),
    "vmap xs": (lambda f: jax.vmap(f, over(xs=0)), ("xs",)),
    "vmap flags": (lambda f: jax.vmap(f, over(resets=0, mask=0)), ("resets", "mask")),
    "vmap of grad": (
        lambda f: jax.vmap(jax.grad(f, argnums=(0, 1, 2)), over(xs=0, mask=0)),
        ("xs", "mask"),
    ),
    "grad of vmap": (
        lambda f: jax.grad(mean(jax.vmap(f, over(carry=0, xs=0))), argnums=(0, 1, 2)),
        ("carry", "xs"),
    ),
    "scan of grad": (descent, ("xs",)),
    "remat": (lambda f: jax.grad(jax.checkpoint(f), argnums=(0, 1, 2)), ()),
    "grad of vmap of grad": (
        lambda f: jax.grad(mean(jax.vmap(steepness(f), over(xs=0, resets=0)))),
        ("xs", "resets"),
    ),
    "vmap of scan of grad": (
        lambda f: jax.vmap(descent(f), over(params=0)),
        ("params", "xs"),
    ),
    "grad of scan of vmap": (
        lambda f: jax.grad(
            lambda *a: squares(descent(lambda *b: jnp.sum(jax.vmap(f, over(carry=0))(*b)))(*a)[1])
        ),
        ("carry", "xs"),
    ),
}
NAMES = ("params", "carry", "xs", "resets", "mask")
BATCHED = ("vmap params", "vmap carry", "vmap xs", "vmap flags")


def program(run, cell, column):
    """Return the compiled program of a column."""

    def f(params, carry, xs, resets, mask):
        return scalar_loss(run(cell, params, carry, xs, resets=resets, mask=mask))

    return jax.jit(COLUMNS[column][0](f))


def arguments(cell, column, N):
    """Return the arguments of a column, N different values along every new axis."""
    params, carry, xs, flags = problem(cell, (B,), T)
    given = {"params": params, "carry": carry, "xs": xs, **flags}

    def several(name, value):
        def one(leaf):
            leaf = np.asarray(leaf)
            if leaf.dtype == bool:
                return np.stack([np.roll(leaf, i, axis=0) for i in range(N)])
            return np.stack([leaf * (1 + 0.1 * i) for i in range(N)])

        return jax.tree.map(one, value) if name in COLUMNS[column][1] else value

    return tuple(jax.tree.map(np.asarray, several(name, given[name])) for name in NAMES)


@functools.cache
def _plainly(cell):
    """Return a compiled value and gradients of `plain_unroll`, in either direction.

    One program is the reference of all columns with first derivatives.
    """

    def f(params, carry, xs, resets, mask, reverse):
        def turned(a):
            return jnp.where(reverse, a[::-1], a)

        flags = {"resets": turned(resets), "mask": turned(mask)}
        last, ys = plain_unroll(cell, params, carry, turned(xs), **flags)
        return scalar_loss((last, turned(ys)))

    return jax.jit(jax.value_and_grad(f, argnums=(0, 1, 2)))


def examples(cell, column, N):
    """Yield the arguments of every example of a column under vmap."""
    args = arguments(cell, column, N)
    for i in range(N if COLUMNS[column][1] else 1):
        yield tuple(
            jax.tree.map(lambda a, i=i: a[i], arg) if name in COLUMNS[column][1] else arg
            for name, arg in zip(NAMES, args, strict=True)
        )


def stacked(results):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *results)


@functools.cache
def wanted(cell, column, N, reverse):
    """Return the result of `plain_unroll`: where that is simple, by a loop over examples."""
    if column not in ("value", "grad", "remat", "jvp", "vmap of grad") + BATCHED:
        run = functools.partial(plain_unroll, reverse=reverse)
        return program(run, cell, column)(*arguments(cell, column, N))
    found = [jax.device_get(_plainly(cell)(*args, reverse)) for args in examples(cell, column, N)]
    value, grads = stacked(found) if COLUMNS[column][1] else found[0]
    if column == "jvp":
        along = tangents(arguments(cell, column, N)[:3])
        return value, sum(map(np.vdot, jax.tree.leaves(grads), jax.tree.leaves(along)))
    return value if column == "value" or column in BATCHED else grads


def error_of(row, column, N=3):
    """Return the largest error of a row under a column, relative to the largest number."""
    run, cell = ROWS[row]
    got = program(run, cell, column)(*arguments(cell, column, N))  # first: it may raise
    reverse = getattr(run, "keywords", {}).get("reverse", False)
    want = wanted(cell, column, N, reverse)
    return largest_error(got, want)


def largest_error(got, want):
    assert jax.tree.structure(got) == jax.tree.structure(want)
    pairs = [
        (np.asarray(a, np.float64), np.asarray(b, np.float64))
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    ]
    assert all(a.shape == b.shape for a, b in pairs)
    assert max(np.max(np.abs(b)) for _, b in pairs) > 1e-3, "nothing to compare"
    errors = [np.max(np.abs(a - b)) / max(np.max(np.abs(b)), 1e-6) for a, b in pairs]
    return float(np.max(errors))  # NaN stays NaN


def in_float32(cell):
    """Return the cell, or the cells inside it, with dtype float32."""
    if hasattr(cell, "cells"):
        return dataclasses.replace(cell, cells=tuple(map(in_float32, cell.cells)))
    if hasattr(cell, "cell"):
        return dataclasses.replace(cell, cell=in_float32(cell.cell))
    return dataclasses.replace(cell, dtype=jnp.float32)


def float32_error_of(row):
    """Return the largest error of the gradient in float32, relative to the largest number."""
    run, cell = ROWS[row]
    given = arguments(cell, "grad", 1)
    single = jax.tree.map(lambda a: a.astype(np.float32) if a.dtype == np.float64 else a, given)
    got = program(run, in_float32(cell), "grad")(*single)
    assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {jnp.dtype(jnp.float32)}
    reverse = getattr(run, "keywords", {}).get("reverse", False)
    return largest_error(got, wanted(cell, "grad", 1, reverse))


def tables():
    """Return the tables of the page, each as {(row, column): word}."""
    found, lines = [], PAGE.read_text().splitlines()
    for before, line in itertools.pairwise(["", *lines]):
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("|") and not before.startswith("|"):
            found.append({})
            head = cells[1:]
        elif line.startswith("|") and not line.startswith("|--"):
            found[-1] |= {
                (cells[0], name): word for name, word in zip(head, cells[1:], strict=True)
            }
    return found


def table(rows, columns, error_of):
    """Print a table of what is measured now."""
    print("| | " + " | ".join(columns) + " |\n|--" + "|---" * len(columns) + "|")
    for row in rows:
        words = []
        for column in columns:
            try:
                error = error_of(row, column)
                words.append("yes" if error < 1e-8 else f"WRONG by {error:.1e}")
            except Exception as raised:
                words.append(f"{type(raised).__name__}: {str(raised)[:90]}".replace("\n", " "))
        print(f"| {row} | " + " | ".join(words) + " |", flush=True)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    table(ROWS, COLUMNS, error_of)
