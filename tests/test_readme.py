"""The README's example runs as it stands, in a fresh interpreter, and prints what it says."""

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def test_the_example_runs_and_full_equals_truncated():
    block = re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert block is not None
    done = subprocess.run([sys.executable, "-c", block[1]], capture_output=True, text=True, cwd=README.parent, check=False)
    assert done.returncode == 0, done.stderr
    full, cut = ([float(word) for word in line.split()] for line in done.stdout.splitlines()[:2])
    assert max(abs(a - b) / abs(a) for a, b in zip(full, cut, strict=True)) < 1e-5
