"""Adaptive truncation on the copy task: a window too short stays on a plateau, a tolerance finds a window that is not.

    python -m experiments.adaptive_copy            about 4 minutes on two cores
    python -m experiments.adaptive_copy --quick    under 2 minutes: one seed, fewer rows and updates

Aicher, Foti and Fox (UAI 2019), copy with fixed lag 10: fixed windows TBPTT(K, 2K - 1), K = 5 stays near a test perplexity
of 1.65, K >= 10 falls below 1.1; windows chosen by a tolerance delta of .9, .5, .1 end near 1.02 to 1.03. Theirs were 210
epochs of 4,000 steps with a window K that sets the update period too; here all runs make 4,800 updates (at K = 10 a 17th
of theirs), the period of the adaptive runs is fixed (k1 = 10), and k2 is chosen. Expected: the same order, both plateaus,
and a chosen window that grows as the task is learnt. Not reached: the height of K = 5's plateau. Here it is 1.85, what a
network has that remembers nothing (1.87), and it was 1.85 after 1,400 passes (one run). K = 20 ends at 1.19 with seed 0.
"""

import dataclasses
import math
import time
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import tbptt
from experiments.support import program
from experiments.support.console import console
from experiments.support.copy_figure import draw as draw
from tbptt.data import copy_stream

LAG, PASS, TEST = 10, 480, 1000
NOTHING = 4 ** ((LAG - 1) / (2 * LAG))  # the perplexity of a network that knows the position and remembers nothing
LOOK = 4  # passes between two tests
K1, WINDOWS, LAGS = 10, (10, 15, 20, 30, 50), 50


@dataclasses.dataclass(frozen=True)
class Config(program.Common):
    """Perplexity on the copy task for fixed windows and for windows chosen by a tolerance."""

    fixed: tuple[int, ...] = (5, 10, 15, 20, 30)
    """K of TBPTT(K, 2K - 1), divisors of 480"""
    deltas: tuple[float, ...] = (0.9, 0.5, 0.1)
    """tolerances: relative bias"""
    updates: int = 4800
    """updates of every run, rounded up to whole passes of 480 steps (a multiple of 4)"""
    seeds: int = 1
    """runs of every row; the median is reported"""
    lanes: int = 64
    """sequences side by side"""
    hidden: int = 50
    """units in each of two LSTM layers"""


@dataclasses.dataclass(frozen=True)
class Task:
    """The model and its data."""

    cell: Any
    readout: nn.Module
    loss_fn: tbptt.LossFn
    train: tbptt.Batch
    test: tbptt.Batch


def make_task(config: Config, seed: int) -> Task:
    """Draws a training stream and a test stream."""
    cell = tbptt.Stack((tbptt.LSTM(6, config.hidden), tbptt.LSTM(config.hidden, config.hidden)))
    readout = nn.Dense(6)
    loss_fn = tbptt.sequence_loss(cell, readout, optax.softmax_cross_entropy_with_integer_labels)
    key_train, key_test = jax.random.split(jax.random.key(1000 + seed))
    train = copy_stream(key_train, 8 * PASS, config.lanes, LAG)
    return Task(cell, readout, loss_fn, train, copy_stream(key_test, TEST, config.lanes, LAG))


def perplexity(task: Task) -> Any:
    """Makes the jitted test: exp of the mean loss over all steps of the test stream."""

    def test(params: Any) -> jax.Array:
        loss_sum, _ = task.loss_fn(params, task.cell.initial_carry(task.test.targets.shape[1:]), task.test)
        return jnp.exp(loss_sum / task.test.targets.size)

    return jax.jit(test)


def train(task: Task, estimator: tbptt.Estimator, k1: int, count: int, seed: int) -> tuple[list[float], list[Any]]:
    """Trains by SGD with rate sqrt(k1) and weight decay 1e-5, as published, and clip 1 (the published code: 1 / k1).

    Returns perplexities every LOOK passes, and infos by pass."""
    optimizer = optax.chain(optax.add_decayed_weights(1e-5), optax.clip_by_global_norm(1.0), optax.sgd(math.sqrt(k1)))
    carry = task.cell.initial_carry(task.train.targets.shape[1:])
    params = tbptt.init_params(jax.random.key(seed), task.cell, task.readout)
    pieces = [jax.tree.map(lambda a, i=i: a[i * PASS : (i + 1) * PASS], task.train) for i in range(8)]
    example = jax.tree.map(lambda a: a[:k1], pieces[0])
    state = tbptt.init_state(estimator, optimizer, params, carry, example)
    epoch, test = tbptt.make_train_epoch(estimator, optimizer, k1), perplexity(task)
    seen, infos = [], []
    for index in range(count):
        state, metrics = epoch(state, pieces[index % len(pieces)])
        if (index + 1) % LOOK == 0:
            seen.append(float(test(state.params)))
        infos.append(jax.tree.map(np.asarray, metrics.info))
    return seen, infos


