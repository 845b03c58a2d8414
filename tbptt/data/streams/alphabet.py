"""Encode text as integer symbols and arrange it as streams of next-symbol pairs."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, Int32

from tbptt.data.streams.chunks import split_into_streams
from tbptt.types import Batch
from tbptt.windows import check_positive_int


@dataclasses.dataclass(frozen=True)
class Alphabet:
    """Symbols of a model, in the order of their codes 0 .. V - 1.

    Args (static):
        symbols: a string of V different characters in ascending order.
    """

    symbols: str

    def __post_init__(self) -> None:
        if not self.symbols or list(self.symbols) != sorted(set(self.symbols)):
            raise ValueError(
                "Alphabet.symbols must be different characters in ascending order; got "
                f"{self.symbols!r}. Use alphabet_of(text)"
            )

    def __len__(self) -> int:
        return len(self.symbols)

    def encode(self, text: str) -> Int32[np.ndarray, " N"]:
        """Return the codes of the symbols of a text.

        Raises:
            ValueError: a symbol is not in the alphabet; the message gives the first one and its
                position.
        """
        points, symbols = _points(text), _points(self.symbols)
        codes = np.minimum(np.searchsorted(symbols, points), len(symbols) - 1)
        wrong = np.flatnonzero(symbols[codes] != points)
        if len(wrong):
            at = int(wrong[0])
            raise ValueError(
                f"text has {text[at]!r} (U+{ord(text[at]):04X}) at position {at}, which is not one "
                f"of the {len(self)} symbols of the alphabet, {self.symbols!r}. Remove or replace "
                "it"
            )
        return codes.astype(np.int32)

    def decode(self, codes: Int[np.ndarray, " N"]) -> str:
        """Return the text of a sequence of codes.

        Raises:
            ValueError: a code lies outside 0 .. V - 1.
        """
        codes = np.asarray(codes)
        if codes.size and not (0 <= codes.min() and codes.max() < len(self)):
            raise ValueError(
                f"codes must lie in 0 .. {len(self) - 1}; got {codes.min()} .. {codes.max()}"
            )
        return "".join(self.symbols[code] for code in codes)


def alphabet_of(text: str) -> Alphabet:
    """Return the alphabet of the symbols that occur in a text."""
    return Alphabet("".join(sorted(set(text))))


def next_symbol_streams(codes: Int[np.ndarray, " N"], n: int, window: int) -> tuple[Batch, int]:
    """Arrange a text as n streams of next-symbol prediction.

    The inputs are the symbols, the targets are the symbols that follow:

        T = (N - 1) // n // window * window
        for i in range(n):
            for t in range(T):
                inputs[t, i], targets[t, i] = codes[i * T + t], codes[i * T + t + 1]

    Args:
        codes: the text, from `Alphabet.encode`.
        n: static, number of streams, the batch size.
        window: static; the length T of the streams is a multiple of it, because training uses
            whole windows.

    Returns:
        (batch, left_out): a Batch `[T, n]`, and the number of symbols at the end of the text
        that are not used as a target; fewer than n * window.

    Raises:
        TypeError: n or window is not an int.
        ValueError: the text is too short for one window in every stream.
    """
    n, window = check_positive_int("n", n), check_positive_int("window", window)
    codes = np.asarray(codes)
    T = (len(codes) - 1) // n // window * window
    if T < 1:
        raise ValueError(
            f"codes has {len(codes)} symbols; one window of {window} in each of {n} streams needs "
            f"{n} * {window} + 1 = {n * window + 1}. Use a longer text, fewer streams or a shorter "
            "window"
        )
    inputs, targets = split_into_streams((codes[: T * n], codes[1 : T * n + 1]), n)
    return Batch(jnp.asarray(inputs), jnp.asarray(targets)), len(codes) - 1 - T * n


def _points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
