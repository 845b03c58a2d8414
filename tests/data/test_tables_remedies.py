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
        r"column 'day' holds dates, not numbers. .*or name it as the time \(`time`\)",
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
        r"row 3, column 'b' is not a number: 'x', .*naming the others in `columns` \(--columns\)",
        {"columns": ("a",)},
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
    where = "" if "label must" in message else "x.csv"  # refused before a file is opened
    with pytest.raises(ValueError, match=f"(?s){where}.*{message}"):
        open_source(path, **options)
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
