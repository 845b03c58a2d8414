"""The report as a page for people: what it shows, and how a browser shows it."""

import csv
import datetime
import json
import shutil

import numpy as np
import pytest

from experiments.support.common import page
from experiments.support.train import report_figures
from experiments.support.train import task as run_task
from experiments.support.train.report import write_report
from experiments.support.train.report_predictions import read_forecasts, section
from experiments.support.train.task import Forecast

N, K = 160, 4
TASK = Forecast(("warm", "wind"), "warm", 8, (0.0, 1.0), (1.0, 1.0), 10.0, 4.0, K)
HORIZONS = (2, 4, 6, 8)
START = datetime.datetime(2024, 3, 1)
WIDTHS = (1280, 390)


def time_of(row):
    return (START + datetime.timedelta(hours=row)).strftime("%d.%m.%Y %H:%M")


def truth_of(row):
    return round(10 + 5 * np.sin(row / 4), 3)


def a_run(folder, groups=None):
    """Write the files of a run; rows 80 .. 99 are predicted worst, by 3, the others by 0.5."""
    folder.mkdir()
    (folder / "config.json").write_text(
        json.dumps(
            {
                "data": ["/a/long/path/without/any/space/" + "x" * 60 + ".csv"],
                "target": "warm",
                "cell": "gru",
                "clip": 1.0,
                "epochs": 3.0,
                "notes": ["x.csv: column 'note' is left out: text (row 2: '<dry>')"],
                "task": run_task.to_json(TASK),
            }
        )
    )
    kinds = ("target_time", "truth", "prediction")
    header = ["row", "time", *(["group"] if groups else [])]
    header += [f"{kind}_{h}" for h in HORIZONS for kind in kinds]
    with (folder / "predictions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        for group in groups or [None]:
            for row in range(N):
                cells = [row, time_of(row), *([group] if group else [])]
                for h in HORIZONS:
                    error = 3 if 80 <= row < 100 and group in (None, "b") else 0.5
                    known = row + h < N
                    cells += [time_of(row + h), truth_of(row + h) if known else ""]
                    cells.append(truth_of(row + h) + error)
                writer.writerow(cells)
    rows = [
        {
            "kind": "train", "step": step, "updates": 10, "loss": 1 / step, "grad_norm": 0.5,
            "grad_norm_max": 2.0, "clipped": 0.25, "non_finite": 0, "seconds": step / 10,
        }
        for step in (10, 20, 30)
    ]  # fmt: skip
    rows[2:2] = [{"kind": "valid", "step": 20, "rmse": 2.0, "mae": 1, "metric": 2.0}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "summary.json").write_text(
        json.dumps(
            {
                "metric": "rmse",
                "target": "warm",
                "test_rmse": 1234.5,
                "test_mae": 1.0,
                "test_standardised_rmse": 0.5,
                "baseline": "last value",
                "baselines": {"last value": {"rmse": 2000.0, "mae": 2.0}},
                "horizons": [
                    {"horizon": h, "rmse": h / 4, "mae": 1.0, "scored": 9, "last value": 1.6}
                    for h in HORIZONS
                ],
                "checkpoint": "x/step_000000020",
                "time_format": "%d.%m.%Y %H:%M",
                "step": "1 hour",
                "parts": {"test": "rows 10 to 20"},
                "left_out": {"test": 7},
                "times": {"test": ["2024-03-01", "2024-03-09 03:00:00"]},
            }
        )
    )
    return folder


@pytest.fixture
def drawn(monkeypatch):
    """Record the arguments of the figures, and draw nothing."""
    seen = {}

    def record(name):
        def draw(*args):
            seen[name] = args
            return b""

        return draw

    for name in ("losses", "gradients", "by_horizon", "segments"):
        monkeypatch.setattr(report_figures, name, record(name))
    return seen


def test_the_page_shows_dates_units_horizons_and_the_worst_segment(tmp_path, drawn):
    text = write_report(a_run(tmp_path / "run")).read_text()
    lines, ylabel, xlabel, _ = drawn["by_horizon"]
    assert [line.label for line in lines] == ["this model", "last value"]
    assert lines[0].y.tolist() == [0.5, 1.0, 1.5, 2.0] and lines[0].x.tolist() == list(HORIZONS)
    assert (ylabel, xlabel) == ("test RMSE (warm)", "rows ahead (1 row = 1 hour)")
    assert "Better than all of these baselines at 3 of 4 horizons" in text
    (typical, worst), target, axis, _ = drawn["segments"]
    assert (target, axis) == ("warm", "")
    # Of segments that begin at rows 0, 24, .. 96, with 0, 0, 16, 20 and 4 of the worst rows.
    assert typical[0].endswith(f"RMSE {np.sqrt((4 * 9 + 44 / 4) / 48):.3f}")
    assert worst[0].startswith("Worst segment, from 2024-03-")
    for _, (truth, first, last) in (typical, worst):
        assert truth.x[0] == last.x[0] == first.x[0] and truth.x[-1] == last.x[-1] == first.x[-1]
        hours = (truth.x - np.datetime64(START)) / np.timedelta64(1, "h")
        np.testing.assert_allclose(truth.y, 10 + 5 * np.sin(hours / 4), atol=6e-4)
        assert [first.label, last.label] == [f"prediction, {h} rows ahead" for h in (2, 8)]
    rows = (worst[1][2].x - np.datetime64(START)) / np.timedelta64(1, "h") - 8
    assert 60 <= rows[0] <= 80 and 99 <= rows[-1] <= 120
    train, valid, metric, scale, chosen, _ = drawn["losses"]
    assert (len(train), len(valid), metric, scale, chosen) == (3, 1, "rmse", 4.0, 20)
    for words in (
        "Forecast of warm, 2 to 8 rows ahead",
        "<b>1,234</b><span>test RMSE, this model, in units of warm",
        "<td>→ this model</td><td>1,234</td><td>1.00</td><td>0.500</td>",
        "text (row 2: &#x27;&lt;dry&gt;&#x27;)",
        "<td>2024‑03‑01 to 2024‑03‑09 03:00:00</td><td>7</td><td>rows 10 to 20</td>",
        "an RMSE of 4.00 in units of warm",
        "after update 20, is tested",
    ):
        assert words in text, words


def test_segments_do_not_leave_their_group_and_groups_are_compared(tmp_path, drawn):
    text = write_report(a_run(tmp_path / "run", ["a", "b", "c"])).read_text()
    (typical, worst), *_ = drawn["segments"]
    assert worst[0].startswith("Worst segment of group b, from")
    for _, curves in (typical, worst):
        assert all((np.diff(curve.x) == np.timedelta64(1, "h")).all() for curve in curves)
    assert text.index("<td>b</td>") < text.index("<td>a</td>") < text.index("<td>c</td>")


def test_unknown_truths_are_no_part_of_a_segment(tmp_path):
    run = a_run(tmp_path / "run")
    found = read_forecasts(run / "predictions.csv", run_task.to_json(TASK), "%d.%m.%Y %H:%M")
    assert len(found.truth) == N - 2 and np.isnan(found.truth[-1]).tolist() == [False] + [True] * 3
    assert found.at[0, 3] == np.datetime64("2024-03-01T08:00") and found.at.dtype.kind == "M"
    first, *rows = (run / "predictions.csv").read_text().splitlines()
    place = first.split(",").index("truth_2")
    rows = [[*row[:place], "", *row[place + 1 :]] for row in (line.split(",") for line in rows)]
    (run / "predictions.csv").write_text("\n".join([first, *map(",".join, rows)]))
    rare = read_forecasts(run / "predictions.csv", run_task.to_json(TASK), "%d.%m.%Y %H:%M")
    assert len(rare.truth) == N - 4  # where another horizon is known
    assert np.isnan(rare.truth[:, 0]).all() and not np.isnan(rare.truth[:-4, 1:]).any()
    (run / "predictions.csv").write_text("row,time,truth_2\n")
    with pytest.raises(ValueError, match="predictions.csv must have the columns row, truth_2, pr"):
        section(run / "predictions.csv", run_task.to_json(TASK))


def test_loss_and_validation_share_a_logarithmic_axis_with_the_checkpoint(monkeypatch):
    seen = {}
    monkeypatch.setattr(report_figures, "_png", lambda figure, axes: seen.update(axes=axes) or b"")
    train = [{"step": i, "loss": 1.0 / i, "non_finite": 0, "clipped": None} for i in range(1, 9)]
    valid = [{"step": i, "rmse": 8.0 / i} for i in (2, 4, 8)]
    report_figures.losses(train, valid, "rmse", 4.0, 4)
    (axis,) = seen["axes"].flat
    assert axis.get_yscale() == "log" and axis.get_ylabel() == "loss"
    curve = next(line for line in axis.lines if line.get_label() == "validation")
    assert curve.get_ydata().tolist() == [1.0, 0.25, 0.0625]
    marked = [line for line in axis.lines if line.get_label() == "checkpoint used"]
    assert marked[0].get_xdata() == [4, 4]
    assert [4.0, 0.25] in [[*line.get_xdata(), *line.get_ydata()] for line in axis.lines]
    report_figures.losses(train, [{"step": 2, "accuracy": 0.5}], "accuracy", None, 4)
    assert [a.get_ylabel() for a in seen["axes"].flat] == ["training loss", "validation accuracy"]
    assert [a.get_yscale() for a in seen["axes"].flat] == ["log", "linear"]
    panels = [("a", [report_figures.Line("x", np.arange(3), np.arange(3.0) * scale, 0)]) for scale in (1, 9)]  # fmt: skip  # noqa: E501
    rare = report_figures.Line("truth", np.arange(3), np.array([np.nan, 1, np.nan]))
    panels[0][1].append(rare)
    report_figures.segments(panels, "y", "row")
    lines = seen["axes"].flat[0].lines
    assert [line.get_marker() for line in lines] == ["None", "."]  # a point alone is seen
    first, second = (axis.get_ylim() for axis in seen["axes"].flat)
    assert first == second  # equal scales


def a_browser():
    """Return (playwright, browser), or skip with the reason."""
    api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install playwright"
    )
    started = api.sync_playwright().start()
    own = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
    try:
        return started, started.chromium.launch(executable_path=own, args=["--no-sandbox"])
    except api.Error as error:
        started.stop()
        pytest.skip(f"no Chromium starts: {str(error).splitlines()[0]}")


