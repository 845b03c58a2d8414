"""Score the linear forecasts of `experiments.ecg`, and define the networks' forms."""

from typing import Any, NamedTuple

import numpy as np

from experiments.support.common.console import console
from experiments.support.common.linear_forecast import (
    Forecast,
    even_lags,
    predictions,
    ridge_forecast,
)
from experiments.support.tasks.ecg_data import TEST_START, TRAIN_END

LAGS = 64
RIDGES = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)


class Form(NamedTuple):
    """A form of network, which predicts the residuals of a base forecast.

    name:  "LSTM alone", or the name of its ridge
    base:  base forecast `[T, K C]`
    first: the first step with a base forecast
    lr:    initial learning rate of Adam
    """

    name: str
    base: np.ndarray
    first: int
    lr: float


def baselines(
    scaled: np.ndarray,
    windows: tuple[int, ...],
    horizons: tuple[int, ...],
    lr: float,
    correction_lr: float,
) -> tuple[dict[str, Any], tuple[Form, ...]]:
    """Score last value, mean and a ridge for every window; make the two forms of networks.

    Args:
      windows: numbers of past steps that the ridge regressions use.
      lr, correction_lr: learning rates of the networks alone and on the residuals of a ridge.
    """
    test = (TEST_START, len(scaled))
    origins = np.arange(test[0], test[1] - max(horizons))
    still = np.array(
        [np.mean((scaled[origins + h] - scaled[origins]) ** 2, axis=0) for h in horizons]
    )
    mean = np.array([np.mean(scaled[origins + h] ** 2, axis=0) for h in horizons])
    found: list[Forecast] = []
    ridge, lags = [], []
    for order in windows:
        lags.append(even_lags(order, LAGS))
        of = ridge_forecast(
            scaled, lags[-1], horizons, RIDGES, TRAIN_END, (TRAIN_END, TEST_START), test
        )
        found.append(of)
        row = {"order": order, "lags": len(lags[-1]), "ridge": of.ridge}
        row |= {"valid_mse": float(of.valid.mean()), "test_mse": float(of.test.mean())}
        row |= {"by_horizon": of.test.mean(1).tolist(), "by_channel": of.test.mean(0).tolist()}
        console.print(
            f"ridge AR({order}): validation MSE {row['valid_mse']:.4f}, penalty {of.ridge:g}"
        )
        ridge.append(row)
    by = {"last value": still, "mean": mean}
    plain = {
        name: {"test_mse": float(e.mean()), "by_horizon": e.mean(1).tolist()}
        for name, e in by.items()
    }
    best = min(range(len(ridge)), key=lambda i: ridge[i]["valid_mse"])
    base, first = predictions(scaled, lags[best], found[best].weights), max(lags[best])
    forms = (
        Form("LSTM alone", np.zeros_like(base), 0, lr),
        Form(f"LSTM on ridge AR({ridge[best]['order']})", base, first, correction_lr),
    )
    return {"ridge": ridge, "plain": plain}, forms
