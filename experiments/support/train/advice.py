"""Warn of settings that prevent learning, and suggest flags after a warning about gradients."""

from collections.abc import Mapping
from typing import Any

from tbptt.fit import FEW


def advice(kind: str, settings: Mapping[str, Any]) -> str:
    """Return suggestions with the values of this run; settings may contain lr, clip, k2, cell."""
    lr, clip, k2, cell = (settings.get(name) for name in ("lr", "clip", "k2", "cell"))
    lower_lr = f"--lr {lr / 3:.2g} (now {lr:g})" if lr else "a lower --lr"
    clip_more = f"--clip {clip / 4:.2g} (now {clip:g})" if clip else "--clip 1"
    smaller = f"--k2 {max(1, k2 // 2)} (now {k2})" if k2 else "a smaller --k2"
    larger = f"--k2 {2 * k2} (now {k2})" if k2 else "a larger --k2"
    gated = (
        "a gated cell (--cell lstm or gru)"
        if cell not in ("lstm", "gru")
        else f"a cell other than {cell}"
    )
    if kind == "exploded":
        return f"consider {clip_more}, {lower_lr}, {smaller} or {gated}"
    if kind == "vanished":
        return (
            f"consider {gated}, {lower_lr} if large steps have saturated the units, or {larger} if "
            f"earlier inputs matter; "
            "a loss at the noise level needs no change"
        )
    return (
        f"consider {lower_lr}, {clip_more} or {smaller}; if it occurs at one position of the data, "
        f"look for NaN or "
        "outliers there"
    )


def few_update_warnings(
    k1: int, batch: int, steps: int, updates: int | None
) -> list[tuple[str, str]]:
    """Return (message, advice) for each setting with which a run makes too few updates.

    Args:
      k1: time steps per update.
      batch: number of sequences.
      steps: time steps of the longest training sequence.
      updates: total number of updates; None if training time is the limit.
    """
    found, fewer = [], max(1, batch * steps // (20 * k1))
    longer = f"--batch {fewer}, which makes longer sequences, or " if fewer < batch else ""
    if steps < k1:
        found.append(
            (
                f"the training sequences ({batch}) have at most {steps} steps, fewer than --k1 "
                f"{k1}: one update per pass, mostly of padding",
                f"consider {longer}--k1 {max(1, steps // 10)}",
            )
        )
    elif steps < 10 * k1 and batch > 1:
        found.append(
            (
                f"the training sequences ({batch}) have at most {steps} steps: only "
                f"{-(-steps // k1)} updates per pass",
                f"consider --batch {fewer} or a smaller --k1",
            )
        )
    if updates is not None and updates < FEW:
        found.append((f"the run makes only {updates} updates", "consider more --epochs"))
    return found
