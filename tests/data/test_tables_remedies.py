"""Every error of a table names file and place, and what it advises makes the table readable."""

import numpy as np
import pytest

from tbptt.data import BadSample, load_series, open_source

PANEL = "who,day,x,does\n1,2024-01-01,1,a\n1,2024-01-02,2,a\n2,2024-01-01,3,b\n2,2024-01-02,4,b\n"
MIXED = "who,day,x\n1,2024-01-01,1\n2,2024-01-01,3\n1,2024-01-02,2\n2,2024-01-02,4\n"
# content, options, the message, and the content or the options of its remedy
CASES = {
    "no such column": (
        "a,b\n1,2\n3,4\n",
        {"columns": ("c",)},
        "has no column 'c'; its columns are a, b. Name one of them",
        {"columns": ("b",)},
    ),
    "no such group": (PANEL, {"group": "id"}, "has no column 'id'; .*Name one", {"group": "who"}),
    "falling dates": (
        PANEL,
        {},
        r"row 4 .*'day' falls from 2024-01-02 to 2024-01-01; .*pass sort=True \(--sort\)",
        {"sort": True},
    ),
    "falling dates, the file sorted": (
        PANEL,
        {},
        "Sort the file by time",
        "day,x\n2024-01-01,1\n2024-01-02,2\n",
    ),
    "mixed groups": (
        MIXED,
        {"group": "who"},
        r"row 4 .*'who': group '1' comes back .*pass sort=True \(--sort\)",
        {"group": "who", "sort": True},
    ),
    "mixed groups, the file sorted": (
        MIXED,
        {"group": "who"},
        "sort the file by group, then time",
        PANEL,
    ),
    "rows of one group each": (
        "who,x\n1,1\n2,2\n3,3\n",
        {"group": "who"},
        r"row 3 .*3 recordings in 3 rows, .*leave out groups",
        {},
    ),
    "rows of one group each, mixed": (
        "t,who,x\n1,1,1\n2,2,3\n3,1,2\n4,2,4\n",
        {"group": "who", "time": "t"},
        r"row 3 .*4 recordings in 4 rows, .*or pass sort=True \(--sort\)",
        {"group": "who", "time": "t", "sort": True},
    ),
    "falling dates of several groups": (
        PANEL,
        {},
        r"'day' falls .*or name the column of the recordings by `group` \(--group\)",
        {"group": "who"},
    ),
    "a row of no group, removed": (
        "who,x\n1,1\n1,1\n,2\n2,3\n2,3\n",
        {"group": "who"},
        "row 4 .*or remove the row",
        "who,x\n1,1\n1,1\n2,3\n2,3\n",
    ),
    "no time": ("t,x\nsoon,1\n", {"gaps": "split"}, "or leave the gaps", {}),
    "no column of that name to leave out": (
        "a,b\n1,2\n3,4\n",
        {"without": ("c",)},
        r"without \(--without\) must name columns of .*, a, b; got 'c'",
        {"without": ("b",)},
    ),
    "columns and others left out": (
        "a,b\n1,2\n3,4\n",
        {"columns": ("a",), "without": ("b",)},
        "without .*must name some of columns, a; got 'b'",
        {"columns": ("a",)},
    ),
    "nothing left": (
        "a,b\n1,2\n3,4\n",
        {"without": ("a", "b")},
        "has no column of numbers besides the time, the groups and those of `without`.",
        {"without": ("a",)},
    ),
    "a bad target": (
        "a,b\n1,2\n2,x\n3,4\n",
        {"target": "b"},
        r"row 3, column 'b' is not a number: .*or name another target \(--target\)",
        {"target": "a", "without": ("b",)},
    ),
    "a missing value": (
        "a,b\n1,2\n2,\n3,4\n",
        {"then": "read"},
        r"row 3 .*'b' is missing .*exclude the column \(without=\('b',\), --without b\)",
        {"without": ("b",)},
    ),
    "a missing value, held": (
        "a,b\n1,2\n2,\n3,4\n",
        {"then": "read"},
        'or open it with missing="mask", "hold" or "interpolate"',
        {"missing": "hold"},
    ),
    "a row of no group": (
        "who,x\n1,1\n1,1\n,2\n2,3\n2,3\n",
        {"group": "who"},
        "row 4 .*'who' is missing, so the row belongs to no group. Fill it in",
        "who,x\n1,1\n1,1\n2,2\n2,3\n2,3\n",
    ),
    "two labels": (
        PANEL.replace(",2024-01-02,2,a", ",2024-01-02,2,b"),
        {"group": "who", "label": "does"},
        r"row 3 .*'does' is 'b', but 'a' in the row before, .*: correct it",
        PANEL,
    ),
    "two labels, without the group": (
        PANEL,
        {"label": "does", "time": "x"},
        r"row 4 .*'does' is 'b', .*give `group` \(--group\), a column that changes there",
        {"label": "does", "time": "x", "group": "who"},
    ),
    "the label is an input": (
        PANEL,
        {"columns": ("x", "does"), "label": "does", "group": "who"},
        "label must not be one of columns.*Leave it out of columns",
        {"columns": ("x",), "label": "does", "group": "who"},
    ),
    "gaps without a time": (
        "t,x\n1,1\n2,2\n9,3\n10,4\n11,5\n",
        {"gaps": "split"},
        r"has no column of times, so gaps='split' .*by time=... \(--time\)",
        {"gaps": "split", "time": "t"},
    ),
    "sorted by nothing": (
        "t,x\n2,1\n1,2\n",
        {"sort": True},
        r"neither groups nor a time to sort by; name them \(`group`, `time`\)",
        {"sort": True, "time": "t"},
    ),
    "dates as numbers": (
        PANEL,
        {"columns": ("x", "day"), "group": "who"},
        r"column 'day' holds dates, not numbers. .*or name it as the time \(`time`, --time\)",
        {"columns": ("x",), "time": "day", "group": "who"},
    ),
    "a time of text": (
        "t,x\nsoon,1\nlater,2\n",
        {"time": "t"},
        "row 2 .*'t' is neither a number nor a date: 'soon'. Write dates as 2024-01-31",
        "t,x\n2024-01-31,1\n2024-02-01,2\n",
    ),
    "one cell of text": (
        "a,b\n1,2\n2,x\n3,4\n",
        {},
        r"row 3, column 'b' is not a number: 'x', .*: without=\('b',\) \(--without b\)",
        {"without": ("b",)},
    ),
    "a column without a name": ("a,,c\n1,2,3\n", {}, "row 1 .*Write the missing", "a,b,c\n1,2,3\n"),
    "an open quote": ('a,b\n1,"2\n3,4\n', {}, "after row 1.*Correct the quotes", "a,b\n1,2\n3,4\n"),
    "a header alone": ("a,b\n", {}, "has a header and no rows.*Write it again", "a,b\n1,2\n"),
    "an empty file": ("", {}, "is empty; expected a row.*Write it again", "a,b\n1,2\n"),
    "zero bytes": ("a,b\n1,\0\n", {}, "holds zero bytes.*Export it as CSV", "a,b\n1,2\n"),
}  # fmt: skip


