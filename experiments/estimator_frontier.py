"""Measure bias, variance and cost of all estimators on three tasks.

    python -m experiments.estimator_frontier            about 2 minutes on two cores
    python -m experiments.estimator_frontier --quick    under 60 seconds: fewer estimators

`tbptt.diagnostics.compare_estimators` compares gradients at fixed parameters with full BPTT in
float64. The tasks are the pulse recording and a copy task, each after a short training, and
influence balancing, where short windows have the wrong sign. Expected: the bias of TBPTT decreases
with k2. RTRL is unbiased and costs one tangent per parameter. UORO and ARTBP are unbiased with a
large variance. The bias of SnAp-1 is between these. The bias of TBPTT never exceeds the bound of
Theorem 1.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import tbptt
from experiments.support.common import program
from experiments.support.common.unroll_choice import choose_unroll
from experiments.support.estimators import influence
from experiments.support.estimators.frontier_figure import draw as draw
from experiments.support.estimators.frontier_figure import show
from experiments.support.estimators.theorem import bound_rows
from tbptt.data import copy_stream, forecast_pairs, ppg, standardise
from tbptt.diagnostics import EstimatorRow, frontier

TASKS = ("ppg", "copy", "influence")
ROUNDING = 1e-5  # relative bias of float32 rounding; estimators below it count as exact


@dataclasses.dataclass(frozen=True)
class Config(program.Trained):
    """Bias, variance, seconds and bytes of many estimators on three tasks."""

    hidden: int = 16
    """units of the LSTM (the cost of RTRL grows with their fourth power)"""
    length: int = 400
    """number of steps T of the compared gradients; a multiple of 100"""
    batch: int = 4
    """number of sequences"""
    draws: int = 64
    """number of gradients drawn from each randomized estimator"""
    updates: int = 300
    """updates of the training before the comparison"""


@dataclasses.dataclass(frozen=True)
class Problem:
    """Loss function, parameters, carry and data at which estimators are compared."""

    loss_fn: tbptt.LossFn
    params: Any
    carry: Any
    batch: tbptt.Batch


def recurrent(
    cell: Any, readout: nn.Module, loss: Any, batch: tbptt.Batch, config: Config
) -> Problem:
    """Train a network on all but the last `config.length` steps; return the problem on those."""
    loss_fn = tbptt.sequence_loss(cell, readout, loss, unroll=choose_unroll(config.unroll))
    estimator, optimizer = (
        tbptt.truncated_bptt(loss_fn, 50, 50),
        optax.chain(optax.clip_by_global_norm(1.0), optax.adam(5e-3)),
    )
    params = tbptt.init_params(jax.random.key(config.seed), cell, readout)
    carry = cell.initial_carry((config.batch,))
    train = jax.tree.map(lambda a: a[: -config.length], batch)
    state = tbptt.init_state(
        estimator, optimizer, params, carry, jax.tree.map(lambda a: a[:50], train)
    )
    state, _ = tbptt.make_train_epoch(estimator, optimizer, 50)(state, train)
    return Problem(
        loss_fn, state.params, state.memory, jax.tree.map(lambda a: a[-config.length :], batch)
    )


def make_problem(task: str, config: Config) -> Problem:
    """Make the problem of one task."""
    T = 50 * config.updates + config.length
    if task == "influence":
        start = jnp.asarray(influence.START)
        return Problem(
            influence.loss_fn, start, jnp.ones(influence.N), influence.steps(config.length)
        )
    if task == "copy":
        batch = copy_stream(jax.random.key(config.seed + 1), T, config.batch, 10)
        cell = tbptt.LSTM(6, config.hidden)
        return recurrent(
            cell, nn.Dense(6), optax.softmax_cross_entropy_with_integer_labels, batch, config
        )
    values, _ = standardise(ppg(2).values[:, :1], 180_000)
    inputs, targets = forecast_pairs(values, 0, (32,))
    segments = [slice(i * 40_000, i * 40_000 + T) for i in range(config.batch)]
    stacked = (
        jnp.stack([jnp.asarray(a[s], jnp.float32) for s in segments], axis=1)
        for a in (inputs, targets)
    )
    return recurrent(
        tbptt.LSTM(1, config.hidden),
        nn.Dense(1),
        tbptt.squared_error,
        tbptt.Batch(*stacked),
        config,
    )


def estimators(problem: Problem, quick: bool) -> dict[str, tbptt.Estimator]:
    """Make the estimators with a fixed window."""
    loss_fn = problem.loss_fn
    windows = (
        ((10, 10), (10, 50), (10, 100))
        if quick
        else ((10, 10), (50, 50), (100, 100), (10, 20), (10, 50), (10, 100), (1, 50))
    )
    made = {f"TBPTT({k1}, {k2})": tbptt.truncated_bptt(loss_fn, k1, k2) for k1, k2 in windows}
    return made | {
        "full BPTT": tbptt.full_bptt(loss_fn),
        "random windows": tbptt.estimators.random_window_bptt(
            loss_fn, 5, tbptt.estimators.AwdLengths(50)
        ),
        "ARTBP, constant": tbptt.randomized_bptt(loss_fn, 5, tbptt.estimators.ConstantRate(50)),
        "ARTBP, heavy tail": tbptt.randomized_bptt(loss_fn, 5, tbptt.estimators.HeavyTail(50)),
        "RTRL": tbptt.rtrl(loss_fn),
        "SnAp-1": tbptt.snap(loss_fn, 1),
        "UORO": tbptt.uoro(loss_fn),
    }


def adaptive_estimators(problem: Problem, quick: bool) -> dict[str, tbptt.Estimator]:
    """Make the estimators that choose their window, which must run chunk by chunk."""
    windows = (10, 100) if quick else (10, 20, 50, 100)
    return {"adaptive, delta 0.1": tbptt.adaptive_bptt(problem.loss_fn, 10, windows, 0.1, losses=4)}


def compare(
    problem: Problem, compared: dict[str, tbptt.Estimator], segment: int | None, config: Config
) -> list[EstimatorRow]:
    """Compare estimators on a problem."""
    return tbptt.diagnostics.compare_estimators(
        compared,
        problem.params,
        problem.carry,
        problem.batch,
        reference=tbptt.full_bptt(problem.loss_fn),
        segment=segment,
        key=jax.random.key(config.seed + 2),
        draws=config.draws,
        repeats=3,
    )


def measure(config: Config) -> dict[str, Any]:
    """Compare the estimators on every task."""
    if config.quick:
        config = dataclasses.replace(config, hidden=8, length=200, draws=16, updates=100)
    rows: list[dict[str, Any]] = []
    bounds: list[dict[str, Any]] = []
    for task in TASKS:
        problem = make_problem(task, config)
        found = compare(problem, estimators(problem, config.quick), None, config)
        found += compare(problem, adaptive_estimators(problem, config.quick), 50, config)
        best = {row.estimator for row in frontier(found, rounding=ROUNDING)}
        rows += [
            {"task": task, **row._asdict(), "frontier": row.estimator in best} for row in found
        ]
        show(task, found, best)
        if task == "influence" or not config.quick:
            seen = bound_rows(
                problem.loss_fn, problem.params, problem.carry, problem.batch, (5, 10, 20, 50, 80)
            )
            bounds += [{"task": task, **row} for row in seen]
    at = {(row["task"], row["estimator"]): row for row in rows}
    online = [at[task, "RTRL"]["bias"] for task in TASKS]
    drawn = [
        at[task, name]
        for task in TASKS
        for name in ("ARTBP, constant", "ARTBP, heavy tail", "UORO")
    ]
    ratio = max(row["bias"] / row["bias_error"] for row in drawn if row["bias_error"])
    slack = [row["slack"] for row in bounds if row["slack"] is not None]
    return {
        "rounding": ROUNDING,
        "results": {"rows": rows, "theorem_1": bounds},
        "claims": [
            program.claim(
                1,
                "bias by task: TBPTT(10, 10), TBPTT(10, 100)",
                "; ".join(
                    f"{t}: {at[t, 'TBPTT(10, 10)']['bias']:.3f}, "
                    f"{at[t, 'TBPTT(10, 100)']['bias']:.3f}"
                    for t in TASKS
                ),
                "the longer window has the smaller bias on every task",
                all(
                    at[t, "TBPTT(10, 100)"]["bias"] < at[t, "TBPTT(10, 10)"]["bias"] for t in TASKS
                ),
            ),
            program.claim(
                2, "RTRL: largest bias", max(online), "below 1e-4 (float32)", max(online) < 1e-4
            ),
            program.claim(
                3,
                "ARTBP, UORO: largest bias / its standard error",
                ratio,
                "below 3 (unbiased)",
                ratio < 3,
            ),
            program.claim(
                4,
                "Theorem 1, TBPTT(1, k2): bound on the bias / measured bias, smallest and largest",
                f"{min(slack):.3g}; {max(slack):.3g}" if slack else "no bound",
                "at least 1",
                slack and min(slack) >= 1,
            ),
        ],
    }


if __name__ == "__main__":
    program.run(__file__)