@pytest.mark.exhaustive
def test_a_browser_shows_the_page_on_a_wide_and_on_a_narrow_screen(tmp_path):
    paths = [
        write_report(a_run(tmp_path / "hourly")),
        write_report(a_run(tmp_path / "panel", ["group-" + "x" * 80, "b", "c"])),
    ]
    playwright, browser = a_browser()
    try:
        for path in paths:
            pictures = [_look(browser, path, width) for width in WIDTHS]
            assert len(pictures[0]) == len(pictures[1]) == 4
            for wide, narrow in zip(*pictures, strict=True):
                assert wide["src"] != narrow["src"]  # drawn for the width
    finally:
        browser.close()
        playwright.stop()


def _look(browser, path, width):
    """Open a page, check it, and return its pictures."""
    tab, faults = browser.new_page(viewport={"width": width, "height": 900}), []
    tab.on("console", lambda message: faults.append(message.text))
    tab.on("request", lambda request: faults.append(request.url))
    tab.goto(path.as_uri())
    faults = [text for text in faults if text != path.as_uri() and not text.startswith("data:")]
    assert not faults  # self-contained
    tab.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
    tab.wait_for_function("[...document.images].every(one => one.complete && one.naturalWidth)")
    assert tab.evaluate("document.documentElement.scrollWidth") <= width, (path, width)
    pictures = tab.evaluate(
        "[...document.images].map(one => ({src: one.currentSrc, shown: one.clientWidth}))"
    )
    # Text of 9 points is at least 9 pixels high.
    inches = page.WIDTHS[width < 640]
    assert all(one["shown"] / inches * 9 / 72 >= 9 for one in pictures)
    tab.close()
    return pictures
