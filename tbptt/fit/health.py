"""Detect exploding, vanishing and non-finite gradients, and suggest remedies.

An episode is a series of bad updates of one kind, which 20 consecutive good updates end. Each
episode is reported once.
"""

import math
import statistics
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

WINDOW = 200  # updates of the running medians
LEARNING = 20  # updates before the running median is used
PERSISTENT = 5  # consecutive small gradients; fewer can be chance, as in a constant chunk
GOOD = 20  # consecutive good updates that end an episode
EXPLODED, DRIFTED = 100.0, 1e4  # multiples of the running median; of the median at the start
# Fractions of the running median; of the median at the start (float32 rounding).
VANISHED, ROUNDING = 1e-3, 2.0**-23
# Median loss of the last GOOD updates over that of the last WINDOW; below it the loss is falling.
FALLING = 0.7
LEARNT = 0.03  # if the loss is below this fraction of its median, a small gradient is expected
OVERFLOWING = 1.8e19  # the square of a larger float32 is inf
DEAD = 1.2e-38  # the smallest normal float32


class History(NamedTuple):
    """State of the detection between two updates.

    norms, losses: those of the last WINDOW good updates
    start:   (norm, loss), the medians of the first LEARNING updates; None until then
    small:   number of consecutive updates with too small a gradient
    episode: kind of the current episode, which has been reported; None if there is none
    good:    number of consecutive good updates in the episode
    """

    norms: tuple[float, ...] = ()
    losses: tuple[float, ...] = ()
    start: tuple[float, float] | None = None
    small: int = 0
    episode: str | None = None
    good: int = 0


class Finding(NamedTuple):
    """Start of an episode.

    kind:    "exploded", "vanished" or "non_finite"
    message: a description with the numbers
    """

    kind: str
    message: str


def check(
    history: History, loss: float, norm: float, non_finite: bool = False
) -> tuple[History, Finding | None]:
    """Check the gradient of one update.

        exploded    norm > 100 x the median of the last 200 updates, unless the loss is falling
                    (its median over 20 updates is below 70 % of that over 200);
                    or > 10^4 x the median of the first 20; or its square overflows
        vanished    for 5 updates: norm < 0.001 x the running median, or < 2^-23 x the median of
                    the first 20, unless the loss is below 3 % of its own median;
                    or norm is 0 in float32
        non_finite  loss or norm is NaN or inf

    Updates of an episode do not enter the medians; 20 good updates end it. An update whose loss and
    gradient are exactly 0, because no time step of its chunk counts, is left out.

    Args:
        history: `History()` before the first update, then the returned one.
        loss, norm: those of this update; norm before clipping.
        non_finite: the flag of the train step.

    Returns:
        (history, finding): finding is None if the update is good or its episode has been reported.
    """
    if loss == 0 and norm == 0:
        return history, None
    finding = _classify(history, loss, norm, non_finite)
    if finding is not None and finding.kind == "vanished" and history.small + 1 < PERSISTENT:
        return history._replace(small=history.small + 1, good=0), None
    if finding is not None:
        small = history.small + 1 if finding.kind == "vanished" else 0
        reported = history.episode == finding.kind
        return history._replace(
            small=small, episode=finding.kind, good=0
        ), None if reported else finding
    if history.episode is not None and history.good + 1 < GOOD:
        return history._replace(small=0, good=history.good + 1), None
    norms, losses = (*history.norms, norm)[-WINDOW:], (*history.losses, loss)[-WINDOW:]
    start = history.start
    if start is None and len(norms) >= LEARNING:
        start = statistics.median(norms), statistics.median(losses)
    return History(norms, losses, start), None


def history_of(rows: Iterable[Mapping[str, Any]]) -> History:
    """Restore the history from the log lines of an earlier session."""
    history = History()
    for row in rows:
        if row.get("kind") == "train" and row["loss"] is not None and row["grad_norm"] is not None:
            history, _ = check(
                history, row["loss"], row["grad_norm"], row["non_finite"] == row["updates"]
            )
    return history._replace(small=0)


def advice(kind: str) -> str:
    """Return what to try after a finding of this kind."""
    if kind == "exploded":
        return (
            "consider clipping at a lower norm, a lower learning rate, a smaller k2, a gated cell"
        )
    if kind == "vanished":
        return (
            "consider a gated cell, a lower learning rate if large steps have saturated the units, "
            "or a larger k2 if earlier inputs matter; a loss at the noise level needs no change"
        )
    return (
        "consider a lower learning rate, clipping, or a smaller k2; if it occurs at one position "
        "of the data, look for NaN or outliers there"
    )


def _classify(history: History, loss: float, norm: float, non_finite: bool) -> Finding | None:
    if non_finite or not (math.isfinite(loss) and math.isfinite(norm)):
        what = "loss" if not math.isfinite(loss) else "gradient"
        return Finding(
            "non_finite", f"{what} is not finite (loss {loss:g}, gradient norm {norm:g})"
        )
    if norm > OVERFLOWING:
        return Finding("exploded", f"gradient norm {norm:.2g}: its square overflows in float32")
    median = statistics.median(history.norms) if len(history.norms) >= LEARNING else None
    if median is not None and norm > EXPLODED * median and not _falling(history):
        times = norm / max(median, DEAD)
        return Finding(
            "exploded",
            f"gradient norm {norm:.2g} is {times:.0f} times its running median {median:.2g}",
        )
    if history.start is not None and norm > DRIFTED * history.start[0]:
        times = norm / max(history.start[0], DEAD)
        return Finding(
            "exploded",
            f"gradient norm {norm:.2g} is {times:.0f} times that of the first updates "
            f"({history.start[0]:.2g})",
        )
    return _vanished(history, loss, norm, median)


def _vanished(history: History, loss: float, norm: float, median: float | None) -> Finding | None:
    if norm < DEAD and loss != 0:
        return Finding(
            "vanished", f"gradient norm {norm:.2g} is zero in float32, at a loss of {loss:.3g}"
        )
    if (
        median is not None
        and norm < VANISHED * median
        and not _explained(loss, statistics.median(history.losses))
    ):
        return Finding(
            "vanished",
            f"gradient norm {norm:.2g} is below 1/1000 of its running median {median:.2g}, at a "
            f"loss of {loss:.3g}",
        )
    if (
        history.start is not None
        and norm < ROUNDING * history.start[0]
        and not _explained(loss, history.start[1])
    ):
        return Finding(
            "vanished",
            f"gradient norm {norm:.2g} is below float32 rounding of that of the first updates "
            f"({history.start[0]:.2g})",
        )
    return None


def _falling(history: History) -> bool:
    """Return whether the loss is falling; gradients grow when training leaves a plateau."""
    return statistics.median(history.losses[-GOOD:]) < FALLING * statistics.median(history.losses)


def _explained(loss: float, before: float) -> bool:
    return 0 <= loss < LEARNT * before