def passes(config: Config, k1: int) -> int:
    """How many passes make the updates: a run with longer strides reads more of the stream."""
    return LOOK * math.ceil(config.updates * k1 / (LOOK * PASS))


def one_row(config: Config, name: str, k1: int, make: Any, of: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Runs all seeds of one row: (row, what is drawn, of the first seed)."""
    begin = time.perf_counter()
    finals, chosen, first = [], [], {}
    for seed in range(config.seed, config.seed + config.seeds):
        task = make_task(config, seed)
        seen, infos = train(task, make(task.loss_fn), k1, passes(config, k1), seed)
        windows = [float(np.mean(info.k2)) for info in infos] if hasattr(infos[0], "k2") else None
        if windows:
            tell_of_choices(infos, of["delta"])
        finals.append(float(np.median(seen[-5:])))
        chosen.append(float(np.median(windows[-5:])) if windows else float(2 * k1 - 1))
        first = first or {"name": name, "perplexity": seen, "windows": windows, "grown": growth(infos) if windows else None}
    row = of | {"perplexity": float(np.median(finals)), "chosen_k": float(np.median(chosen)), "k1": k1}
    row |= {"perplexities": finals, "passes": passes(config, k1), "seconds": round(time.perf_counter() - begin, 1)}
    console.print(f"{name:12} perplexity {row['perplexity']:.3f}  k2 {row['chosen_k']:.0f}  {row['seconds']} s")
    return row, first


def tell_of_choices(infos: list[Any], delta: float) -> None:
    """Says in words why the last window was chosen, and how often nothing bounded the bias."""
    of = [info for info in infos if np.min(info.estimates) > 0]
    loose = float(np.mean([~info.choice.enough for info in of]))
    last = jax.tree.map(lambda a: a[-1], infos[-1].choice)
    console.print(f"{tbptt.explain_choice(last, WINDOWS, delta)}; {loose:.0%} of all updates had no bound below delta")


def growth(infos: list[Any]) -> tuple[float, float]:
    """The window of the first estimate, after a few updates, and the median of the last fifth of all passes."""
    early = infos[0]
    late = [float(np.mean(info.k2)) for info in infos[-max(1, len(infos) // 5) :]]
    return float(early.next_k2[np.argmax(early.measured)]), float(np.median(late))


def measure(config: Config) -> dict[str, Any]:
    """Trains all rows."""
    if config.quick:
        config = dataclasses.replace(config, fixed=(5, 10), deltas=(0.5,), updates=min(config.updates, 3840), seeds=1)
    rows, curves = [], []
    for k in config.fixed:
        row, curve = one_row(
            config, f"K = {k}", k, lambda loss_fn, k=k: tbptt.truncated_bptt(loss_fn, k, 2 * k - 1), {"k": k}
        )
        rows.append(row)
        curves.append(curve)
    for delta in config.deltas:

        def make(loss_fn: tbptt.LossFn, delta: float = delta) -> tbptt.Estimator:
            return tbptt.adaptive_bptt(loss_fn, K1, WINDOWS, delta, lags=LAGS, losses=4, every=24)

        row, curve = one_row(config, f"delta = {delta}", K1, make, {"delta": delta})
        rows.append(row)
        curves.append(curve)
    by_k = {row["k"]: row["perplexity"] for row in rows if "k" in row}
    longer = [p for k, p in by_k.items() if k >= LAG]
    adaptive = [row["perplexity"] for row in rows if "delta" in row]
    grown = {curve["name"]: curve["grown"] for curve in curves if curve["windows"]}
    return {
        "task": {"lag": LAG, "pass": PASS, "look": LOOK, "nothing": NOTHING},
        "curves": curves,
        "results": {"rows": rows},
        "claims": [
            program.claim(1, "K = 5: the plateau (published 1.65)", by_k[5], "1.4 to 1.8", 1.4 < by_k[5] < 1.8),
            program.claim(2, "K >= 10: worst perplexity", max(longer), "below 1.1", max(longer) < 1.1),
            program.claim(3, "delta: worst perplexity", max(adaptive), "below 1.1", max(adaptive) < 1.1),
            program.claim(
                4,
                "k2 chosen by the first estimate, before anything is learnt, and at the end",
                "; ".join(f"{name}: {a:.0f}, {b:.0f}" for name, (a, b) in grown.items()),
                "it grows, with every delta",
                all(b > a for a, b in grown.values()),
            ),
            program.claim(
                5,
                "K = 5 against the worst of all others (the order of the plateaus)",
                f"{by_k[5]:.3f}; {max(longer + adaptive):.3f}",
                "further from 1 by more than 5 times",
                by_k[5] - 1 > 5 * (max(longer + adaptive) - 1),
            ),
        ],
    }


if __name__ == "__main__":
    program.run(__file__)
