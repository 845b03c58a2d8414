"""Run experiments.train in this process."""

import json
from typing import Any

import tyro

from experiments import train


def go(capsys: Any, *flags: object) -> tuple[int, str, str]:
    """Run the program; return its exit status, stdout and stderr."""
    words = [str(flag) for flag in flags]
    status = train.run(lambda **more: tyro.cli(train.Config, args=words, **more))
    return status, *capsys.readouterr()


def last(out: str) -> Any:
    """Return the summary, the last line of stdout."""
    return json.loads(out.splitlines()[-1])
