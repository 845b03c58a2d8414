"""load_series reads a user's files, and errors give the file and the position."""

import zipfile
from pathlib import Path

import numpy as np
import pytest

from tbptt.data import load_series

TABLE = "time,a,b\nmon,1,0.5\ntue,2,-3e2\n"


def write(tmp_path: Path, content: str | bytes, name: str = "series.csv") -> Path:
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_csv_columns_in_the_requested_order(tmp_path: Path) -> None:
    path = write(tmp_path, TABLE)
    recording = load_series(path, columns=("b", "a"))
    np.testing.assert_array_equal(recording.values, [[0.5, 1.0], [-300.0, 2.0]])
    assert recording.values.dtype == np.float64
    assert recording[1:] == (("b", "a"), 1.0, str(path))
    np.testing.assert_array_equal(load_series(str(path), ["a"]).values, [[1.0], [2.0]])


@pytest.mark.parametrize(
    "content",
    [
        "a,b\n1,2\n3,4\n",
        "a,b\r\n1,2\r\n3,4",
        '"a","b"\n"1","2"\n"3","4"\n',
        ' a , "b"\n 1 , 2\n3, "4"\n\n\n',
        "\ufeffa,b\n1,2\n3,4\n",
        "a;b\n1;2\n3;4\n",
    ],
    ids=[
        "plain",
        "crlf_no_last_newline",
        "quoted",
        "blanks_and_last_lines",
        "byte_order_mark",
        ";",
    ],
)
def test_csv_dialects(tmp_path: Path, content: str) -> None:
    recording = load_series(write(tmp_path, content, "UPPER.CSV"))
    np.testing.assert_array_equal(recording.values, [[1.0, 2.0], [3.0, 4.0]])
    assert recording.names == ("a", "b")


@pytest.mark.parametrize(
    ("content", "columns", "message"),
    [
        ("a,b\n1,2\n3,x\n", None, "row 3, column 'b' is not a number: 'x'"),
        ("a,b\n1,2\n3,1_000\n", None, "row 3, column 'b' is not a number: '1_000'"),
        ("a,b\n1,2\n3,nan\n", None, "row 3 .*column 'b' is missing or NaN"),
        ("a,b\n1,2\n-inf,3\n", None, "row 3 .*column 'a' is -inf, not a finite"),
        ("a,b\n1,2\n1e999,3\n", None, "row 3 .*column 'a' is inf, not a finite"),
        ("a,b\n1,2\n,3\n", None, "row 3 .*column 'a' is missing or NaN"),
        (
            "a,b\n1,2\n3\n",
            None,
            "row 3 has 1 cells and is the last one.*; the header has 2 columns",
        ),
        ("a,b\n1,2\n3,4,5\n", ("a",), "row 3 has 3 cells; the header has 2 columns"),
        ("a,b\n1,2\n\n3,4\n", None, "row 3 .*column 'a' is missing or NaN"),
        (TABLE, ("a", "c"), "has no column 'c'; its columns are time, a, b"),
        (TABLE, ("time",), "row 2, column 'time' is not a number: 'mon'.*exclude the column"),
        ("a\nx\n", None, "no column of numbers.*a is text .row 2: 'x'"),
        ("a,b\n", None, "has a header and no rows"),
        ("", None, "is empty"),
        ("\n", None, "row 1 must give every column a name"),
        ("a,,b\n1,2,3\n", None, "row 1 must give every column a name"),
        ("a,b,a\n1,2,3\n", None, "row 1 names more than one column 'a'"),
        ("1,2\n3,4\n", None, "row 1 must be a header.*got the numbers 1, 2"),
        (
            'a,b\n1,"2\n3,4\n',
            None,
            "after row 1, is not a CSV table: unexpected end of data",
        ),
        ("a,b\n1,2\n3,\0\n", None, "zero bytes.*binary"),
        (b"\x89PNG\r\n\x1a\n\0\0", None, "is not UTF-8 text"),
        ("a,b\n1,2\n".encode("utf-16"), None, "is not UTF-8 text"),
        (
            "a,gr\u00f6\u00dfe\n1,2\n".encode("latin-1"),
            None,
            "is not UTF-8 text.*byte 0xf6.*Save it as UTF-8",
        ),
    ],
)
def test_csv_errors_give_the_position(tmp_path: Path, content, columns, message: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(ValueError, match=f"(?s){path}.*{message}"):
        load_series(path, columns)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int16, np.uint8, np.bool_, ">f8"])
def test_npy_real_numbers_become_float64(tmp_path: Path, dtype) -> None:
    array = np.array([[0, 1], [1, 0], [1, 1]], dtype)
    np.save(tmp_path / "x.npy", array)
    recording = load_series(tmp_path / "x.npy")
    np.testing.assert_array_equal(recording.values, array.astype(np.float64))
    assert (recording.values.dtype, recording.names) == (np.dtype(np.float64), ("0", "1"))
    np.testing.assert_array_equal(
        load_series(tmp_path / "x.npy", ("1",)).values, array[:, 1:].astype(np.float64)
    )


