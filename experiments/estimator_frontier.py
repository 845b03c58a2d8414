"""The meter on three tasks: how wrong every estimator is, and what it costs.

    python -m experiments.estimator_frontier            about 2 minutes on two cores
    python -m experiments.estimator_frontier --quick    under 60 seconds: smaller models, fewer estimators and draws

`tbptt.diagnostics.compare_estimators` at fixed parameters, against full BPTT in float64, on the pulse recording and on a copy task
(each after a short training, so that gradients are those of a network that does something), and on influence balancing,
where short windows have the wrong sign. Expected: the bias of TBPTT falls with k2; RTRL has none and costs as many tangents
as there are parameters; UORO and ARTBP have none but chance, and a large variance; SnAp-1 lies between.
TBPTT's bias is never above the bound of Theorem 1.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import tbptt
from experiments.support.common import program
from experiments.support.estimators import influence
from experiments.support.estimators.frontier_figure import draw as draw
from experiments.support.estimators.frontier_figure import show
from experiments.support.estimators.theorem import bound_rows
from tbptt.data import copy_stream, forecast_pairs, ppg, standardise
from tbptt.diagnostics import EstimatorRow, frontier

TASKS = ("ppg", "copy", "influence")
ROUNDING = 1e-5  # a bias that float32 alone explains: below it estimators are exact, and only their cost differs


@dataclasses.dataclass(frozen=True)
class Config(program.Common):
    """Bias, variance, seconds and bytes of many estimators on three tasks."""

    hidden: int = 16
    """units of the LSTM (RTRL's cost grows with their fourth power)"""
    length: int = 400
    """T, steps of the data that the gradients are compared on; a multiple of 100"""
    lanes: int = 4
    """sequences side by side"""
    draws: int = 64
    """gradients drawn of each estimator that draws"""
    updates: int = 300
    """of the short training before"""


@dataclasses.dataclass(frozen=True)
class Problem:
    """Where estimators are compared."""

    loss_fn: tbptt.LossFn
    params: Any
    carry: Any
    batch: tbptt.Batch


def recurrent(cell: Any, readout: nn.Module, loss: Any, batch: tbptt.Batch, config: Config) -> Problem:
    """Trains a network for a while on a batch by TBPTT(50, 50), and hands over what follows in the stream."""
    loss_fn = tbptt.sequence_loss(cell, readout, loss)
    estimator, optimizer = (
        tbptt.truncated_bptt(loss_fn, 50, 50),
        optax.chain(optax.clip_by_global_norm(1.0), optax.adam(5e-3)),
    )
    params = tbptt.init_params(jax.random.key(config.seed), cell, readout)
    carry = cell.initial_carry((config.lanes,))
    train = jax.tree.map(lambda a: a[: -config.length], batch)
    state = tbptt.init_state(estimator, optimizer, params, carry, jax.tree.map(lambda a: a[:50], train))
    state, _ = tbptt.make_train_epoch(estimator, optimizer, 50)(state, train)
    return Problem(loss_fn, state.params, state.memory, jax.tree.map(lambda a: a[-config.length :], batch))


def make_problem(task: str, config: Config) -> Problem:
    """Makes one of the three."""
    T = 50 * config.updates + config.length
    if task == "influence":
        start = jnp.asarray(influence.START)
        return Problem(influence.loss_fn, start, jnp.ones(influence.N), influence.steps(config.length))
    if task == "copy":
        batch = copy_stream(jax.random.key(config.seed + 1), T, config.lanes, 10)
        cell = tbptt.LSTM(6, config.hidden)
        return recurrent(cell, nn.Dense(6), optax.softmax_cross_entropy_with_integer_labels, batch, config)
    values, _ = standardise(ppg(2).values[:, :1], 180_000)
    inputs, targets = forecast_pairs(values, 0, (32,))
    lane = [slice(i * 40_000, i * 40_000 + T) for i in range(config.lanes)]
    stacked = (jnp.stack([jnp.asarray(a[s], jnp.float32) for s in lane], axis=1) for a in (inputs, targets))
    return recurrent(tbptt.LSTM(1, config.hidden), nn.Dense(1), tbptt.squared_error, tbptt.Batch(*stacked), config)


def estimators(problem: Problem, quick: bool) -> dict[str, tbptt.Estimator]:
    """Makes all that are compared."""
    loss_fn = problem.loss_fn
    windows = (
        ((10, 10), (10, 50), (10, 100))
        if quick
        else ((10, 10), (50, 50), (100, 100), (10, 20), (10, 50), (10, 100), (1, 50))
    )
    made = {f"TBPTT({k1}, {k2})": tbptt.truncated_bptt(loss_fn, k1, k2) for k1, k2 in windows}
    return made | {
        "full BPTT": tbptt.full_bptt(loss_fn),
        "random windows": tbptt.random_window_bptt(loss_fn, 5, tbptt.estimators.AwdLengths(50)),
        "ARTBP, constant": tbptt.randomized_bptt(loss_fn, 5, tbptt.estimators.ConstantRate(50)),
        "ARTBP, heavy tail": tbptt.randomized_bptt(loss_fn, 5, tbptt.estimators.HeavyTail(50)),
        "RTRL": tbptt.rtrl(loss_fn),
        "SnAp-1": tbptt.snap(loss_fn, 1),
        "UORO": tbptt.uoro(loss_fn),
    }


def chosen(problem: Problem, quick: bool) -> dict[str, tbptt.Estimator]:
    """Makes those that choose as the stream goes by: they must be fed in pieces."""
    windows = (10, 100) if quick else (10, 20, 50, 100)
    return {"adaptive, delta 0.1": tbptt.adaptive_bptt(problem.loss_fn, 10, windows, 0.1, losses=4)}


def compare(
    problem: Problem, compared: dict[str, tbptt.Estimator], piece: int | None, config: Config
) -> list[EstimatorRow]:
    """Runs the meter."""
    return tbptt.diagnostics.compare_estimators(
        compared,
        problem.params,
        problem.carry,
        problem.batch,
        reference=tbptt.full_bptt(problem.loss_fn),
        piece=piece,
        key=jax.random.key(config.seed + 2),
        draws=config.draws,
        repeats=3,
    )


def measure(config: Config) -> dict[str, Any]:
    """Compares on every task."""
    if config.quick:
        config = dataclasses.replace(config, hidden=8, length=200, draws=16, updates=100)
    rows: list[dict[str, Any]] = []
    bounds: list[dict[str, Any]] = []
    for task in TASKS:
        problem = make_problem(task, config)
        at_once, fed = estimators(problem, config.quick), chosen(problem, config.quick)
        found = compare(problem, at_once, None, config) + compare(problem, fed, 50, config)
        best = {row.estimator for row in frontier(found, rounding=ROUNDING)}
        rows += [{"task": task, **row._asdict(), "frontier": row.estimator in best} for row in found]
        show(task, found, best)
        if task == "influence" or not config.quick:
            seen = bound_rows(problem.loss_fn, problem.params, problem.carry, problem.batch, (5, 10, 20, 50, 80))
            bounds += [{"task": task, **row} for row in seen]
    at = {(row["task"], row["estimator"]): row for row in rows}
    online = [at[task, "RTRL"]["bias"] for task in TASKS]
    drawn = [at[task, name] for task in TASKS for name in ("ARTBP, constant", "ARTBP, heavy tail", "UORO")]
    chance = max(row["bias"] / row["bias_error"] for row in drawn if row["bias_error"])
    slack = [row["slack"] for row in bounds if row["slack"] is not None]
    return {
        "rounding": ROUNDING,
        "results": {"rows": rows, "theorem_1": bounds},
        "claims": [
            program.claim(
                1,
                "TBPTT(10, 10) against TBPTT(10, 100): bias by task",
                "; ".join(
                    f"{t}: {at[t, 'TBPTT(10, 10)']['bias']:.3f}, {at[t, 'TBPTT(10, 100)']['bias']:.3f}" for t in TASKS
                ),
                "the longer window is less biased on every task",
                all(at[t, "TBPTT(10, 100)"]["bias"] < at[t, "TBPTT(10, 10)"]["bias"] for t in TASKS),
            ),
            program.claim(2, "RTRL: largest bias", max(online), "below 1e-4 (float32)", max(online) < 1e-4),
            # The mean of d draws is as far off as its standard error, give or take, if the estimator is unbiased.
            program.claim(3, "ARTBP, UORO: largest bias / its standard error", chance, "below 3: chance alone", chance < 3),
            program.claim(
                4,
                "Theorem 1, TBPTT(1, k2): bound on the bias / measured bias, least and largest",
                f"{min(slack):.3g}; {max(slack):.3g}" if slack else "no bound",
                "never below 1",
                slack and min(slack) >= 1,
            ),
        ],
    }


if __name__ == "__main__":
    program.run(__file__)
