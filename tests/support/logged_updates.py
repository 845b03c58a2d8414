"""Functions for the tests of run logs: metrics of updates, and a console in memory."""

import io

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from tbptt import Metrics

RNG = np.random.default_rng(7)
N = 130
LOSSES = np.exp(RNG.normal(size=N)).astype(np.float32)
NORMS = np.exp(RNG.normal(size=N)).astype(np.float32)


def metrics(start: int, stop: int, bad: int | None = None) -> Metrics:
    """Return the metrics of updates [start, stop) of an epoch, with update `bad` not finite."""
    losses, norms = LOSSES.copy(), NORMS.copy()
    if bad is not None:
        losses[bad] = norms[bad] = np.nan
    here = slice(start, stop)
    finite = np.isfinite(losses[here])
    return Metrics(
        *(jnp.asarray(x) for x in (losses[here], norms[here], norms[here] > 1, ~finite)), info=None
    )


def one(index: int) -> Metrics:
    return jax.tree.map(lambda leaf: leaf[0], metrics(index, index + 1))


def silent() -> Console:
    return Console(file=io.StringIO(), width=120)


def said(console: Console) -> str:
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
