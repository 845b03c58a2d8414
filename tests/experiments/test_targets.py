"""Tests of targets and of the README's tables of results; nothing is trained."""

import dataclasses
import json
import math
import shutil
import types

import pytest

from experiments import table
from experiments.support.common import program, targets


@pytest.mark.parametrize(("numbers", "bounds", "of", "reached"), [
    ([0.1, 0.2, 0.9], {"at_most": 0.2}, targets.median, True),
    ([0.1, 0.2, 0.9], {"at_most": 0.2}, targets.largest, False),
    ([0.1, 0.2, 0.9], {"at_least": 0.2}, targets.median, True),
    ([0.1, 0.2, 0.9], {"at_least": 0.2}, targets.smallest, False),
    ([0.1, 0.2, 0.9], {"at_least": 0.3, "at_most": 0.5}, targets.median, False),
    (0.4, {"at_least": 0.3, "at_most": 0.5}, targets.median, True),
    # A diverged seed reaches no target.
    ([0.1, math.nan, 0.1], {"at_most": 0.2}, targets.median, False),
    ([math.nan], {"at_least": 0.0}, targets.median, False),
    ([math.inf, 1.0, 1.0], {"at_least": 0.5}, targets.median, True),
])  # fmt: skip
def test_a_verdict_is_computed_from_the_seeds(numbers, bounds, of, reached):
    row = targets.expect("error", numbers, of=of, **bounds)
    assert row["reached"] is reached
    assert json.loads(json.dumps(row, allow_nan=False)) == row  # non-finite values are null in JSON


def test_text_of_expected_and_measured_values():
    row = targets.expect("MSE", [0.1, 0.25, math.inf], at_most=0.5, because="the mean has 1")
    assert row["expected"] == "median at most 0.5 (the mean has 1)"
    assert targets.describe(row) == "median 0.25 (0.1 to 0.25; 1 not finite)"
    assert targets.describe(targets.expect("seconds", 3, at_most=4)) == "3"
    both = targets.expect("share", [0.5, 0.6], at_least=0.4, at_most=0.7, of=targets.smallest)
    assert both["expected"] == "smallest at least 0.4 and at most 0.7"
    with pytest.raises(ValueError, match="MSE: measured must not be empty, and at_least"):
        targets.expect("MSE", [0.1])
    with pytest.raises(ValueError, match="got twice: MSE"):
        targets.summarise([row, row])


@dataclasses.dataclass(frozen=True)
class Config(program.Seeded):
    """Flags of an experiment."""

    updates: int = 3


def run(folder, name, date, mse, **flags):
    """Run an experiment that only returns rows, in folder/NAME/DATE, and set its date."""
    rows = [targets.expect("MSE", mse, at_most=0.5, otherwise="It stays | at 1.")]
    module = types.ModuleType(f"experiments.{name}")
    module.measure = lambda config: {"targets": rows, "results": {"updates": config.updates}}
    module.draw = lambda data, to: (to / f"{name}.png").write_bytes(b"png of " + date.encode())
    summary = program.execute(module, Config(out=folder / name / date, **flags))
    summary["environment"]["date"] = date
    (folder / name / date / "summary.json").write_text(json.dumps(summary))
    return summary


def test_a_summary_has_expected_measured_and_reached(tmp_path, capsys):
    summary = run(tmp_path, "adding", "2026-01-01", [0.1, 0.2])
    assert summary["expected"] == {"MSE": "median at most 0.5"} and summary["measured"] == {
        "MSE": [0.1, 0.2]
    }
    assert (
        summary["reached"] is True
        and summary["seeds"] == 2
        and summary["standard"]
        and not summary["quick"]
    )
    assert (
        summary["claims"] == [] and summary["updates"] == 3 and summary["figures"] == ["adding.png"]
    )
    missed = run(tmp_path, "adding", "2026-01-02", [0.6, 0.7], updates=4)
    assert missed["reached"] is False and not missed["standard"]  # not the default settings
    program.show(missed)
    text = " ".join(capsys.readouterr().err.split())
    assert (
        "MSE: median 0.65 (0.6 to 0.7); expected median at most 0.5: NOT reached It stays | at 1."
        in text
    )


