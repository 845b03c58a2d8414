"""Predict notes by frequencies, by each note's previous step, and by all previous notes.

A piece is a roll `[T, P]` of booleans. Every step is scored, including the first of a piece, which
follows silence. The score is the negative log-likelihood of a step, in nats, summed over the P
notes and averaged over the steps of all pieces:

    nll = -(1 / T) sum_t sum_n log p(x_t[n])
"""

from collections.abc import Sequence

import numpy as np
import scipy.optimize
import scipy.special
from jaxtyping import Bool, Float64, Int

Rolls = Sequence[Bool[np.ndarray, "T P"]]


def frequency(train: Rolls, test: Rolls) -> float:
    """Score p(x_t[n]) = (N_n + 1/2) / (N + 1), where N_n of the N training steps contain note n."""
    steps = np.concatenate(train)
    p = (steps.sum(0) + 0.5) / (len(steps) + 1)
    return _nll(np.concatenate(test), np.broadcast_to(p, (1, len(p))))


def first_order(train: Rolls, test: Rolls) -> float:
    """Score p(x_t[n] | x_{t-1}[n]) by the same rule, with counts for note n off and on at t - 1."""
    before, steps = _previous(train), np.concatenate(train)
    p = np.stack([((steps & last).sum(0) + 0.5) / (last.sum(0) + 1) for last in (~before, before)])
    return _nll(np.concatenate(test), np.where(_previous(test), p[1], p[0]))


def first_order_all(train: Rolls, test: Rolls, ridge: float = 1.0) -> float:
    """Score the logistic regressions p(x_t[n] | x_{t-1}) = sigmoid(b_n + x_{t-1} W_n).

    W, b minimise the summed nll of the training steps + ridge / 2 * sum W^2. The problem is convex,
    so the result does not depend on the initial point.
    """
    # Held chords repeat the same pair of steps: unique pairs with counts are a third of the rows.
    pairs, times = np.unique(
        np.hstack([_previous(train), np.concatenate(train)]), axis=0, return_counts=True
    )
    before, steps = np.hsplit(pairs.astype(np.float64), 2)
    W, b = fit_logistic(before, steps, ridge, times)
    scores = _previous(test) @ W + b
    targets = np.concatenate(test)
    return float(np.mean(np.sum(np.logaddexp(0, scores) - targets * scores, axis=1)))


def fit_logistic(
    xs: Float64[np.ndarray, "N D"],
    ys: Float64[np.ndarray, "N P"],
    ridge: float,
    times: Int[np.ndarray, " N"],
) -> tuple[Float64[np.ndarray, "D P"], Float64[np.ndarray, " P"]]:
    """Fit P logistic regressions (W, b) by Newton's method, row i with weight times[i].

    Raises:
      FloatingPointError: the minimiser did not converge.
    """
    design = np.column_stack([xs, np.ones(len(xs))])
    penalty = np.full(design.shape[1], ridge)
    penalty[-1] = 0.0  # the intercept is free
    columns = []
    for y in ys.T:

        def objective(w: np.ndarray, y: np.ndarray = y) -> tuple[float, np.ndarray]:
            scores = design @ w
            value = (
                np.sum(times * (np.logaddexp(0, scores) - y * scores)) + np.sum(penalty * w**2) / 2
            )
            return float(value), design.T @ (
                times * (scipy.special.expit(scores) - y)
            ) + penalty * w

        def curvature(w: np.ndarray) -> np.ndarray:
            p = scipy.special.expit(design @ w)
            return (design * (times * p * (1 - p))[:, None]).T @ design + np.diag(penalty)

        mean = np.clip(np.average(y, weights=times), 1e-4, 1 - 1e-4)
        start = np.append(np.zeros(xs.shape[1]), np.log(mean / (1 - mean)))
        options = {"gtol": 1e-4, "initial_trust_radius": 10.0, "max_trust_radius": 100.0}
        found = scipy.optimize.minimize(
            objective, start, jac=True, hess=curvature, method="trust-exact", options=options
        )
        if not found.success:
            raise FloatingPointError(
                f"the logistic regression of note {len(columns)} did not converge: {found.message}"
            )
        columns.append(found.x)
    weights = np.stack(columns, axis=1)
    return weights[:-1], weights[-1]


def previous(roll: Bool[np.ndarray, "T P"]) -> Bool[np.ndarray, "T P"]:
    """Return the roll delayed by one step: row t is step t - 1, row 0 is silence."""
    return np.concatenate([np.zeros_like(roll[:1]), roll[:-1]])


def _previous(rolls: Rolls) -> np.ndarray:
    return np.concatenate([previous(roll) for roll in rolls])


def _nll(targets: np.ndarray, p: np.ndarray) -> float:
    return float(-np.mean(np.sum(np.where(targets, np.log(p), np.log1p(-p)), axis=1)))
