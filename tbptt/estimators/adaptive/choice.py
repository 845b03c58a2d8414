"""The choice of a window, and what it amounts to in words."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Int


class WindowChoice(NamedTuple):
    """What `choose_window` found, for m windows.

    chosen:   scalar, which window
    beta:     scalar, by how much phi shrinks from lag to lag in the tail; NaN where too few lags are left to fit
    interval: `[2]`, the confidence interval of beta; (0, inf) where there is none
    absolute: `[m]`, bound on what each window leaves out, in the unit of phi; inf if there is no bound
    relative: `[m]`, bound on each window's relative bias; inf if there is no bound
    decays:   scalar, whether what is left out has a finite sum: beta is surely below 1, or the last phi is 0
    enough:   scalar, whether the chosen window's relative bias is below delta; else it is the largest there is
    """

    chosen: Int[Array, ""]
    beta: Float[Array, ""]
    interval: Float[Array, " 2"]
    absolute: Float[Array, " m"]
    relative: Float[Array, " m"]
    decays: Bool[Array, ""]
    enough: Bool[Array, ""]


def explain_choice(choice: WindowChoice, windows: Sequence[int], delta: float) -> str:
    """Says which window was chosen and why; begins with "warning: " where the largest was taken for want of a bound.

    Args:
      choice: what `choose_window` returned, or the `choice` of an `AdaptiveInfo`; outside jit.
      windows, delta: as they were given to it.
    """
    index = int(choice.chosen)
    k2, bound = windows[index], float(choice.relative[index])
    low, high = (float(end) for end in np.asarray(choice.interval))
    decay = f"beta {float(choice.beta):.4g}, interval {low:.4g} .. {high:.4g}"
    if choice.enough:
        return f"k2 = {k2}: its relative bias is at most {bound:.2g}, below delta = {delta:g} ({decay})"
    if not choice.decays:
        return (
            f"warning: gradients do not surely decay with the lag ({decay}), so nothing bounds the bias of any window; "
            f"k2 = {k2} is the largest there is"
        )
    return (
        f"warning: no window is long enough: k2 = {k2}, the largest, has a relative bias of at most {bound:.2g}, not below "
        f"delta = {delta:g} ({decay})"
    )
