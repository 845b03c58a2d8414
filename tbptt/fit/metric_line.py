"""Reduce the metrics of several updates to the numbers of one line of metrics.jsonl."""

import math
from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np

from tbptt.training import Metrics


class Update(NamedTuple):
    """One update, on the host; extra: other numbers by name."""

    loss: float
    grad_norm: float
    clipped: bool | None
    non_finite: bool
    extra: dict[str, float]


def updates_of(metrics: Metrics, extra: dict[str, Any]) -> list[Update]:
    """Split fetched metrics, of one update or of an epoch `[n]`, into updates.

    Extra numbers are scalars or `[n]`.
    """
    loss, norm, bad = (
        np.atleast_1d(leaf) for leaf in (metrics.loss, metrics.grad_norm, metrics.non_finite)
    )
    clipped = None if metrics.clipped is None else np.atleast_1d(metrics.clipped)
    named = {
        name: np.broadcast_to(np.asarray(value, np.float64), loss.shape)
        for name, value in extra.items()
    }
    return [
        Update(
            float(loss[i]),
            float(norm[i]),
            None if clipped is None else bool(clipped[i]),
            bool(bad[i]),
            {name: float(values[i]) for name, values in named.items()},
        )
        for i in range(len(loss))
    ]


class MetricLine:
    """Updates of one line of metrics.jsonl."""

    def __init__(self) -> None:
        self.updates = 0
        self._losses: list[float] = []
        self._norms: list[float] = []
        self._clipped: list[bool] = []
        self._extra: defaultdict[str, list[float]] = defaultdict(list)
        self._non_finite = 0

    def add(self, update: Update) -> None:
        """Add one update; its numbers are left out if no step of its chunk counts."""
        self.updates += 1
        if update.loss == 0 and update.grad_norm == 0:  # no step of the chunk counts
            return
        self._losses.append(update.loss)
        self._norms.append(update.grad_norm)
        self._clipped += [] if update.clipped is None else [update.clipped]
        self._non_finite += update.non_finite
        for name, value in update.extra.items():
            self._extra[name].append(value)

    def numbers(self) -> dict[str, Any]:
        """Return the values of the line by name: means over the finite values, None without any.

        `non_finite` is the number of non-finite updates.
        """
        norms = [norm for norm in self._norms if math.isfinite(norm)]
        return {
            "updates": self.updates,
            "loss": _mean(self._losses),
            "grad_norm": _mean(norms),
            "grad_norm_max": max(norms, default=None),
            "clipped": _mean([float(c) for c in self._clipped]),
            "non_finite": self._non_finite,
            **{name: _mean(values) for name, values in self._extra.items()},
        }


def _mean(values: list[float]) -> float | None:
    finite = [value for value in values if math.isfinite(value)]
    return math.fsum(finite) / len(finite) if finite else None
