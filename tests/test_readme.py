"""The Python snippets of README.md and docs/ run and print what the text says."""

import contextlib
import io
import math
import re
from pathlib import Path

import jax
import pytest
from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").glob("*.md"))


def snippets(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


def run(*programs: str) -> list[str]:
    """Run snippets one after another in one namespace, in float32, and return the printed lines."""
    printed, names = io.StringIO(), {}
    with jax.enable_x64(False), contextlib.redirect_stdout(printed):
        for program in programs:
            exec(program, names)
    return printed.getvalue().splitlines()


def numbers(line: str) -> list[float]:
    return [float(word) for word in re.findall(r"\d+\.\d+(?:e-?\d+)?", line)]


@pytest.mark.exhaustive
def test_the_example_of_the_readme_prints_its_output(tmp_path, monkeypatch):
    """Losses agree to 50 %: their last digits differ between machines."""
    monkeypatch.chdir(tmp_path)
    (example,) = snippets(README)
    assert len(example.strip().splitlines()) <= 15
    (expected,) = re.findall(r"```text\n(.*?)```", README.read_text(), re.DOTALL)
    printed, expected = run(example), expected.splitlines()
    assert [line.rpartition(" ")[0] for line in printed] == [
        line.rpartition(" ")[0] for line in expected
    ]
    for measured, stated in zip(map(numbers, printed), map(numbers, expected), strict=True):
        assert measured == pytest.approx(stated, rel=0.5)


def test_the_example_of_the_readme_runs_on_a_short_series(tmp_path, monkeypatch):
    """The figure is drawn in tests/fit/test_fit.py."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **how: Path(path).touch())
    (example,) = snippets(README)
    short = example.replace("2501", "91").replace("2500", "90").replace("200", "6")
    printed = run(short.replace("k2=50", "k2=20"))
    assert re.fullmatch(r"24 updates, validation loss 0\.\d+", printed[0]) and len(printed) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"losses.png", "model.msgpack"}


def test_the_readme_is_one_screen():
    text = README.read_text()
    assert len(text.splitlines()) <= 130 and len(text.encode()) <= 8192
    assert max(map(len, text.splitlines())) <= 100


def test_links_lead_to_files():
    for page in (README, *PAGES, ROOT / "experiments/README.md", ROOT / "benchmarks/README.md"):
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


@pytest.mark.exhaustive
def test_the_page_about_windows():
    """Full equals truncated BPTT, and estimators are compared."""
    lines = run(*snippets(ROOT / "docs/windows.md"))
    full, long, short = map(numbers, lines[:3])
    assert full == pytest.approx(long, rel=1e-4) and full[0] == pytest.approx(short[0], rel=1e-5)
    assert abs(full[1] / short[1] - 1) > 1e-3
    *lines, logistic, henon = lines[3:]
    assert numbers(logistic) == pytest.approx([math.log(2)], abs=2e-3)
    assert numbers(henon) == pytest.approx([0.419, 1.623, -math.log(0.3)], abs=1e-2)
    losses, lines = numbers(" ".join(lines[:-3])), lines[-3:]
    assert len(losses) == 12 + 12 and min(losses) > 0
    rows = {line.rsplit(maxsplit=4)[0]: line.split()[-4:] for line in lines}
    assert set(rows) == {"TBPTT(10, 30)", "ARTBP", "SnAp-1"}
    bias, variance = ({name: float(row[i]) for name, row in rows.items()} for i in (0, 1))
    assert 0 < bias["TBPTT(10, 30)"] < 0.5 and variance["ARTBP"] > 0 == variance["SnAp-1"]


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["devices", "memory", "precision", "training"])
def test_the_snippets_of_a_page_run(name):
    lines = run(*snippets(ROOT / f"docs/{name}.md"))
    assert lines
    if name == "precision":
        assert 0 < float(lines[0]) < 0.02
    if name == "training":
        assert 0 < float(lines[-4]) < 1 and lines[-3] == "(17, 1)"  # of the skip connection
        assert 0 < float(lines[-2]) < 100  # targets that are missing give no NaN
        assert lines[-1] == "(1, 2)"  # of the exported step


def test_every_page_with_snippets_is_tested():
    tested = {"devices", "memory", "precision", "training", "windows"}
    assert {page.stem for page in PAGES if snippets(page)} == tested