@pytest.mark.parametrize("what", CASES)
@pytest.mark.filterwarnings("ignore::tbptt.data.TableWarning")
def test_the_advice_of_an_error_makes_the_table_readable(what, tmp_path, monkeypatch):
    monkeypatch.setenv("TBPTT_DATA", str(tmp_path / "cache"))
    content, options, message, remedy = CASES[what]
    path = tmp_path / "x.csv"
    path.write_text(content)
    before = "label must", "must name"  # refused before a file is opened
    where = "" if any(said in message for said in before) else "x.csv"
    options = dict(options)
    read = options.pop("then", None)
    with pytest.raises(ValueError, match=f"(?s){where}.*{message}"):
        source = open_source(path, **options)
        assert read and source.read(0, 3) is None
    if isinstance(remedy, str):
        path.write_text(remedy)
        remedy = options if {"group", "label"} & set(options) else {}
    source = open_source(path, **remedy)
    assert np.isfinite(source.read(0, sum(source.lengths))).all() and source.lengths


def test_advice_on_several_files_labels_and_arrays(tmp_path, monkeypatch):
    monkeypatch.setenv("TBPTT_DATA", str(tmp_path / "cache"))
    a, b = tmp_path / "a.csv", tmp_path / "b.csv"
    a.write_text("x,y\n1,2\n3,4\n")
    b.write_text("y,x\n1,2\n3,4\n")
    with pytest.raises(
        ValueError, match=r"b.csv has the columns y, x; .* in `columns` \(--columns"
    ):
        open_source([a, b])
    assert open_source([a, b], ("x", "y")).read(2, 3).tolist() == [[2, 1]]
    a.write_text("x,does\n1,run\n3,run\n")
    with pytest.raises(
        BadSample, match="a.csv, row 2 .*'does' is run, which is not a class .*Corr"
    ):
        open_source(a, label="does", classes=("walk", "sit"))
    a.write_text("x,does\n1,sit\n3,sit\n")
    assert open_source(a, label="does", classes=("walk", "sit")).read(0, 1).tolist() == [[1, 1]]
    np.savez(tmp_path / "x.npz", a=np.arange(3), b=np.arange(4))
    with pytest.raises(ValueError, match="x.npz: several arrays .*Name one of them"):
        load_series(tmp_path / "x.npz", ("a", "b"))
    assert load_series(tmp_path / "x.npz", ("b",)).values.shape == (4, 1)
    with pytest.raises(ValueError, match="x.npz .*choose arrays with `columns`; it holds 2: a, b"):
        load_series(tmp_path / "x.npz")
    for path in (tmp_path / "y.npy", tmp_path / "y.npz"):
        rows = np.array([[1.0, np.nan], [3, 4]])
        np.save(path, rows) if path.suffix == ".npy" else np.savez(path, y=rows)
        name = "1" if path.suffix == ".npy" else "y[1]"
        with pytest.raises(ValueError, match=r"step 0 .*exclude the column: without=\('"):
            load_series(path)
        assert load_series(path, without=(name,)).values.tolist() == [[1], [3]]
        with pytest.raises(ValueError, match=f"has no column 'z'; its columns are .*{name[0]}"):
            load_series(path, without=("z",))
    a.write_text("x,y\n1,\n3,4\n")
    with pytest.raises(BadSample, match=r"row 2 .*'y' is missing .*without=\('y',\)"):
        load_series(a)
    for more in ({}, {"columns": ("x", "y")}):
        assert load_series(a, without=("y",), **more).values.tolist() == [[1], [3]]
    with pytest.raises(TypeError, match=r"without must be a sequence of names.*Write \('y',\)"):
        open_source(a, without="y")
