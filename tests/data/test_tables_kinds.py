"""Every kind of table that people have is read with the numbers that polars reads, bit for bit."""

import decimal
import gzip
import io

import numpy as np
import polars as pl
import pytest

from tbptt.data import BadSample, TableWarning, load_series, open_source
from tbptt.data.tables import convert, csv_layout

RNG = np.random.default_rng(0)
T = 200
A, B = RNG.normal(size=T) * 10.0 ** RNG.integers(-12, 12, T), RNG.normal(size=T) / 3
FRAME = pl.DataFrame({"a": A, "b": B})


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TBPTT_DATA", str(tmp_path / "cache"))


def csv(frame=FRAME, **options) -> str:
    return frame.write_csv(**options)


def zstd(text: str) -> bytes:
    """Return a frame of zstd of one block that is not compressed."""
    data = text.encode()
    block = (len(data) << 3 | 1).to_bytes(3, "little")
    return b"\x28\xb5\x2f\xfd\xa0" + len(data).to_bytes(4, "little") + block + data


DECIMAL_COMMA = csv(separator=";").replace(".", ",")
INDEX = csv(FRAME.with_row_index("")).replace('""', "")
# name: (file name, content, options of polars.read_csv, what is noted)
KINDS = {
    "plain": ("x.csv", csv(), {}, []),
    "semicolon": ("x.csv", csv(separator=";"), {"separator": ";"}, ["the separator is ';'"]),
    "decimal comma": (
        "x.csv",
        DECIMAL_COMMA,
        {"separator": ";", "decimal_comma": True},
        ["the separator is ';'", "decimal comma in a, b"],
    ),
    "tab": ("x.csv", csv(separator="\t"), {"separator": "\t"}, ["the separator is tab"]),
    "tsv": ("x.tsv", csv(separator="\t"), {"separator": "\t"}, ["the separator is tab"]),
    "bar": ("x.csv", csv(separator="|"), {"separator": "|"}, ["the separator is '|'"]),
    "byte order mark": ("x.csv", "\ufeff" + csv(), {}, []),
    "crlf": ("x.csv", csv(line_terminator="\r\n"), {}, []),
    "all quoted": ("x.csv", csv(quote_style="always"), {}, []),
    "index": (
        "x.csv",
        INDEX,
        {"columns": ["a", "b"]},
        ["column 'index', a row index, is left out"],
    ),
    "index read again": (
        "x.csv",
        csv(FRAME.with_row_index("Unnamed: 0")),
        {"columns": ["a", "b"]},
        ["column 'Unnamed: 0', a row index, is left out"],
    ),
    "rows end in a comma": (
        "x.csv",
        csv().replace("\n", ",\n"),
        {"columns": ["a", "b"]},
        ["rows end in a separator; the empty column after it is left out"],
    ),
    "rows below the header end in a comma": (
        "x.csv",
        csv().replace("\n", ",\n").replace(",\n", "\n", 1),
        {"truncate_ragged_lines": True},
        ["rows end in a separator; the empty column after it is left out"],
    ),
    "gzip": ("x.csv.gz", gzip.compress(csv().encode()), {}, []),
    "zstd": ("x.csv.zst", zstd(csv()), {}, []),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_csv_file_has_the_numbers_of_polars(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(convert, "BLOCK", 64)
    name, content, options, notes = KINDS[kind]
    path, data = tmp_path / name, content if isinstance(content, bytes) else content.encode()
    path.write_bytes(data)
    wanted = pl.read_csv(io.BytesIO(data), **options).to_numpy()
    assert wanted.dtype == np.float64 and wanted.shape == (T, 2)
    np.testing.assert_array_equal(wanted, FRAME.to_numpy())
    recording = load_series(path)
    assert recording.names == ("a", "b")
    np.testing.assert_array_equal(recording.values, wanted)
    source = open_source(path, dtype=np.float64)
    assert (source.names, source.lengths) == (("a", "b"), (T,))
    assert source.notes == tuple(f"{path}: {note}" for note in notes)
    for start, stop in [(0, T), (60, 70), (199, 200), (0, 0)]:
        np.testing.assert_array_equal(source.read(start, stop), wanted[start:stop])


def test_a_parquet_file_has_the_numbers_of_polars(tmp_path, monkeypatch):
    monkeypatch.setattr(convert, "BLOCK", 64)
    frame = FRAME.with_columns(
        pl.Series("money", [decimal.Decimal(i) / 100 for i in range(T)], pl.Decimal(9, 2)),
        pl.Series("day", range(T)).cast(pl.Date),
        pl.Series("at", [i * 10**9 + 7000 for i in range(T)]).cast(pl.Datetime("ns", "UTC")),
        pl.Series("note", ["x"] * T),
        pl.Series("flag", [i % 2 == 0 for i in range(T)]),
        pl.Series("big", [2**53 - i for i in range(T)]),
    )
    frame.write_parquet(tmp_path / "x.parquet")
    numbers = ["a", "b", "money", "flag", "big"]
    wanted = frame.select(pl.col(numbers).cast(pl.Float64)).to_numpy()
    assert wanted[3, 2] == 0.03 and wanted[1, 4] == 2**53 - 1
    with pytest.warns(TableWarning) as warned:
        source = open_source(tmp_path / "x.parquet", dtype=np.float64)
    assert [str(w.message).partition("column ")[2] for w in warned] == [
        "'day' is left out: dates, of which one column can be the time (`time`)",
        "'at' is left out: dates, of which one column can be the time (`time`)",
        "'note' is left out: String, not numbers",
    ]
    np.testing.assert_array_equal(source.read(0, T), wanted)
    timed = open_source(tmp_path / "x.parquet", numbers, time="at", dtype=np.float64)
    np.testing.assert_array_equal(timed.times(1, T), frame["at"].to_numpy().astype("M8[us]")[1:])
    np.testing.assert_array_equal(load_series(tmp_path / "x.parquet", numbers).values, wanted)


def test_what_a_column_holds_is_decided_by_all_of_its_rows(tmp_path):
    """The notes are empty in the first 1,500 rows, the flags are written as words."""
    text = ["a,note,ok\n", *(f"{i},,{i % 2 == 0}\n" for i in range(1500)), "7,see below,True\n"]
    (tmp_path / "x.csv").write_text("".join(text))
    with pytest.warns(
        TableWarning, match=r"x.csv: column 'note' is left out: text \(row 1502: 'see below'\)"
    ):
        source = open_source(tmp_path / "x.csv")
    assert source.names == ("a", "ok")
    np.testing.assert_array_equal(source.read(1498, 1501), [[1498, 1], [1499, 0], [7, 1]])


def test_a_name_with_the_marks_of_a_pattern_is_one_file(tmp_path, monkeypatch):
    monkeypatch.setenv("TBPTT_DATA", str(tmp_path / "[c]*"))
    for name in ("x[1]*.csv", "x[1]*.parquet"):
        write = FRAME.write_csv if name.endswith("csv") else FRAME.write_parquet
        write(tmp_path / name)
        np.testing.assert_array_equal(
            open_source(tmp_path / name, dtype=np.float64).read(0, T), FRAME.to_numpy()
        )


def test_a_column_without_values_is_left_out(tmp_path):
    frame = pl.DataFrame({"a": [1.5, 2.5], "b": pl.Series([None, None], dtype=pl.Float64)})
    frame.write_csv(tmp_path / "x.csv")
    frame.write_parquet(tmp_path / "x.parquet")
    for path in (tmp_path / "x.csv", tmp_path / "x.parquet"):
        with pytest.warns(TableWarning, match="column 'b' is left out: it has no values"):
            source = open_source(path)
        assert source.names == ("a",) and source.read(0, 2).tolist() == [[1.5], [2.5]]
        with pytest.raises(BadSample, match="column 'b' is missing"):
            open_source(path, ("a", "b")).read(0, 2)


def test_a_decimal_comma_after_many_whole_numbers_is_found(tmp_path):
    rows = [f"{i};{i}\n" for i in range(1200)]
    (tmp_path / "x.csv").write_text("".join(["a;b\n", *rows, "1,5;2\n"]))
    source = open_source(tmp_path / "x.csv")
    assert source.read(1200, 1201).tolist() == [[1.5, 2.0]]
    assert "decimal comma in a" in source.notes[1]


# content, columns, the message, and the content or options that its remedy leads to
REFUSED = {
    "one cell is no number": (
        "a,b\n1,2\n3,x\n5,6\n",
        {},
        r"x.csv, row 3, column 'b' is not a number: 'x', one of 1 such cells of 3. "
        r"Correct the file, or exclude the column: without=\('b',\) \(--without b\)",
        {"columns": ("a",)},
        [[1], [3], [5]],
    ),
    "a column of text": (
        "a,b\n1,x\n3,y\n",
        {"columns": ("a", "b")},
        "row 2, column 'b' is not a number: 'x', one of 2 such cells of 2. .*exclude the column",
        {"columns": ("a",)},
        [[1], [3]],
    ),
    "no numbers": (
        'a,b\n"1.000,5",x\n',
        {},
        r"no column of numbers.*Write its numbers as 1.5, or as 1,5 in a file with ';'",
        "a;b\n1000,5;x\n",
        [[1000.5]],
    ),
    "a long row": (
        "a,b\n1,2\n3,4,5\n6,7\n",
        {},
        "x.csv, row 3 has 3 cells; the header has 2 columns. Correct or remove the row",
        "a,b\n1,2\n6,7\n",
        [[1, 2], [6, 7]],
    ),
    "a short row": (
        'a,b\n1,"2\n"\n3\n6,7\n',
        {},
        "x.csv, row 3 has 1 cells; the header has 2 columns. Correct or remove the row",
        'a,b\n1,"2\n"\n3,4\n6,7\n',
        [[1, 2], [3, 4], [6, 7]],
    ),
    "a name twice": (
        "a,a\n1,2\n",
        {},
        "row 1 names more than one column 'a'. Rename one",
        "a,b\n1,2\n",
        [[1, 2]],
    ),
    "no names": (
        "1,2\n3,4\n",
        {},
        "row 1 must be a header.*got the numbers 1, 2. Add a row of names",
        "a,b\n1,2\n3,4\n",
        [[1, 2], [3, 4]],
    ),
    "not UTF-8": (
        "a,gr\u00f6\u00dfe\n1,2\n".encode("latin-1"),
        {},
        "is not UTF-8 text.*byte 0xf6 in row 1.*Save it as UTF-8",
        "a,gr\u00f6\u00dfe\n1,2\n",
        [[1, 2]],
    ),
}


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.filterwarnings("ignore::tbptt.data.TableWarning")
def test_a_refused_table_is_read_after_the_remedy_of_the_message(what, tmp_path):
    content, options, message, remedy, wanted = REFUSED[what]
    path = tmp_path / "x.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        open_source(path, **options)
    if isinstance(remedy, str):
        path.write_text(remedy)
        remedy = {}
    np.testing.assert_array_equal(open_source(path, **remedy).read(0, len(wanted)), wanted)


def test_a_damaged_packed_file_is_named(tmp_path):
    whole = gzip.compress(csv().encode())
    for content in (whole[:-100], b"no gzip at all", whole[:1000] + b"xxxx" + whole[1004:]):
        (tmp_path / "x.csv.gz").write_bytes(content)
        with pytest.raises(ValueError, match=r"x.csv.gz is damaged: .*Copy or write it again"):
            open_source(tmp_path / "x.csv.gz")
    (tmp_path / "x.csv.gz").write_bytes(whole)
    assert open_source(tmp_path / "x.csv.gz").lengths == (T,)


@pytest.mark.parametrize("chunk", [16, 100, 1 << 20])
@pytest.mark.parametrize("packed", [False, True])
def test_blocks_end_at_lines_and_not_within_quotes(chunk, packed, tmp_path, monkeypatch):
    """A text of several lines, quotes and separators stays one cell, wherever a block ends."""
    monkeypatch.setattr(csv_layout, "CHUNK", chunk)
    said = ['dry, "cold"', "two\nlines\n\nand, more\n", '"', "", "plain", "\n\n"]
    notes = FRAME.with_columns(note=pl.Series([said[i % 6] for i in range(T)]), c=1 + pl.col("b"))
    path = tmp_path / ("x.csv.gz" if packed else "x.csv")
    data = csv(notes).encode()
    path.write_bytes(gzip.compress(data) if packed else data)
    wanted = pl.read_csv(io.BytesIO(data)).select("a", "b", "c").to_numpy()
    with pytest.warns(TableWarning, match="column 'note' is left out: text"):
        source = open_source(path, dtype=np.float64)
    np.testing.assert_array_equal(source.read(0, T), wanted)
    one = open_source(path, ("c", "a"), dtype=np.float64)
    np.testing.assert_array_equal(one.read(0, T), wanted[:, [2, 0]])


def test_what_the_first_rows_promise_and_later_ones_do_not_keep(tmp_path):
    """Month and day are told apart in row 1,300; a cell of text and a missing one come late."""
    days = pl.date_range(pl.date(2023, 1, 1), pl.date(2026, 12, 31), eager=True)
    days = pl.concat([days.filter(days.dt.day() <= 12), days.filter(days.dt.day() > 12)])
    frame = pl.DataFrame({"when": days, "x": range(len(days)), "y": range(len(days))})
    path = tmp_path / "x.csv"
    frame.write_csv(path, date_format="%m/%d/%Y")
    source = open_source(path, sort=True)
    times = source.times(0, len(days))
    np.testing.assert_array_equal(times, np.sort(days.to_numpy().astype("M8[us]")))
    with pytest.raises(ValueError, match="x.csv, row 578 .*'when' falls from 2026-12-12 to 2023-"):
        open_source(path)
    frame = frame.sort("when").with_columns(x=pl.int_range(pl.len()))
    path.write_text(frame.write_csv().replace(str(frame["when"][1300]), "later"))
    with pytest.warns(TableWarning, match=r"dates, but for 1 of 1461 cells \(row 1302: 'later'\)"):
        assert open_source(path).time is None
    frame = frame.with_columns(y=pl.when(pl.col("x") != 1200).then(pl.col("x")))
    frame.write_csv(path)
    source = open_source(path, missing="hold")
    assert source.read(1199, 1202).tolist() == [[1199, 1199], [1200, 1199], [1201, 1201]]
    assert "1 values are missing (y: 1), in 1 rows, first row 1202 (the header" in source.notes[-1]
    path.write_text(path.read_text().replace(",1201,1201\n", ",1201,x\n"))
    with pytest.raises(ValueError, match="row 1203, column 'y' is not a number: 'x', one of 1 suc"):
        open_source(path)
    path.write_text(path.read_text().replace(",1201,x\n", ",1201\n"))
    with pytest.raises(ValueError, match="x.csv, row 1203 has 2 cells; the header has 3 columns"):
        open_source(path)
