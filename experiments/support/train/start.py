"""Choose what a run starts from: its linear forecast, and windows that suit the data."""

import dataclasses
from pathlib import Path
from typing import Any

from experiments.support.common.json_file import read_config
from experiments.support.train.data import RunData, linear_forecast
from experiments.support.train.linear import LINEAR_FILE, Linear
from experiments.support.train.task import Forecast

GATED = ("lstm", "gru")  # the cells with a longest lag
K1 = 50  # if no linear forecast says more
SHORTEST, LONGEST = 20, 100  # bounds of a chosen k1
ENOUGH = 1.1  # an error within this factor of the lowest one is as good


def start_of(config: Any, data: RunData, folder: Path) -> tuple[Any, Linear | None, list[str]]:
    """Return the settings without "auto", the linear forecast, and what was chosen and why.

    A resumed run reads its linear forecast; with --init-from, it is that of the earlier run.
    """
    if not isinstance(data.task, Forecast):
        return dataclasses.replace(_chosen(config), linear=False), None, []
    if (source := config.resume or config.init_from) is not None:
        old = read_config(source)
        linear = Linear.load(source / LINEAR_FILE) if old.get("linear") else None
        config = _chosen(config, old["k1"], old.get("longest_lag"))
        return dataclasses.replace(config, linear=linear is not None), linear, []
    names = [name for name in ("k1", "longest_lag") if getattr(config, name) == "auto"]
    auto = [name for name in names if name == "k1" or config.cell in GATED]
    fitted = linear_forecast(data) if config.linear or auto else None
    said = []
    if config.linear and fitted is not None:
        said.append(
            f"the network starts from a linear forecast: newest {fitted.linear.reach} rows, ridge "
            f"{fitted.ridge:g}, standardised rmse of the validation part {fitted.valid**0.5:.4g}"
        )
    elif config.linear:
        said.append("no linear forecast: the recordings have too few rows")
    if fitted is None:
        return dataclasses.replace(_chosen(config), linear=False), None, said
    lag = min(r for r, error in fitted.by_reach.items() if error <= ENOUGH * fitted.valid)
    chosen = _chosen(config, min(max(lag, SHORTEST), LONGEST), max(lag, SHORTEST))
    if auto:
        flags = " ".join(f"--{n.replace('_', '-')} {getattr(chosen, n)}" for n in auto)
        said.append(
            f"{flags}: a linear forecast of the newest {lag} rows is within "
            f"{100 * (ENOUGH - 1):.0f} % of the best one"
        )
    return chosen, fitted.linear if config.linear else None, said


def _chosen(config: Any, k1: int = K1, longest_lag: int | None = None) -> Any:
    """Replace "auto" by values; only LSTM and GRU have a longest lag."""
    longest_lag = longest_lag if config.cell in GATED else None
    return dataclasses.replace(
        config,
        k1=k1 if config.k1 == "auto" else config.k1,
        longest_lag=longest_lag if config.longest_lag == "auto" else config.longest_lag,
    )
