"""Tests of the report of a run."""

import csv
import json
import re
import runpy
import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments.support.train import report_figures, report_predictions
from experiments.support.train import task as run_task
from experiments.support.train.report import write_report
from experiments.support.train.task import Characters, Classify, Forecast

FORECAST = Forecast(("ppg",), "ppg", 32, (1100.0,), (200.0,), 1100.0, 200.0)


@pytest.fixture
def undrawn(monkeypatch):
    """Leave the figures as they are built; drawing them is what takes time."""
    monkeypatch.setattr(Figure, "savefig", lambda figure, buffer, **how: buffer.write(b"PNG"))


def line(step, **more):
    values = {
        "updates": 50,
        "loss": 1 / step,
        "grad_norm": 0.5,
        "grad_norm_max": 2.0,
        "clipped": 0.25,
        "non_finite": 0,
    }
    return {"kind": "train", "step": step, **values, "seconds": step / 10, **more}


def folder(path, task, rows, **summary):
    settings = {
        "experiment": "train",
        "cell": "lstm",
        "lr": 0.003,
        "clip": 1.0,
        "epochs": 10.0,
        "out": "<&>",
    }
    (path / "config.json").write_text(json.dumps({**settings, "task": run_task.to_json(task)}))
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if summary:
        (path / "summary.json").write_text(json.dumps(summary))
    return path


