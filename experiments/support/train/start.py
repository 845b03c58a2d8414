"""Choose what a run starts from: its linear forecast, and windows that suit the data."""

import dataclasses
from pathlib import Path
from typing import Any

from experiments.support.common.json_file import read_config
from experiments.support.train.data import RunData, linear_forecast
from experiments.support.train.linear import LINEAR_FILE, Linear
from experiments.support.train.linear_fit import Fitted
from experiments.support.train.task import Forecast

K1 = 50  # if no linear forecast says more
SHORTEST, LONGEST = 20, 100  # bounds of a chosen k1
ENOUGH = 1.1  # an error within this factor of the lowest one is as good


def start_of(config: Any, data: RunData, folder: Path) -> tuple[Any, Linear | None, list[str]]:
    """Return the settings with a number for k1, the linear forecast, and what was chosen and why.

    A resumed run reads its linear forecast; with --init-from, it is that of the earlier run.
    """
    if not isinstance(data.task, Forecast):
        return _with_k1(config, None)[0], None, []
    if (source := config.resume or config.init_from) is not None:
        old = read_config(source)
        linear = Linear.load(source / LINEAR_FILE) if old.get("linear") else None
        k1 = old["k1"] if config.k1 == "auto" else config.k1
        return dataclasses.replace(config, k1=k1, linear=linear is not None), linear, []
    fitted = linear_forecast(data) if config.linear or config.k1 == "auto" else None
    config, said = _with_k1(config, fitted)
    if not config.linear:
        return config, None, said
    if fitted is None:
        said.append("no linear forecast: the recordings have too few rows")
        return dataclasses.replace(config, linear=False), None, said
    said.insert(
        0,
        f"the network starts from a linear forecast: newest {fitted.linear.reach} rows, ridge "
        f"{fitted.ridge:g}, standardised mse of the validation part {fitted.valid:.4g}",
    )
    return config, fitted.linear, said


def _with_k1(config: Any, fitted: Fitted | None) -> tuple[Any, list[str]]:
    """Replace k1 "auto" by twice the shortest past that a linear forecast needs."""
    if config.k1 != "auto":
        return config, []
    if fitted is None:
        return dataclasses.replace(config, k1=K1), []
    lag = min(r for r, error in fitted.by_reach.items() if error <= ENOUGH * fitted.valid)
    k1 = min(max(lag, SHORTEST), LONGEST)
    return dataclasses.replace(config, k1=k1), [
        f"--k1 {k1}: a linear forecast of the newest {lag} rows is within "
        f"{100 * (ENOUGH - 1):.0f} % of the best one"
    ]
