"""Suggest flags after a warning about gradients."""

from collections.abc import Mapping
from typing import Any


def advice(kind: str, settings: Mapping[str, Any]) -> str:
    """Return suggestions with the numbers of this run; settings may contain lr, clip, k2, cell."""
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