def predictions(path, rows):
    with (path / "predictions.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def text_of(path):
    """Return the text of a page, without the figures."""
    return re.sub(r"data:image/png;base64,[^\"]*", "PNG", path.read_text())


ROWS = [
    line(50), line(100), {"kind": "valid", "step": 100, "rmse": 0.2, "seconds": 10},
    {"kind": "warning", "step": 120, "what": "exploded", "message": "norm <9e2>",
     "advice": "consider less", "seconds": 12},
    line(150, loss=None, grad_norm=None, grad_norm_max=None, non_finite=50, clipped=None),
    {"kind": "resumed", "step": 150, "removed": 3}, line(200),
    {"kind": "valid", "step": 200, "rmse": 0.1, "seconds": 20},
]  # fmt: skip


def test_a_finished_run_shows_both_metrics_and_which_is_better(tmp_path):
    run = folder(
        tmp_path,
        FORECAST,
        ROWS,
        metric="rmse",
        test_rmse=0.146,
        test_mae=0.1,
        baseline="ridge AR(256)",
        baselines={"ridge AR(256)": {"rmse": 0.157, "mae": 0.11}},
    )
    predictions(run, [("row", "truth", "prediction"), (7, 1200, 1190.5), (8, "", 1201)])
    page = text_of(write_report(run))
    assert (
        "<b>0.146</b><span>test RMSE, this model" in page
        and "<b>0.157</b><span>test RMSE, baseline: ridge AR(256)" in page
    )
    assert (
        "Better than the baseline by 0.011 (7%)." in page
        and "Finished: 200 updates in 20 s" in page
    )
    assert (
        "Forecast of ppg, 32 rows ahead" in page
        and "Update 120:</b> norm &lt;9e2&gt;; consider less." in page
    )
    assert (
        f"python -m experiments.train --resume {tmp_path} --epochs 20 --patience 0" in page
    )  # twice its 10
    assert page.count("<img") == 3 and "<td>&lt;&amp;&gt;</td>" in page
    # No external resource.
    assert "src=" in page and not re.search(r'(src|href)="(?!PNG)', page) and "http" not in page


@pytest.mark.parametrize(
    "value, metric, words",
    [
        (0.2, "rmse", "Not better"),
        pytest.param(None, "rmse", "Not better", marks=pytest.mark.exhaustive),
        pytest.param(0.3, "accuracy", "Better", marks=pytest.mark.exhaustive),
    ],
)
@pytest.mark.usefixtures("undrawn")
def test_the_verdict_is_computed(tmp_path, value, metric, words):
    base = {"last value": {metric: 0.2}}
    more = {"metric": metric, f"test_{metric}": value, "baseline": "last value", "baselines": base}
    run = folder(tmp_path, FORECAST, ROWS, **more)
    page = text_of(write_report(run))
    assert words in page and ("not finite" in page) == (value is None)


@pytest.mark.exhaustive
@pytest.mark.usefixtures("undrawn")
def test_the_report_of_an_interrupted_run_has_the_command_to_resume_it(tmp_path):
    page = text_of(write_report(folder(tmp_path, FORECAST, ROWS)))
    assert (
        "Interrupted or still running" in page
        and "best validation RMSE so far, at update 200" in page
    )
    assert (
        f"python -m experiments.train --resume {tmp_path}\n" in page
        and f"experiments.predict {tmp_path} --data FILE" in page
    )
    bare = tmp_path / "bare"
    bare.mkdir()
    assert "No update has been logged yet" in text_of(write_report(folder(bare, FORECAST, [])))


@pytest.mark.exhaustive
@pytest.mark.usefixtures("undrawn")
def test_the_report_of_a_run_resumed_after_its_test(tmp_path):
    page = text_of(
        write_report(folder(tmp_path, FORECAST, ROWS, metric="rmse", test_rmse=0.1, updates=100))
    )
    assert (
        "Resumed after the test" in page and "The test results are those after update 100." in page
    )


@pytest.mark.usefixtures("undrawn")
def test_a_text_is_shown_with_the_probability_of_each_symbol(tmp_path):
    run = folder(tmp_path, Characters(tuple(b"\n<a")), ROWS)
    predictions(
        run,
        [
            ("row", "truth", "prediction", "p_truth"),
            (0, "<", "a", 0.5),
            (1, "\\n", "a", 2**-8),
            (2, "", "a", ""),
        ],
    )
    page = text_of(write_report(run))
    # 1 of 8 bits of 0.75.
    assert 'rgba(213, 94, 0, 0.09)" title="50.0 %; most likely: a">&lt;</span>' in page
    assert (
        'rgba(213, 94, 0, 0.75)" title="0.4 %; most likely: a">⏎\n</span>' in page
        and "2 symbols" in page
    )


def test_classes_are_shown_as_a_confusion_matrix(tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(report_figures.plt, "subplots", _spied(seen))
    run = folder(tmp_path, Classify(("x",), "kind", (2.0, 10.0), (0.0,), (1.0,)), [])
    answers = [("2", "2.0")] * 3 + [("10", "2.0")] + [("10", "10.0")]
    predictions(
        run, [("row", "truth", "prediction"), *((i, *answer) for i, answer in enumerate(answers))]
    )
    write_report(run)
    np.testing.assert_allclose(seen["axes"][0, 0].images[0].get_array(), [[100, 0], [50, 50]])


def _spied(seen):
    real = plt.subplots

    def subplots(*args, **options):
        seen["figure"], seen["axes"] = real(*args, **options)
        return seen["figure"], seen["axes"]

    return subplots


@pytest.mark.usefixtures("undrawn")
def test_long_curves_are_averaged_but_keep_the_largest_value(monkeypatch):
    seen = {}
    monkeypatch.setattr(report_figures.plt, "subplots", _spied(seen))
    rows = [
        line(50 * (i + 1), loss=float(i), grad_norm_max=900.0 if i == 1234 else 2.0)
        for i in range(6000)
    ]
    report_figures.gradients(rows, 1.0)
    mean, largest = seen["axes"][0, 0].lines[:2]
    assert len(mean.get_xdata()) == report_figures.POINTS and max(largest.get_ydata()) == 900.0
    report_figures.losses(rows, [], "")
    drawn = seen["axes"][0, 0].lines[0]
    np.testing.assert_allclose(
        drawn.get_ydata(), np.arange(6000).reshape(600, 10).mean(axis=1), rtol=1e-12
    )
    np.testing.assert_allclose(drawn.get_xdata(), 50 * (drawn.get_ydata() + 1), rtol=1e-12)


@pytest.mark.exhaustive
@pytest.mark.usefixtures("undrawn")
def test_a_large_file_of_predictions_is_read_in_part(tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(report_figures.plt, "subplots", _spied(seen))
    monkeypatch.setattr(report_predictions, "MOST", 20_000)
    run = folder(tmp_path, FORECAST, [])
    for digits in range(4):  # the part starts at different positions within a row
        extra = "0" * digits
        rows = [(i, f"{i}.5{extra}", f"{i}.25") for i in range(10_000_000, 10_008_000)]
        predictions(run, [("row", "truth", "prediction"), *rows])
        assert "rows from the middle of the test part" in text_of(write_report(run))
        truth, prediction = seen["axes"][0, 0].lines
        assert truth.get_xdata()[0] > 10_000_100  # from the middle
        np.testing.assert_array_equal(truth.get_ydata(), truth.get_xdata() - 32 + 0.5)
        np.testing.assert_array_equal(prediction.get_ydata(), truth.get_xdata() - 32 + 0.25)


@pytest.mark.parametrize(
    "name, text, error",
    [
        ("config.json", "{", r"config.json is not JSON"),
        ("summary.json", "[1]", r"summary.json must contain a JSON object; got list"),
        ("metrics.jsonl", "x\n", r"metrics.jsonl, line 1 is not JSON"),
        (
            "predictions.csv",
            "row,prediction\n",
            r"predictions.csv must have the columns .* missing: truth",
        ),
    ],
)
@pytest.mark.usefixtures("undrawn")
def test_a_damaged_file_is_named(tmp_path, name, text, error):
    run = folder(tmp_path, FORECAST, ROWS)
    (run / name).write_text(text)
    with pytest.raises(ValueError, match=error):
        write_report(run)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="is not the folder of a run: it has no config.json"
    ):
        write_report(tmp_path)


@pytest.mark.exhaustive
@pytest.mark.filterwarnings("ignore:'experiments.support.train.report' found in sys.modules")
def test_the_program_prints_an_error_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["report.py", str(tmp_path)])
    wanted = (
        "^report: .* is not the folder of a run: it has no config.json. Give "  # status 1, stderr
    )
    with pytest.raises(SystemExit, match=wanted):
        runpy.run_module("experiments.support.train.report", run_name="__main__")
    assert capsys.readouterr().out == ""
