"""What is forecast without a network in `experiments.ecg`, and what a network is asked for beside it."""

from typing import Any, NamedTuple

import numpy as np

from experiments.support.common.console import console
from experiments.support.common.linear_forecast import Forecast, even_lags, predictions, ridge_forecast
from experiments.support.tasks.ecg_data import TEST_START, TRAIN_END

LAGS = 64
RIDGES = (1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2)


class Form(NamedTuple):
    """What a network is asked for: `base` is forecast without it, and it says what that leaves.

    name: alone or on a ridge; base: `[T, K C]`; first: the first step that base forecasts from; lr: Adam's rate.
    """

    name: str
    base: np.ndarray
    first: int
    lr: float


def baselines(
    scaled: np.ndarray, windows: tuple[int, ...], horizons: tuple[int, ...], lr: float, correction_lr: float
) -> tuple[dict[str, Any], tuple[Form, ...]]:
    """Scores the last value, the mean, and a ridge regression of every reach; makes the networks' two forms.

    Args: windows: reaches, steps; lr, correction_lr: Adam's rates alone and on a ridge.
    """
    test = (TEST_START, len(scaled))
    origins = np.arange(test[0], test[1] - max(horizons))
    still = np.array([np.mean((scaled[origins + h] - scaled[origins]) ** 2, axis=0) for h in horizons])
    mean = np.array([np.mean(scaled[origins + h] ** 2, axis=0) for h in horizons])
    found: list[Forecast] = []
    ridge, lags = [], []
    for reach in windows:
        lags.append(even_lags(reach, LAGS))
        of = ridge_forecast(scaled, lags[-1], horizons, RIDGES, TRAIN_END, (TRAIN_END, TEST_START), test)
        found.append(of)
        row = {"reach": reach, "lags": len(lags[-1]), "ridge": of.ridge}
        row |= {"valid_mse": float(of.valid.mean()), "test_mse": float(of.test.mean())}
        row |= {"by_horizon": of.test.mean(1).tolist(), "by_channel": of.test.mean(0).tolist()}
        console.print(f"ridge AR, reach {reach}: validation {row['valid_mse']:.4f}, penalty {of.ridge:g}")
        ridge.append(row)
    by = {"last value": still, "mean": mean}
    plain = {name: {"test_mse": float(e.mean()), "by_horizon": e.mean(1).tolist()} for name, e in by.items()}
    best = min(range(len(ridge)), key=lambda i: ridge[i]["valid_mse"])
    base, first = predictions(scaled, lags[best], found[best].weights), max(lags[best])
    forms = (
        Form("LSTM alone", np.zeros_like(base), 0, lr),
        Form(f"LSTM on ridge AR({ridge[best]['reach']})", base, first, correction_lr),
    )
    return {"ridge": ridge, "plain": plain}, forms
