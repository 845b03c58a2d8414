"""Fit the linear forecast of a run, and choose k1 by it."""

import dataclasses
from typing import Any

from experiments.support.common.json_file import read_config
from experiments.support.train.data import RunData, linear_forecast
from experiments.support.train.linear import LINEAR_FILE, Linear
from experiments.support.train.task import Forecast

K1 = 50  # steps, if there is no linear forecast to choose by
SHORTEST, LONGEST = 20, 100  # steps, bounds of a chosen k1
ENOUGH = 1.1  # a squared error up to this multiple of the lowest one suffices


def start_of(config: Any, data: RunData) -> tuple[Any, Linear | None, list[str]]:
    """Return the settings with a number for k1, the linear forecast, and the reasons as text.

    A resumed run reads its linear forecast from its folder, --init-from from the earlier run.
    """
    auto = config.k1 == "auto"
    without = dataclasses.replace(config, k1=K1 if auto else config.k1, linear=False)
    if not isinstance(data.task, Forecast):
        return without, None, []
    if (source := config.resume or config.init_from) is not None:
        old = read_config(source)
        linear = Linear.load(source / LINEAR_FILE) if old.get("linear") else None
        k1 = old["k1"] if auto else config.k1
        return dataclasses.replace(config, k1=k1, linear=linear is not None), linear, []
    fitted = linear_forecast(data) if config.linear or auto else None
    if fitted is None:
        few = ["no linear forecast: too few rows have all targets and enough rows before them"]
        return without, None, few if config.linear else []
    said = []
    if config.linear:
        said.append(
            f"the network is added to a linear forecast: last {fitted.linear.reach} rows, ridge "
            f"{fitted.ridge:g}, standardised rmse of the validation part {fitted.valid**0.5:.4g}"
        )
    if auto:
        lag = min(r for r, error in fitted.by_reach.items() if error <= ENOUGH * fitted.valid)
        config = dataclasses.replace(config, k1=min(max(lag, SHORTEST), LONGEST))
        said.append(
            f"--k1 {config.k1}: the squared error of a linear forecast by the last {lag} rows is "
            f"within {100 * (ENOUGH - 1):.0f} % of the best one"
        )
    return config, fitted.linear if config.linear else None, said
