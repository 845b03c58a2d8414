"""The README's examples run as they stand, one after another in a fresh interpreter, and print what it says."""

import re
import subprocess
import sys
from pathlib import Path

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


def test_on_all_cores_the_numbers_are_the_same():
    twelve, cores, _ = blocks()
    imports, rest = twelve.split("\n\n", 1)
    show = "print(jax.device_count(), *metrics.loss, *metrics.grad_norm)\n"
    said = [
        [float(word) for word in lines_of(program)[-1].split()]
        for program in (twelve + show, f"{imports}\ntbptt.split_cpu(2)\n{rest}{cores}{show}")
    ]
    assert said[0][0] == 1 and said[1][0] == 2 and len(said[0]) == len(said[1]) == 1 + 12 + 12
    assert said[0][1:] == pytest.approx(said[1][1:], rel=1e-4)


def test_the_examples_run_and_full_equals_truncated():
    twelve, _, meter = blocks()
    lines = lines_of(twelve + meter)
    full, cut = ([float(word) for word in line.split()] for line in lines[:2])
    assert max(abs(a - b) / abs(a) for a, b in zip(full, cut, strict=True)) < 1e-5
    meter = {line.rsplit(maxsplit=4)[0]: [float(word) for word in line.rsplit(maxsplit=4)[1:]] for line in lines[-3:]}
    assert set(meter) == {"TBPTT(10, 30)", "ARTBP", "SnAp-1"}
    bias, variance = {name: row[0] for name, row in meter.items()}, {name: row[1] for name, row in meter.items()}
    assert 0 < bias["TBPTT(10, 30)"] < 0.5 and variance["ARTBP"] > 0 == variance["SnAp-1"]
