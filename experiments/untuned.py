"""Train on four series without tuning, by the command of a user, and compare with linear forecasts.

    python -m experiments.untuned            about 20 minutes on two cores: 12 runs of a minute
    python -m experiments.untuned --quick    under 2 minutes: two series, one seed, 10 seconds each

Every run is `python -m experiments.train --data FILE --target COLUMN --horizon H --minutes 1
--seed S` with no other flag. The series, with 20,000 rows unless said otherwise:

    two tones       two sines and noise of standard deviation 0.15; 10 rows ahead
    Mackey-Glass    tau = 17, sampled once a time unit; 6 rows ahead, as published results are
    pulse           the recording `ppg`, 277,548 samples at 128 Hz; 32 rows ahead (downloaded)
    ten columns     a noisy, saturating system, of which three columns stop after two thirds of the
                    rows; column c0, 5 rows ahead

Expected: the test error of every seed is at most that of ridge AR(256) of the same run. On
Mackey-Glass, the normalised error (rmse over the standard deviation) is at most 0.02, which
Jang, *ANFIS*, IEEE Trans. SMC 23 (1993), quotes for a network trained by back-propagation at this
horizon.
"""

import csv
import dataclasses
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.support.common import program, style, targets
from experiments.support.common.console import console
from tbptt.data import mackey_glass, ppg

ROWS, LINEAR = 20_000, "ridge AR(256)"
PUBLISHED = 0.02


class Series(NamedTuple):
    """values: `() -> [T, C]`; target: the column forecast; horizon: rows ahead."""

    values: Callable[[], np.ndarray]
    target: str
    horizon: int


def two_tones() -> np.ndarray:
    """Return two sines of periods 20 and 33.7 rows, and noise."""
    t, rng = np.arange(ROWS), np.random.default_rng(0)
    tones = np.sin(2 * np.pi * t / 20) + 0.7 * np.sin(2 * np.pi * t / 33.7 + 1)
    return (tones + 0.15 * rng.standard_normal(ROWS))[:, None]


def ten_columns() -> np.ndarray:
    """Return a driven system of ten coupled columns; the last three stop after two thirds.

    x[t] = A tanh(x[t - 1]) + 0.3 sin(2 pi t / 48 + phase) + 0.3 noise
    """
    C, rng = 10, np.random.default_rng(0)
    A = np.diag(0.7 + 0.02 * np.arange(C)) + 0.15 * np.roll(np.eye(C), 1, axis=1)
    A *= 0.97 / np.max(np.abs(np.linalg.eigvals(A)))
    noise, x = 0.3 * rng.standard_normal((ROWS, C)), np.zeros((ROWS, C))
    for t in range(1, ROWS):
        drive = 0.3 * np.sin(2 * np.pi * t / 48 + np.arange(C))
        x[t] = A @ np.tanh(x[t - 1]) + drive + noise[t]
    stop = 2 * ROWS // 3
    x[stop:, 7:] = x[stop, 7:]
    return x


SERIES = {
    "two tones": Series(two_tones, "c0", 10),
    "Mackey-Glass": Series(lambda: mackey_glass(ROWS).values, "c0", 6),
    "pulse": Series(lambda: ppg().values[:, :1], "c0", 32),
    "ten columns": Series(ten_columns, "c0", 5),
}


@dataclasses.dataclass(frozen=True)
class Config(program.Common):
    """Four series, each trained without tuning."""

    quick: bool = False
    """run a smaller version, under 2 minutes; the summary records it"""
    seeds: int = 3
    """number of seeds of every series"""
    minutes: float = 1.0
    """training time of every run"""


def train(file: Path, series: Series, minutes: float, seed: int, folder: Path) -> dict[str, Any]:
    """Run experiments.train in a process of its own, and return its summary."""
    flags = ["--data", file, "--target", series.target, "--horizon", series.horizon]
    flags += ["--minutes", minutes, "--seed", seed, "--out", folder]
    command = [sys.executable, "-m", "experiments.train", *map(str, flags)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(config: Config) -> dict[str, Any]:
    """Train every series with every seed; the errors are those of the test part."""
    names = list(SERIES)
    if config.quick:
        names, config = names[:2], dataclasses.replace(config, seeds=1, minutes=1 / 6)
    rows, found = [], {}
    with tempfile.TemporaryDirectory() as temporary:
        for name in names:
            series, file = SERIES[name], Path(temporary) / f"{name.replace(' ', '_')}.csv"
            write(file, series.values())
            runs = []
            for seed in range(config.seed, config.seed + config.seeds):
                folder = Path(temporary) / f"{file.stem}_{seed}"
                runs.append(train(file, series, config.minutes, seed, folder))
                console.print(
                    f"{name}, seed {seed}: test rmse {runs[-1]['test_rmse']:.4g}; {LINEAR} "
                    f"{runs[-1]['baselines'][LINEAR]['rmse']:.4g}"
                )
            errors = [run["test_rmse"] for run in runs]
            linear = runs[0]["baselines"][LINEAR]["rmse"]
            found[name] = {
                "rmse": errors,
                "standardised_rmse": [run["test_standardised_rmse"] for run in runs],
                "updates": [run["updates"] for run in runs],
                "baselines": {key: value["rmse"] for key, value in runs[0]["baselines"].items()},
            }
            rows.append(
                targets.expect(
                    f"{name}: test rmse over that of {LINEAR}",
                    np.divide(errors, linear),
                    at_most=1.0,
                    of=targets.largest,
                )
            )
            if name == "Mackey-Glass":
                rows.append(
                    targets.expect(
                        f"{name}: normalised test rmse, {series.horizon} rows ahead",
                        found[name]["standardised_rmse"],
                        at_most=PUBLISHED,
                        of=targets.largest,
                        because="Jang 1993, a network trained by back-propagation",
                    )
                )
    return {"targets": rows, "results": {"series": found}, "judged": not config.quick}


def write(file: Path, values: np.ndarray) -> None:
    """Write columns c0, c1, ... to a .csv file."""
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow([f"c{i}" for i in range(values.shape[1])])
        writer.writerows([[f"{value:.8g}" for value in row] for row in values])


def draw(data: dict[str, Any], folder: Path) -> None:
    """Draw the errors of the seeds and of the baselines, each over that of ridge AR(256)."""
    figure, (axis,) = style.panels(1, title="Trained for a minute, without tuning", width=8.0)
    found = data["results"]["series"]
    shown = {"last value": "v", "ridge AR(16)": "s", LINEAR: "D"}
    for x, row in enumerate(found.values()):
        linear = row["baselines"][LINEAR]
        targets.dots(axis, x, [error / linear for error in row["rmse"]])
        for i, (name, marker) in enumerate(shown.items()):
            error = row["baselines"][name] / linear
            axis.plot(x + 0.25, error, marker, color=style.COLORS[i + 1], ms=7, mfc="none",
                      label=name if x == 0 else None)  # fmt: skip
    axis.plot([], [], style.MARKERS[0], color=style.COLORS[0], mfc="none",
              label="network, one dot a seed; bar: median")  # fmt: skip
    axis.axhline(1, color=style.GREY, lw=1, ls=":")
    axis.set_xticks(range(len(found)), list(found))
    axis.set(yscale="log", ylabel=f"test rmse over that of {LINEAR} (logarithmic)")
    axis.legend(fontsize=8)
    style.save(figure, folder, "untuned")


if __name__ == "__main__":
    program.run(__file__)
