"""Which estimator a name on the command line means, and what it makes of k1 and k2."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import tbptt
from experiments.support.train.data import RunData, default_lanes, longest_lane


class Choice(NamedTuple):
    """make: `(loss_fn, config) -> estimator`; chunk: `config -> steps an update`; sees: what its k2 means, for errors."""

    make: Callable[[tbptt.LossFn, Any], tbptt.Estimator]
    chunk: Callable[[Any], int]
    uses_k2: bool


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
    return tbptt.randomized_bptt(loss_fn, config.k1, tbptt.estimators.HeavyTail(mean_length=config.k2 / 2))


ESTIMATORS: dict[str, Choice] = {
    "full": Choice(lambda loss_fn, config: tbptt.full_bptt(loss_fn), _k2, True),
    "truncated": Choice(lambda loss_fn, config: tbptt.truncated_bptt(loss_fn, config.k1, config.k2), _k1, True),
    "adaptive": Choice(_adaptive, _k1, True),
    "randomized": Choice(_randomized, _k2, True),
    "snap1": Choice(lambda loss_fn, config: tbptt.snap(loss_fn, 1), _k1, False),
    "rtrl": Choice(lambda loss_fn, config: tbptt.rtrl(loss_fn), _k1, False),
    "uoro": Choice(lambda loss_fn, config: tbptt.uoro(loss_fn), _k1, False),
}


def check_windows(config: Any) -> None:
    """Raises a ValueError that names the flags and the remedy unless k1 and k2 suit the estimator."""
    k1, k2 = config.k1, config.k2
    if config.estimator == "randomized" and (k2 % k1 or k2 < 4 * k1):
        near = max(4, round(k2 / k1)) * k1
        raise ValueError(
            f"--estimator randomized cuts {k2} steps (--k2) at random between blocks of --k1: k2 must be a multiple of k1, "
            f"at least 4 of them; got k1={k1}, k2={k2}. Try --k2 {near}"
        )
    if config.estimator == "adaptive" and k2 <= k1:
        raise ValueError(
            f"--estimator adaptive chooses among windows from --k1 up to --k2, which must be longer; got k1={k1}, k2={k2}. "
            f"Try --k2 {8 * k1}"
        )
    if config.estimator == "adaptive" and not 0 < config.delta < 1:
        raise ValueError(f"--delta is the bias allowed, above 0 and below 1; got {config.delta:g}")


def resolve(config: Any, data: RunData) -> Any:
    """Fills in what was left to the program, lanes and windows, and checks what was not.

    Raises:
        ValueError: names the flag.
    """
    for name in ("k1", "k2", "lanes", "hidden", "layers", "forecasts", "horizon", "devices", "seeds", "memory", "keep"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} must be at least 1; got {value}")
    for name in ("clip", "lr"):
        if not getattr(config, name) > 0:
            raise ValueError(f"--{name} must be above 0; got {getattr(config, name):g}")
    if config.valid_every is not None and config.valid_every < 1:
        raise ValueError(f"--valid-every must be at least 1 update; got {config.valid_every}")
    if config.task == "forecast" and config.horizon % config.forecasts:
        raise ValueError(f"--forecasts must divide --horizon; got {config.forecasts} and {config.horizon}")
    windows = {"adaptive": 8, "randomized": 8}
    k2 = config.k2 or windows.get(config.estimator, 2) * config.k1
    lanes = config.lanes or default_lanes(data, k2, config.devices)
    if config.estimator == "full":
        whole = longest_lane(data, lanes)
        if config.resume is None and config.k2 is not None and config.k2 != whole:
            raise ValueError(
                f"--estimator full goes back through a whole lane, here {whole} steps; got --k2 {config.k2}. Leave it out, "
                "or take --estimator truncated"
            )
        config = dataclasses.replace(config, k1=whole)
        k2 = whole
    config = dataclasses.replace(config, lanes=lanes, k2=k2)
    check_windows(config)
    return config
