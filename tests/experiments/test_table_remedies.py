"""Every error about a table names the flag that helps, and with it the data are opened."""

import numpy as np
import pytest

from experiments import train
from experiments.support.train.data import open_data
from experiments.support.train.prediction_steps import open_for
from tbptt.data import BadSample

RNG = np.random.default_rng(0)
N = 60


def table(**columns) -> str:
    rows = zip(*(np.broadcast_to(np.asarray(values, object), N) for values in columns.values()),
               strict=True)  # fmt: skip
    return "\n".join([",".join(columns), *(",".join(map(str, row)) for row in rows)]) + "\n"


def changed(values, **cells) -> list:
    """Return values with some of them replaced: `_3="x"` is row 3."""
    found = list(values)
    for place, cell in cells.items():
        found[int(place[1:])] = cell
    return found


X, Y = RNG.normal(size=(2, N)).round(3)
EMPTY = [""] * N
WHO = np.repeat([1, 2, 3, 4], N // 4)
DOES = np.repeat(["walk", "run", "walk", "run"], N // 4)
DAY = np.tile(np.arange("2024-01-01", "2024-01-16", dtype="M8[D]"), 4)
XY = table(x=X, y=Y)
PEOPLE = table(who=WHO, x=X, y=Y, does=DOES)
CLASSES = {"task": "classify", "target": "does"}
# the table, flags, the message, and the flags or the table that it leads to
CASES = {
    "no target": (XY, {"target": None}, "--target is required: .*one of x, y", {"target": "y"}),
    "a bad cell of an input": (
        table(x=changed(X, _3="broken"), y=Y, z=Y),
        {},
        r"row 5, column 'x' is not a number: 'broken', .*\(--without x\)",
        {"without": ("x",)},
    ),
    "a bad cell in a later row": (
        table(x=changed(X, _50="broken"), y=Y, z=Y),
        {"columns": ("x", "z")},
        r"row 52, column 'x' is not a number: 'broken', .*\(--without x\)",
        {"columns": ("x", "z"), "without": ("x",)},
    ),
    "a bad cell of the target": (
        table(x=X, y=changed(Y, _3="broken")),
        {},
        r"row 5, column 'y' is not a number: .*Correct the file, or name another target \(--targ",
        {"target": "x", "without": ("y",)},
    ),
    "dates as inputs": (
        table(day=DAY, x=X, y=Y, who=WHO),
        {"columns": ("day", "x"), "group": "who"},
        r"column 'day' holds dates, not numbers. Exclude the column: .*\(--without day\), or name",
        {"columns": ("day", "x"), "without": ("day",), "group": "who"},
    ),
    "dates of several recordings": (
        table(day=DAY, x=X, y=Y, who=WHO),
        {},
        r"'day' falls from .*pass sort=True \(--sort\).*by `group` \(--group\)",
        {"group": "who"},
    ),
    "dates that fall": (
        table(day=DAY[::-1], x=X, y=Y, who=WHO),
        {"group": "who"},
        r"'day' falls from 2024-01-15 to 2024-01-14; .*sort=True \(--sort\), which sorts [a-z ]+$",
        {"group": "who", "sort": True},
    ),
    "dates that fall, left out": (
        table(day=DAY, x=X, y=Y),
        {},
        "'day' falls",
        {"without": ("day",)},
    ),
    "the target is the time": (
        table(t=np.arange(N), x=X),
        {"target": "t", "time": "t"},
        "--time and --target must be different columns; got 't'",
        {"target": "x", "time": "t"},
    ),
    "no inputs": (
        XY,
        {"without": ("x", "y")},
        "no numeric input column besides .*or fewer columns in --without",
        {"without": ("y",)},
    ),
    "no such column": (XY, {"without": ("z",)}, "--without. must name columns .*, x, y; got 'z'",
                       {"without": ("x",)}),
    "not one of the columns": (
        table(x=X, y=Y, z=Y),
        {"columns": ("x", "y"), "without": ("z",)},
        "--without. must name some of columns, x, y; got 'z'",
        {"columns": ("x", "y"), "without": ("x",)},
    ),
    "an estimate from itself": (
        XY,
        {"horizon": 0},
        "--horizon 0 .*give --without y, or --columns without it",
        {"horizon": 0, "without": ("y",)},
    ),
    "the class is an input": (
        PEOPLE,
        {**CLASSES, "columns": ("x", "does"), "group": "who"},
        "--columns must not contain --group, .*the class",
        {**CLASSES, "columns": ("x",), "group": "who"},
    ),
    "one class": (
        table(who=WHO, x=X, does="run", what=DOES),
        {**CLASSES, "group": "who"},
        "must hold at least two classes; .*name another column by --target",
        {**CLASSES, "target": "what", "group": "who"},
    ),
    "one recording": (
        PEOPLE,
        {"task": "classify", "target": "does"},
        "needs at least one whole recording .*name the column that separates .* by --group",
        {"task": "classify", "target": "does", "group": "who"},
    ),
    "no people left": (
        PEOPLE,
        {"hold_out": "who=1,2,3"},
        "leaves 1 of 4 groups, .* none for training. Hold out fewer groups$",
        {"hold_out": "who=1"},
    ),
    "all others validate": (
        PEOPLE,
        {"hold_out": "who=1,2", "valid": 0.9},
        "leaves 2 of 4 groups, .* Hold out fewer groups, or lower --valid",
        {"hold_out": "who=1,2", "valid": 0.3},
    ),
    "no such person": (PEOPLE, {"hold_out": "who=7"}, "no row has who 7; the values are 1, 2, 3, 4",
                       {"hold_out": "who=4"}),
    "a short training part": (
        XY,
        {"horizon": 6, "valid": 0.45, "test": 0.45},
        "60 rows of the data give 6 for training, .*Give more data, smaller fractions, or a lower",
        {"horizon": 6, "valid": 0.3, "test": 0.3},
    ),
    "a short test part": (
        XY,
        {"horizon": 6},
        "and 6 for the test .*Give more data, larger fractions, or a lower --horizon",
        {"horizon": 6, "valid": 0.2, "test": 0.2},
    ),
    "short recordings": (
        table(who=WHO, x=X, y=Y),
        {"horizon": 14, "valid": 0.35, "test": 0.35, "group": "who"},
        "needs a recording of at least 15 rows .*Lower --horizon, or choose other parts",
        {"horizon": 4, "valid": 0.35, "test": 0.35, "group": "who"},
    ),
    "an empty input": (
        table(x=changed(EMPTY, _58="1", _59="2"), y=Y, z=X),
        {"missing": "mask"},
        r"all 48 rows of the source are masked, .*'x' is missing in 48 .*--without x\)",
        {"missing": "mask", "without": ("x",)},
    ),
    "an empty target": (
        table(x=X, y=changed(EMPTY, _58="1", _59="2"), z=Y),
        {"missing": "mask"},
        r"'y' has no value in the training part, .*predict another column \(--target\)",
        {"missing": "mask", "target": "z", "without": ("y",)},
    ),
    "a constant target": (
        table(x=X, y=7, z=Y),
        {},
        r"'y' is constant \(7\) over the training part, .*predict another column \(--target\)",
        {"target": "z"},
    ),
    "gaps without a time": (
        table(t=np.arange(N), x=X, y=Y),
        {"gaps": "split"},
        r"no column of times, so gaps='split' .*\(--time\)",
        {"gaps": "split", "time": "t"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", CASES)
def test_the_flag_that_an_error_names_opens_the_data(what, tmp_path, monkeypatch):
    monkeypatch.setenv("TBPTT_DATA", str(tmp_path / "cache"))
    content, flags, message, remedy = CASES[what]
    path = tmp_path / "x.csv"
    path.write_text(content)

    def opened(flags):
        return open_data(train.Config(data=(path,), **{"target": "y", **flags}))

    with pytest.raises(ValueError, match=f"(?s){message}"):
        opened(flags)
    data = opened(remedy)
    good = getattr(data.source, "good", lambda start, stop: np.ones(stop, bool))
    assert np.isfinite(data.source.read(0, N)[good(0, N)]).all() or "missing" in remedy
    assert not set(remedy.get("without", ())) & set(data.task.columns)
    assert not set(remedy.get("without", ())) & ({*data.source.names} - {data.task.target})


def test_missing_values_and_unknown_classes(tmp_path, monkeypatch):
    monkeypatch.setenv("TBPTT_DATA", str(tmp_path / "cache"))
    path = tmp_path / "x.csv"
    path.write_text(table(x=changed(X, _3=""), y=Y, z=X))
    config = train.Config(data=(path,), target="y")
    with pytest.raises(BadSample, match=r"row 5 .*'x' is missing .*--without x\) unless .*--miss"):
        open_data(config)
    for remedy in ({"without": ("x",)}, {"missing": "mask"}, {"missing": "hold"}):
        data = open_data(train.Config(data=(path,), target="y", **remedy))
        assert data.source.read(0, N).shape == (N, 2 if "without" in remedy else 3)

    path.write_text(PEOPLE)
    config = train.Config(data=(path,), group="who", **CLASSES)
    task = open_data(config).task
    path.write_text(PEOPLE.replace(",run", ",fly"))
    with pytest.raises(BadSample, match="row 17 .*'does' is fly, .*predict without --score"):
        open_for(task, [path], True)
    assert open_for(task, [path], False).lengths == (N // 4,) * 4
