"""The README's examples run as they stand, one after another in a fresh interpreter, and print what it says."""

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def test_the_examples_run_and_full_equals_truncated():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert len(blocks) == 2
    done = subprocess.run(
        [sys.executable, "-c", "".join(blocks)], capture_output=True, text=True, cwd=README.parent, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    full, cut = ([float(word) for word in line.split()] for line in lines[:2])
    assert max(abs(a - b) / abs(a) for a, b in zip(full, cut, strict=True)) < 1e-5
    meter = {line.rsplit(maxsplit=4)[0]: [float(word) for word in line.rsplit(maxsplit=4)[1:]] for line in lines[-3:]}
    assert set(meter) == {"TBPTT(10, 30)", "ARTBP", "SnAp-1"}
    bias, variance = {name: row[0] for name, row in meter.items()}, {name: row[1] for name, row in meter.items()}
    assert 0 < bias["TBPTT(10, 30)"] < 0.5 and variance["ARTBP"] > 0 == variance["SnAp-1"]
