"""Files read by rows equal the arrays that were written, and errors give the position."""

import builtins

import numpy as np
import polars as pl
import pytest

from tbptt.data import BadSample, TableWarning, open_source
from tbptt.data.tables import convert as table_convert
from tests.support.table_files import ROWS, write

FORMATS = ["c.npy", "f.npy", "ints.npy", "x.csv", "x.parquet"]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TBPTT_DATA", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tables"


@pytest.mark.parametrize("name", FORMATS)
def test_rows_in_any_order_equal_the_rows_that_were_written(name, tmp_path, monkeypatch):
    monkeypatch.setattr(table_convert, "BLOCK", 64)
    wanted = (ROWS * 100).astype(np.int16).astype(np.float32) if name == "ints.npy" else ROWS
    source = open_source(write(tmp_path / name))
    names = ("a", "b", "c") if name.startswith("x") else ("0", "1", "2")
    assert (source.names, source.lengths) == (names, (1000,))
    chosen = open_source(tmp_path / name, (names[2], names[0]), dtype=np.float64)
    rng = np.random.default_rng(1)
    places = [
        (0, 0),
        (999, 1000),
        (0, 1000),
        *(sorted(rng.integers(0, 1001, 2)) for _ in range(40)),
    ]
    places += [
        (at, at + 40) for at in range(0, 960, 30)
    ]  # consecutive and overlapping, as a forecast reads
    for start, stop in places:
        got = source.read(int(start), int(stop))
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, wanted[start:stop])
        np.testing.assert_array_equal(
            chosen.read(int(start), int(stop)), wanted[start:stop][:, [2, 0]].astype(float)
        )
    for start, stop in [(-1, 3), (5, 1001), (4, 3)]:
        with pytest.raises(IndexError, match="1000 rows"):
            source.read(start, stop)


def test_a_fresh_array_each_time(tmp_path):
    for name in FORMATS:
        source = open_source(write(tmp_path / name))
        first = source.read(10, 20)
        kept = first.copy()
        first[:] = 7
        np.testing.assert_array_equal(source.read(10, 20), kept)


def test_one_column_needs_no_second_axis(tmp_path):
    np.save(tmp_path / "x.npy", ROWS[:, 0])
    np.testing.assert_array_equal(open_source(tmp_path / "x.npy").read(3, 9), ROWS[3:9, :1])


def test_several_files_are_recordings_one_after_another(tmp_path):
    paths = [
        write(tmp_path / f"{i}.csv", ROWS[a:b])
        for i, (a, b) in enumerate([(0, 10), (10, 11), (11, 400)])
    ]
    paths.append(write(tmp_path / "3.parquet", ROWS[400:500]))
    source = open_source(paths)
    assert source.lengths == (10, 1, 389, 100)
    for start, stop in [(0, 500), (8, 12), (10, 11), (395, 405), (500, 500)]:
        np.testing.assert_array_equal(source.read(start, stop), ROWS[start:stop])
    assert source.path_of(0) == f"{paths[0]}, row 2 (the header is row 1)"
    assert source.path_of(10) == f"{paths[1]}, row 2 (the header is row 1)"
    assert source.path_of(405) == f"{paths[3]}, row 5 (from 0)"
    write(tmp_path / "other.csv", ROWS[:5], ("a", "c", "b"))
    with pytest.raises(
        ValueError, match=r"other.csv has the columns a, c, b; .*0.csv has a, b, c. Name the ones"
    ):
        open_source([paths[0], tmp_path / "other.csv"])
    np.testing.assert_array_equal(
        open_source([tmp_path / "other.csv"], ("b", "c")).read(0, 5), ROWS[:5][:, [2, 1]]
    )


