"""The README's examples run as they stand, one after another in a fresh interpreter, and print what it says."""

import re
import subprocess
import sys
from pathlib import Path

import jax
import pytest

README = Path(__file__).parent.parent / "README.md"


def blocks() -> list[str]:
    """Twelve lines, the same on all cores, the meter."""
    found = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(found) == 3
    return found


def lines_of(program: str) -> list[str]:
    """What a program prints in a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=README.parent, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def numbers(line: str) -> list[float]:
    return [float(word) for word in line.split()]


def assert_full_equals_truncated(lines: list[str]) -> None:
    full, cut = map(numbers, lines)
    assert max(abs(a - b) / abs(a) for a, b in zip(full, cut, strict=True)) < 1e-5


SHOW = "print(jax.device_count(), *metrics.loss, *metrics.grad_norm)\n"


def test_the_twelve_lines_run_and_full_equals_truncated(capsys):
    """In this process."""
    with jax.enable_x64(False):
        exec(blocks()[0] + SHOW, {})
    lines = capsys.readouterr().out.splitlines()
    assert_full_equals_truncated(lines[:2])
    losses = numbers(lines[-1])[1:]
    assert len(losses) == 12 + 12 and min(losses) > 0


@pytest.fixture(scope="module")
def alone() -> list[str]:
    """What the twelve lines and then the meter print in one process."""
    twelve, _, meter = blocks()
    return lines_of(twelve + SHOW + meter)


@pytest.mark.exhaustive
def test_on_all_cores_the_numbers_are_the_same(alone):
    twelve, cores, _ = blocks()
    imports, rest = twelve.split("\n\n", 1)
    dealt = lines_of(f"{imports}\ntbptt.split_cpu(2)\n{rest}{cores}{SHOW}")
    said = [numbers(alone[-4]), numbers(dealt[-1])]
    assert said[0][0] == 1 and said[1][0] == 2 and len(said[0]) == len(said[1]) == 1 + 12 + 12
    assert said[0][1:] == pytest.approx(said[1][1:], rel=1e-4)


@pytest.mark.exhaustive
def test_the_meter_runs_in_a_fresh_interpreter(alone):
    assert_full_equals_truncated(alone[:2])
    meter = {line.rsplit(maxsplit=4)[0]: [float(word) for word in line.rsplit(maxsplit=4)[1:]] for line in alone[-3:]}
    assert set(meter) == {"TBPTT(10, 30)", "ARTBP", "SnAp-1"}
    bias, variance = {name: row[0] for name, row in meter.items()}, {name: row[1] for name, row in meter.items()}
    assert 0 < bias["TBPTT(10, 30)"] < 0.5 and variance["ARTBP"] > 0 == variance["SnAp-1"]
