"""The choice of a window, and its explanation in words."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Bool, Float, Int


class WindowChoice(NamedTuple):
    """The result of `choose_window`, for m windows.

    chosen:   scalar, the index of the chosen window
    beta:     scalar, the factor of phi from lag to lag in the tail; NaN if too few lags are above 0
    interval: `[2]`, the confidence interval of beta; (0, inf) if there is none
    absolute: `[m]`, bound on what each window leaves out, in the unit of phi; inf if there is none
    relative: `[m]`, bound on the relative bias of each window; inf if there is none
    decays:   scalar, whether what is left out has a finite sum: the upper end of the interval of
      beta is below 1, or the last phi is 0
    enough:   scalar, whether the relative bias of the chosen window is below delta; if False, the
      chosen window is the largest
    """

    chosen: Int[Array, ""]
    beta: Float[Array, ""]
    interval: Float[Array, " 2"]
    absolute: Float[Array, " m"]
    relative: Float[Array, " m"]
    decays: Bool[Array, ""]
    enough: Bool[Array, ""]


def explain_choice(choice: WindowChoice, windows: Sequence[int], delta: float) -> str:
    """Return a sentence that names the chosen window and the reason.

    It begins with "warning: " if no window has a bound below delta.

    Args:
      choice: the result of `choose_window`, or the `choice` of an `AdaptiveInfo`; outside of jit.
      windows, delta: the arguments of that call.
    """
    index = int(choice.chosen)
    k2, bound = windows[index], float(choice.relative[index])
    low, high = (float(end) for end in np.asarray(choice.interval))
    decay = f"beta {float(choice.beta):.4g}, interval {low:.4g} .. {high:.4g}"
    if choice.enough:
        return (
            f"k2 = {k2}: its relative bias is at most {bound:.2g}, below delta = {delta:g} "
            f"({decay})"
        )
    if not choice.decays:
        return (
            f"warning: gradients do not surely decay with the lag ({decay}), so there is no bound "
            f"on the bias of any window; k2 = {k2} is the largest"
        )
    return (
        f"warning: no window is long enough: k2 = {k2}, the largest, has a relative bias of at "
        f"most {bound:.2g}, not below delta = {delta:g} ({decay})"
    )
