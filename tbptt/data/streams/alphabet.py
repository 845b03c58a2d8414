"""Text as sequences of symbols: an alphabet that refuses what it does not know, and lanes of next-symbol pairs."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, Int32

from tbptt.data.streams.chunks import split_into_streams
from tbptt.types import Batch
from tbptt.windows import check_window


@dataclasses.dataclass(frozen=True)
class Alphabet:
    """The symbols that a model knows, in the order of their codes 0 .. V - 1.

    Args (static): symbols, a string of V different characters in ascending order.
    """

    symbols: str

    def __post_init__(self) -> None:
        if not self.symbols or list(self.symbols) != sorted(set(self.symbols)):
            raise ValueError(f"Alphabet.symbols must be different characters in ascending order; got {self.symbols!r}")

    def __len__(self) -> int:
        return len(self.symbols)

    def encode(self, text: str) -> Int32[np.ndarray, " N"]:
        """Returns the codes of a text.

        Raises:
            ValueError: the text holds a symbol that is not of the alphabet; names the first one and its place.
        """
        points, known = _points(text), _points(self.symbols)
        codes = np.minimum(np.searchsorted(known, points), len(known) - 1)
        wrong = np.flatnonzero(known[codes] != points)
        if len(wrong):
            at = int(wrong[0])
            raise ValueError(
                f"the text holds {text[at]!r} (U+{ord(text[at]):04X}) at position {at}, which is not among the "
                f"{len(self)} symbols that the model knows: {self.symbols!r}. Remove or replace it"
            )
        return codes.astype(np.int32)

    def decode(self, codes: Int[np.ndarray, " N"]) -> str:
        """Returns the text of codes.

        Raises:
            ValueError: a code lies outside 0 .. V - 1.
        """
        codes = np.asarray(codes)
        if codes.size and not (0 <= codes.min() and codes.max() < len(self)):
            raise ValueError(f"codes must lie in 0 .. {len(self) - 1}; got {codes.min()} .. {codes.max()}")
        return "".join(self.symbols[code] for code in codes)


def alphabet_of(text: str) -> Alphabet:
    """Returns the alphabet of the symbols that occur in a text."""
    return Alphabet("".join(sorted(set(text))))


def next_symbol_streams(codes: Int[np.ndarray, " N"], n: int, window: int) -> tuple[Batch, int]:
    """Lays a text out as n lanes of next-symbol prediction: inputs are symbols, targets the symbols that follow.

        T = (N - 1) // n // window * window
        for i in range(n):
            for t in range(T):
                inputs[t, i], targets[t, i] = codes[i * T + t], codes[i * T + t + 1]

    Args:
        codes: the text, from `Alphabet.encode`.
        n: static, lanes.
        window: static; the lanes' length T is a multiple of it, because whole windows are trained on.

    Returns:
        (batch, left_out): a Batch `[T, n]`, and how many symbols at the text's end are never a target; fewer than
        n * window.

    Raises:
        TypeError: n or window is no int.
        ValueError: the text is too short for one window in every lane.
    """
    n, window = check_window("n", n), check_window("window", window)
    codes = np.asarray(codes)
    T = (len(codes) - 1) // n // window * window
    if T < 1:
        raise ValueError(
            f"the text has {len(codes)} characters: fewer than one window of {window} in each of {n} lanes needs, "
            f"{n} * {window} + 1 = {n * window + 1}. Give a longer text, fewer lanes or a shorter window"
        )
    inputs, targets = split_into_streams((codes[: T * n], codes[1 : T * n + 1]), n)
    return Batch(jnp.asarray(inputs), jnp.asarray(targets)), len(codes) - 1 - T * n


def _points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