def tabled(tmp_path):
    config = table.Config(
        results=tmp_path / "results", runs=tmp_path / "runs", readme=tmp_path / "README.md"
    )
    return table.main(config), config.readme.read_text()


def test_the_table_takes_the_newest_full_run_and_keeps_it(tmp_path):
    (tmp_path / "README.md").write_text(
        f"before\n{table.BEGIN}\nbefore the run\n{table.END}\nafter\n"
    )
    made, text = tabled(tmp_path)
    assert [row["experiment"] for row in made["rows"]] == list(table.NAMES) and made["reached"] == 0
    assert text.count("no full run yet") == 9 and "before the run" not in text

    run(tmp_path / "runs", "adding", "2026-01-01", [0.1, 0.3])
    run(tmp_path / "runs", "adding", "2026-01-03", [0.1], quick=True)
    run(tmp_path / "runs", "adding", "2026-01-04", [0.1], updates=9)
    run(tmp_path / "runs", "ecg", "2026-01-02", [0.9])
    made, text = tabled(tmp_path)
    rows = {row["experiment"]: row for row in made["rows"]}
    assert (
        rows["adding"]["measured"] == {"MSE": [0.1, 0.3]}
        and rows["adding"]["reached"]
        and made["reached"] == 1
    )
    assert rows["ecg"]["expected"] == {"MSE": "at most 0.5"} and not rows["ecg"]["reached"]
    assert rows["ecg"]["verdict"] == "NOT reached: MSE: 0.9. It stays | at 1."
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "1 of 9 reached" in text
    assert "[adding.png](results/adding/adding.png)" in text and "| 0.9 | **NOT reached** |" in text
    assert (tmp_path / "results/adding/adding.png").read_bytes() == b"png of 2026-01-01"
    assert json.loads((tmp_path / "results/adding/config.json").read_text())["updates"] == 3

    # Newer than the one that is kept; afterwards runs/ may go.
    run(tmp_path / "runs", "adding", "2026-01-05", [0.2])
    (tmp_path / "results/adding/of_an_older_version.png").touch()
    tabled(tmp_path)
    assert [path.name for path in (tmp_path / "results/adding").glob("*.png")] == ["adding.png"]
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    made, again = tabled(tmp_path)
    assert made["rows"][0]["measured"] == {"MSE": [0.2]} and again == tabled(tmp_path)[1]
    assert (tmp_path / "results/adding/adding.png").read_bytes() == b"png of 2026-01-05"


def test_what_cannot_be_read_is_named(tmp_path):
    (tmp_path / "README.md").write_text("no markers")
    with pytest.raises(ValueError, match="README.md must hold each of these two lines once"):
        tabled(tmp_path)
    broken = tmp_path / "runs" / "ecg" / "x" / "summary.json"
    broken.parent.mkdir(parents=True)
    broken.write_text('{"quick": fal')
    with pytest.raises(ValueError, match="ecg/x/summary.json is not JSON"):
        tabled(tmp_path)


def test_the_committed_tables_are_those_of_the_results_files(tmp_path):
    """`python -m experiments.table` would change nothing.

    And a changed result changes the table.
    """
    shutil.copytree(table.HERE / "results", tmp_path / "results")
    committed = (table.HERE / "README.md").read_text()
    (tmp_path / "README.md").write_text(committed)
    _, text = tabled(tmp_path)
    assert text == committed, "run python -m experiments.table"
    path = tmp_path / "results" / "temporal_order" / "summary.json"
    summary = json.loads(path.read_text())
    summary["targets"][1] |= {"value": 0.9, "reached": False}
    path.write_text(json.dumps(summary))
    made, text = tabled(tmp_path)
    assert "median 0.9 (" in text and "[**1 of 2 reached**](#temporal_order)" in text
    assert made["reached"] == 8 and "8 of 9 reached." in text