def test_parquet_keeps_its_precision_and_its_nulls(tmp_path, cache):
    big = 2**40 + np.arange(5)
    columns = {"i": big, "b": [True, False, True, None, False], "f": np.arange(5, dtype=np.float32)}
    pl.DataFrame(columns).with_columns(pl.col("f").cast(pl.Float32)).write_parquet(
        tmp_path / "x.parquet"
    )
    np.testing.assert_array_equal(
        open_source(tmp_path / "x.parquet", ("i",), dtype=np.float64).read(0, 5)[:, 0], big
    )
    with pytest.raises(BadSample, match="row 3 .*column 'b' is missing or NaN"):
        open_source(tmp_path / "x.parquet").read(0, 5)
    np.testing.assert_array_equal(
        open_source(tmp_path / "x.parquet", ("f", "b")).read(0, 3), [[0, 1], [1, 0], [2, 1]]
    )
    assert {np.load(made / "values.npy").dtype.str for made in cache.iterdir()} == {"<f4", "<f8"}, (
        "the smallest dtype that fits"
    )


BAD = [
    (
        "x.csv",
        lambda text: text.replace("\n4,5", "\n4,nan"),
        "row 3 .*column 'b' is missing or NaN",
        "read",
    ),
    (
        "x.csv",
        lambda text: text.replace("\n4,5", "\n4,"),
        "row 3 .*column 'b' is missing or NaN",
        "read",
    ),
    (
        "x.csv",
        lambda text: text.replace("\n4,5", "\n4,-inf"),
        "row 3 .*column 'b' is -inf, not a finite float32",
        "read",
    ),
    (
        "x.csv",
        lambda text: text.replace("\n4,5", "\n4,1e300"),
        "row 3 .*column 'b' is inf, not a finite float32",
        "read",
    ),
    (
        "x.csv",
        lambda text: text.replace("\n4,5", "\n4,five"),
        "row 3, column 'b' is not a number: 'five'",
        "open",
    ),
    (
        "x.csv",
        lambda text: text.replace("\n4,5", "\n4"),
        "row 3 has 2 cells; the header has 3",
        "open",
    ),
    (
        "x.csv",
        lambda text: text.replace("\n4,5", "\n4,5,5"),
        "row 3 has 4 cells; the header has 3",
        "open",
    ),
    (
        "x.csv",
        lambda text: text.replace("\n4,5", "\n\n4,5"),
        "row 3 .*column 'a' is missing or NaN",
        "read",
    ),
    (
        "x.csv",
        lambda text: text[:-4],
        "row 4 has 2 cells and is the last one: the file ends in the middle",
        "open",
    ),
    ("x.csv", lambda text: text.split("\n")[0], "has a header and no rows", "open"),
    ("x.csv", lambda text: text[6:], "row 1 must be a header", "open"),
    ("x.csv", lambda text: "", "is empty", "open"),
    ("x.csv", lambda text: "a,b\0\n1,2\n", "holds zero bytes", "open"),
    (
        "x.txt",
        lambda text: text,
        "paths must end in one of .npy, .csv, .tsv, .parquet, or .csv.gz, .csv.zst; got '.txt'",
        "open",
    ),
]


@pytest.mark.parametrize(("name", "spoil", "message", "when"), BAD, ids=range(len(BAD)))
def test_bad_csv(name, spoil, message, when, tmp_path, cache):
    text = "a,b,c\n1,2,3\n4,5,6\n7,8,9\n"
    (tmp_path / name).write_text(spoil(text))
    wanted = BadSample if when == "read" else ValueError
    with pytest.raises(wanted, match=message) as caught:
        source = open_source(tmp_path / name)
        assert when == "read", "open_source must raise the error"
        source.read(0, 3)
    assert str(tmp_path / name) in str(caught.value)
    assert when == "read" or not cache.exists() or not list(cache.iterdir()), (
        "a failed conversion leaves nothing"
    )


