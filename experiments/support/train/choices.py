"""Choose what flags leave open: k1, k2, the batch size, the linear forecast; check the flags."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import tbptt
from experiments.support.common.json_file import read_config
from experiments.support.train.data import (
    RunData,
    default_batch,
    largest_batch,
    linear_forecast,
    longest_sequence,
)
from experiments.support.train.linear import LINEAR_FILE, Linear
from experiments.support.train.task import Forecast

DEFAULT_K1 = 50  # steps, if there is no linear forecast to choose by
MIN_K1, MAX_K1 = 20, 100  # steps, bounds of a chosen k1
# A squared error up to this multiple of the lowest one suffices.
ERROR_RATIO = 1.1


class Choice(NamedTuple):
    """An estimator that --estimator can name.

    make:  `(loss_fn, config) -> estimator`
    chunk: `config -> number of steps per update`
    """

    make: Callable[[tbptt.LossFn, Any], tbptt.Estimator]
    chunk: Callable[[Any], int]


def _k1(config: Any) -> int:
    return config.k1


def _k2(config: Any) -> int:
    return config.k2


def _adaptive(loss_fn: tbptt.LossFn, config: Any) -> tbptt.Estimator:
    windows, k2 = [], config.k1
    while k2 < config.k2:
        windows.append(k2)
        k2 *= 2
    return tbptt.adaptive_bptt(loss_fn, config.k1, (*windows, config.k2), config.delta)


def _randomized(loss_fn: tbptt.LossFn, config: Any) -> tbptt.Estimator:
    return tbptt.randomized_bptt(
        loss_fn, config.k1, tbptt.estimators.HeavyTail(mean_length=config.k2 / 2)
    )


ESTIMATORS: dict[str, Choice] = {
    "full": Choice(lambda loss_fn, config: tbptt.full_bptt(loss_fn), _k2),
    "truncated": Choice(
        lambda loss_fn, config: tbptt.truncated_bptt(loss_fn, config.k1, config.k2), _k1
    ),
    "adaptive": Choice(_adaptive, _k1),
    "randomized": Choice(_randomized, _k2),
    "snap1": Choice(lambda loss_fn, config: tbptt.snap(loss_fn, 1), _k1),
    "rtrl": Choice(lambda loss_fn, config: tbptt.rtrl(loss_fn), _k1),
    "uoro": Choice(lambda loss_fn, config: tbptt.uoro(loss_fn), _k1),
}
# Cells that an unroll function supports, and whether it supports several layers.
UNROLL_CELLS = {
    "parallel": (("minlstm", "mingru"), False),
    "numba": (("lstm", "gru", "elman"), True),
}


def check_positive_ints(config: Any) -> None:
    """Raise a ValueError with a remedy unless k1 and k2 suit the estimator."""
    k1, k2 = config.k1, config.k2
    if config.estimator == "randomized" and (k2 % k1 or k2 < 4 * k1):
        near = max(4, round(k2 / k1)) * k1
        raise ValueError(
            f"--estimator randomized truncates {k2} steps (--k2) at random multiples of --k1: k2 "
            f"must be a multiple of k1 "
            f"and at least 4 k1; got k1={k1}, k2={k2}. Try --k2 {near}"
        )
    if config.estimator == "adaptive" and k2 <= k1:
        raise ValueError(
            f"--estimator adaptive chooses windows of --k1 to --k2 steps: k2 must be larger than "
            f"k1; got k1={k1}, "
            f"k2={k2}. Try --k2 {8 * k1}"
        )
    if config.estimator == "adaptive" and not 0 < config.delta < 1:
        raise ValueError(
            f"--delta, the tolerated bias, must be above 0 and below 1; got {config.delta:g}"
        )


def check_unroll(config: Any) -> None:
    """Raise a ValueError with a remedy unless the unroll function supports the cell."""
    cells, stacks = UNROLL_CELLS.get(config.unroll, ((config.cell,), True))
    if config.cell not in cells or (config.layers > 1 and not stacks):
        layers = "" if stacks else " of one layer"
        raise ValueError(
            f"--unroll {config.unroll} supports --cell {' and '.join(cells)}{layers}; got --cell "
            f"{config.cell} "
            f"--layers {config.layers}. Try --unroll scan"
        )


def check_ranges(config: Any) -> None:
    """Raise a ValueError that names the flag unless every number is in its range."""
    for name in (
        "k1",
        "k2",
        "batch",
        "hidden",
        "layers",
        "forecasts",
        "devices",
        "seeds",
        "memory",
        "keep",
    ):
        value = getattr(config, name)
        if value not in (None, "auto") and value < 1:
            raise ValueError(f"--{name} must be at least 1; got {value}")
    if config.longest_lag is not None and config.cell not in ("lstm", "gru"):
        raise ValueError(
            f"--longest-lag is for --cell lstm and gru; got {config.longest_lag} with --cell "
            f"{config.cell}"
        )
    if config.longest_lag is not None and config.longest_lag < 3:
        raise ValueError(f"--longest-lag must be at least 3 steps; got {config.longest_lag}")
    if config.patience is not None and config.patience < 0:
        raise ValueError(f"--patience must be at least 0; got {config.patience}")
    for name in ("clip", "lr"):
        if not getattr(config, name) > 0:
            raise ValueError(f"--{name} must be above 0; got {getattr(config, name):g}")
    if config.valid_every is not None and config.valid_every < 1:
        raise ValueError(f"--valid-every must be at least 1 update; got {config.valid_every}")
    if config.horizon < 0:
        raise ValueError(f"--horizon must be at least 0; got {config.horizon}")
    if config.task == "forecast" and config.horizon % config.forecasts:
        raise ValueError(
            f"--forecasts must divide --horizon; got {config.forecasts} and {config.horizon}"
        )
    if config.task == "forecast" and config.horizon == 0 and config.forecasts > 1:
        raise ValueError(
            f"--horizon 0 has one estimate a row, so --forecasts must be 1; got {config.forecasts}"
        )


def choose_k1_and_linear(config: Any, data: RunData) -> tuple[Any, Linear | None, list[str]]:
    """Fit the linear forecast that the network is added to, and choose k1 by it.

    Returns:
      `(settings with a number for k1, linear forecast or None, reasons as text)`.

    A resumed run reads its linear forecast from its folder, --init-from from the earlier run.
    """
    auto = config.k1 == "auto"
    without = dataclasses.replace(config, k1=DEFAULT_K1 if auto else config.k1, linear=False)
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
    reasons = []
    if config.linear:
        reasons.append(
            f"the network is added to a linear forecast: last {fitted.linear.order} rows, ridge "
            f"{fitted.ridge:g}, standardised rmse of the validation part {fitted.valid**0.5:.4g}"
        )
    if auto:
        lag = min(r for r, error in fitted.by_order.items() if error <= ERROR_RATIO * fitted.valid)
        config = dataclasses.replace(config, k1=min(max(lag, MIN_K1), MAX_K1))
        reasons.append(
            f"--k1 {config.k1}: the squared error of a linear forecast by the last {lag} rows is "
            f"within {100 * (ERROR_RATIO - 1):.0f} % of the best one"
        )
    return config, fitted.linear if config.linear else None, reasons


def fill_defaults(config: Any, data: RunData) -> Any:
    """Replace the defaults of --batch, --k1 and --k2 by numbers; k1 is not "auto" any more.

    Raises:
        ValueError: a flag does not fit the data or another flag; the message names it.
    """
    multiple = 8 if config.estimator in ("adaptive", "randomized") else 2
    k2 = config.k2 or multiple * config.k1
    batch, most = config.batch or default_batch(data, k2, config.devices), largest_batch(data)
    if batch > most:
        what = "recordings" if config.task == "classify" else "rows"
        raise ValueError(
            f"--batch must be at most {most}, the number of training {what}; got {batch}"
        )
    if config.estimator == "full":
        whole = longest_sequence(data, batch)
        if config.resume is None and config.k2 is not None and config.k2 != whole:
            raise ValueError(
                f"--estimator full propagates the gradient through each whole training sequence, "
                f"here {whole} steps; got "
                f"--k2 {config.k2}. Omit --k2, or use --estimator truncated"
            )
        config = dataclasses.replace(config, k1=whole)
        k2 = whole
    config = dataclasses.replace(config, batch=batch, k2=k2)
    check_positive_ints(config)
    check_unroll(config)
    return config
