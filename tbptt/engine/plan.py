"""What is kept for the backward pass and what is computed again: the plans, from cheap in time to cheap in memory."""

import dataclasses
import math
from typing import TypeAlias


@dataclasses.dataclass(frozen=True)
class CarriesOnly:
    """Rematerialise the insides of every step: keep inputs and carries, two arrays `[T, *batch, H]` for an LSTM.

    With the carries known, the gates of all steps are computed again side by side: one product for a block of steps, no
    second run through time.
    """


@dataclasses.dataclass(frozen=True)
class Segments:
    """Rematerialise: keep the carries between segments only, and run each segment again in the backward pass.

    Args (static): length, steps a segment; None = ceil(sqrt(T)), which keeps about 2 sqrt(T) carries instead of every
    intermediate of T steps, for one extra forward pass. A tuple nests, the longest first: `(1000, 30)` keeps T / 1000 + 34
    carries and 30 steps of intermediates, for two.

    References: Chen, Xu, Zhang, Guestrin, *Training deep nets with sublinear memory cost*, 2016, arXiv:1604.06174.
    """

    length: int | tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        lengths = self.length if isinstance(self.length, tuple) else (self.length,)
        for length in lengths:
            if length is not None and length < 1:
                raise ValueError(f"Segments.length must be at least 1 step, or None for ceil(sqrt(T)); got {length}")
        if None in lengths[1:] or (len(lengths) > 1 and list(lengths) != sorted(lengths, reverse=True)):
            raise ValueError(f"Segments.length as a tuple holds steps, the longest first; got {self.length}")

    def lengths(self, T: int) -> tuple[int, ...]:
        """Returns the lengths of the nested segments for T steps, the longest first."""
        if self.length is None:
            return (math.isqrt(max(T - 1, 0)) + 1,)
        lengths = self.length if isinstance(self.length, tuple) else (self.length,)
        return tuple(min(length, max(T, 1)) for length in lengths)


Remat: TypeAlias = CarriesOnly | Segments