def test_empty_lines_at_the_end_and_quotes_are_valid(tmp_path):
    text = '\ufeff"a" , b,note\r\n"1",2,"x, ""y""\nz"\r\n 3 ,4,é\r\n\r\n \r\n'
    (tmp_path / "x.csv").write_text(text, encoding="utf-8", newline="")
    np.testing.assert_array_equal(
        open_source(tmp_path / "x.csv", ("a", "b")).read(0, 2), [[1, 2], [3, 4]]
    )
    with pytest.raises(
        ValueError, match="row 2, column 'note' is not a number.*exclude the column"
    ):
        open_source(tmp_path / "x.csv", ("a", "note"))
    with pytest.warns(TableWarning, match=r"column 'note' is left out: text \(row 2: 'x, "):
        assert open_source(tmp_path / "x.csv").names == ("a", "b")


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["c.npy", "f.npy", "x.parquet"])
def test_a_bad_value_is_reported_with_its_position(name, value, tmp_path):
    rows = ROWS.copy()
    rows[777, 1] = value
    first = write(tmp_path / ("first.npy" if name.endswith("npy") else "first.parquet"))
    source = open_source([first, write(tmp_path / name, rows)])
    source.read(1700, 1777)
    with pytest.raises(BadSample, match=f"{name}, row 777 .*column '(1|b)' is .*masking_bad"):
        source.read(1770, 1790)


def test_truncated_and_invalid_files(tmp_path):
    for name in ("c.npy", "x.parquet"):
        path = write(tmp_path / name)
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(ValueError, match=f"cannot read .*{name} as a .*cut short"):
            open_source(path)
    np.save(tmp_path / "o.npy", np.array(["a"], object), allow_pickle=True)
    for name, rows in [
        ("t.npy", np.array(["a"])),
        ("e.npy", np.zeros((0, 2))),
        ("d.npy", np.zeros((2, 2, 2))),
    ]:
        np.save(tmp_path / name, rows)
    for name, message in [
        ("o", "Python objects"),
        ("t", "real numbers"),
        ("e", "non-empty"),
        ("d", "non-empty array"),
    ]:
        with pytest.raises(ValueError, match=message):
            open_source(tmp_path / f"{name}.npy")
    pl.DataFrame({"a": [1.0], "when": ["today"]}).write_parquet(tmp_path / "s.parquet")
    with pytest.raises(
        ValueError, match="s.parquet, column 'when' holds String, not numbers. Exclude the column"
    ):
        open_source(tmp_path / "s.parquet", ("a", "when"))
    with pytest.warns(TableWarning, match="'when' is left out: String, not numbers"):
        assert open_source(tmp_path / "s.parquet").names == ("a",)
    assert open_source(tmp_path / "s.parquet", ("a",)).names == ("a",)
    with pytest.raises(ValueError, match="has no column 'b'; its columns are a, when"):
        open_source(tmp_path / "s.parquet", ("b",))


def test_without_polars_npy_works_and_other_formats_raise_an_import_error(tmp_path, monkeypatch):
    paths = [write(tmp_path / name) for name in ("c.npy", "x.csv", "x.parquet")]
    real = builtins.__import__

    def no_polars(name, *args, **options):
        if name.partition(".")[0] == "polars":
            raise ImportError("no module named polars")
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", no_polars)
    assert open_source(paths[0]).lengths == (1000,)
    for path in paths[1:]:
        with pytest.raises(ImportError, match=rf"{path.name} needs polars.*tbptt\[data\]"):
            open_source(path)


def test_argument_errors(tmp_path):
    path = write(tmp_path / "c.npy")
    for call, error, message in [
        (lambda: open_source([]), ValueError, "at least one file"),
        (lambda: open_source(tmp_path / "no.npy"), FileNotFoundError, "no file .*no.npy"),
        (lambda: open_source(path, "0"), TypeError, r"Write \('0',\)"),
        (lambda: open_source(path, ()), ValueError, "none twice"),
        (lambda: open_source(path, ("0", "0")), ValueError, "none twice"),
        (lambda: open_source(path, ("9",)), ValueError, "no column '9'; its columns are 0, 1, 2"),
        (lambda: open_source(path, dtype=np.int32), ValueError, "float32 or float64"),
    ]:
        with pytest.raises(error, match=message):
            call()
