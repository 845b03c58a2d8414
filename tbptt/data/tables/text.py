"""Read texts of any size as streams of bytes, and build their vocabulary."""

import dataclasses
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8

from tbptt.data.tables.bad_samples import BadSample
from tbptt.data.tables.sources import Files, Source
from tbptt.data.tables.table import SourceChanged, Table, as_paths, check_file, stamp_of


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """Symbols of a text, bytes in ascending order: symbol i is the byte `symbols[i]`.

    An ASCII character is one symbol; any other character is as many as its UTF-8 has bytes.
    """

    symbols: bytes

    def __len__(self) -> int:
        return len(self.symbols)

    def encode(
        self,
        text: UInt8[np.ndarray, " n"] | bytes,
        place: Callable[[int], str] = lambda at: f"byte {at} of the text",
    ) -> Int[np.ndarray, " n"]:
        """Return the symbol numbers of a text, int32.

        Args:
            text: the bytes.
            place: index of a byte -> its position, for the error message.

        Raises:
            BadSample: a symbol is not in the vocabulary.
        """
        found = np.frombuffer(text, np.uint8) if isinstance(text, bytes) else text
        table = np.full(256, -1, np.int32)
        table[np.frombuffer(self.symbols, np.uint8)] = np.arange(len(self.symbols))
        numbers = table[found]
        if (numbers < 0).any():
            at = int(np.argmax(numbers < 0))
            raise BadSample(
                f"{place(at)} is {bytes([found[at]])!r}, a symbol that is not in the vocabulary of "
                "the training text. Remove or replace it, or train on a text that has it"
            )
        return numbers

    def decode(self, numbers: Iterable[int | np.integer]) -> str:
        """Return the text of symbol numbers; invalid UTF-8 becomes the replacement character."""
        return bytes(self.symbols[int(number)] for number in numbers).decode(
            "utf-8", errors="replace"
        )


def open_text(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> Files:
    """Open one or several text files as recordings of bytes.

    The result is a `Source` with one column, "byte", of dtype uint8.

    Raises:
        FileNotFoundError, IsADirectoryError: there is no such file.
        ValueError: no path, or an empty file.
    """
    return Files([_open(path) for path in as_paths(paths)], np.uint8)


def count_symbols(source: Source, block: int = 1 << 20) -> Vocabulary:
    """Return the vocabulary of the bytes that occur in a text, in one pass over blocks.

    Args:
        source: from `open_text`; pass the training part only (`part`) to keep the rest unseen.
        block: bytes read at once.
    """
    counts, total = np.zeros(256, np.int64), sum(source.lengths)
    for start in range(0, total, block):
        counts += np.bincount(source.read(start, min(start + block, total))[:, 0], minlength=256)
    return Vocabulary(bytes(np.flatnonzero(counts).astype(np.uint8)))


def _open(path: Path) -> Table:
    check_file(path, "open_text takes the files")
    stamp = stamp_of(path)
    if stamp.size == 0:
        raise ValueError(f"{path} is empty; expected text. Write it again")

    def read(start: int, stop: int) -> np.ndarray:
        with path.open("rb") as file:
            file.seek(start)
            found = file.read(stop - start)
        if len(found) < stop - start:
            raise SourceChanged(
                f"{path} ended early, at byte {start + len(found)}: it was shortened. Restore it "
                "and resume the run"
            )
        return np.frombuffer(found, np.uint8)[:, None]

    return Table(stamp, ("byte",), (stamp.size,), read, lambda row: f"byte {row} (from 0)")