def test_npy_of_one_column(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(4))
    np.testing.assert_array_equal(
        load_series(tmp_path / "x.npy").values, [[0.0], [1.0], [2.0], [3.0]]
    )


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 3, 4)), r"\[T\] or \[T, C\]; got shape \(2, 3, 4\)"),
        (np.zeros(()), r"got shape \(\)"),
        (np.zeros((0, 2)), r"non-empty.*got shape \(0, 2\)"),
        (np.zeros(3, complex), "dtype complex128.*real and imaginary"),
        (np.array(["1", "2"]), "dtype <U1"),
        (np.array(["2020-01-01"], "datetime64[D]"), "dtype datetime64"),
        (np.zeros(3, [("a", "f8")]), "must hold real numbers"),
        (np.array([1, None], object), "Python objects in dtype"),
        (
            np.array([[1.0, 2.0], [3.0, np.nan], [np.inf, 5.0]]),
            r"step 1 \(from 0\), column '1' is nan, one of 2 values",
        ),
        (np.array([1.0, -np.inf]), r"step 1 \(from 0\), column '0' is -inf"),
    ],
)
def test_npy_errors(tmp_path: Path, array: np.ndarray, message: str) -> None:
    path = tmp_path / "x.npy"
    np.save(path, array, allow_pickle=True)
    with pytest.raises(ValueError, match=f"{path}.*{message}"):
        load_series(path)


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
@pytest.mark.parametrize(
    "content", [b"", b"junk" * 50, b"\x93NUMPY\x01\x00", b"PK\x03\x04" + bytes(40)]
)
def test_invalid_bytes_with_a_numpy_suffix(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = write(tmp_path, content, f"x{suffix}")
    with pytest.raises(ValueError, match=f"cannot read {path} as a {suffix} file of numbers"):
        load_series(path)


def test_truncated_npy(tmp_path: Path) -> None:
    np.save(tmp_path / "whole.npy", np.arange(100.0))
    path = write(tmp_path, (tmp_path / "whole.npy").read_bytes()[:-8], "x.npy")
    with pytest.raises(ValueError, match=f"cannot read {path}"):
        load_series(path)
    with pytest.raises(ValueError, match=r"has no column 'a'; its columns are 0"):
        load_series(tmp_path / "whole.npy", ("a",))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_npz(tmp_path: Path, save) -> None:
    save(tmp_path / "one.npz", x=np.array([[1, 2], [3, 4]]))
    recording = load_series(tmp_path / "one.npz")
    np.testing.assert_array_equal(recording.values, [[1.0, 2.0], [3.0, 4.0]])
    assert recording.names == ("x[0]", "x[1]")

    path = tmp_path / "many.npz"
    save(
        path,
        a=np.arange(3),
        b=np.arange(3) / 2,
        c=np.arange(4),
        d=np.zeros((3, 2)),
        e=np.array([1, None]),
    )
    recording = load_series(path, ("b", "a"))
    np.testing.assert_array_equal(recording.values, [[0.0, 0.0], [0.5, 1.0], [1.0, 2.0]])
    assert recording.names == ("b", "a")
    assert load_series(path, ("d",)).names == ("d[0]", "d[1]")
    for columns, message in [
        (None, "with `columns`; it holds 5: a, b, c, d, e"),
        (("a", "z"), "has no array 'z'; its arrays are a, b, c, d, e"),
        (("a", "c"), r"of one T; got a \(3,\), c \(4,\)"),
        (("a", "d"), r"of one T; got a \(3,\), d \(3, 2\)"),
        (("e",), "Object arrays cannot be loaded"),
    ]:
        with pytest.raises(ValueError, match=f"{path}.*{message}"):
            load_series(path, columns)


def test_npz_without_arrays(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("readme.txt", "no array")
    with pytest.raises(ValueError, match="cannot read .*x.npz"):
        load_series(tmp_path / "x.npz")


def test_path_and_columns_are_validated_first(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no file .*absent.csv"):
        load_series(tmp_path / "absent.csv")
    with pytest.raises(ValueError, match="one of .csv, .tsv, .parquet, .npy, .npz; got '.xlsx'"):
        load_series(tmp_path / "x.xlsx")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(IsADirectoryError, match="folder.csv is a folder"):
        load_series(tmp_path / "folder.csv")
    path = write(tmp_path, TABLE)
    with pytest.raises(TypeError, match=r"got the string 'a'. Write \('a',\)"):
        load_series(path, "a")
    for columns in ((), ("a", "a")):
        with pytest.raises(ValueError, match="at least one column, and none twice"):
            load_series(path, columns)
