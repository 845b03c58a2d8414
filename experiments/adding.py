"""Solve the adding problem and find the shortest sufficient window.

    python -m experiments.adding            about 4 minutes on two cores
    python -m experiments.adding --quick    under 60 seconds: fewer updates and windows, T = 100

T = 100: an LSTM of 8 units, Adam 5e-3 (halved after every fifth of the updates), clip 1, batches of
32. Expected: a median test error below 0.005 over the seeds, where a constant prediction has 2/3;
an Elman network of the same size stays above 0.05.

T = 400: an LSTM with chrono initialisation. The loss of the last step is differentiated through the
last k2 steps only (TBPTT(T, k2)), so markers further back contribute no gradient. Expected: the
longest window solves the task and the shortest does not; the program measures the boundary. A
window shorter than T can suffice, because the behaviour learnt on late markers also applies to
early ones.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import tbptt
from experiments.support.common import many_seeds, program, style, targets
from experiments.support.common.console import console
from experiments.support.common.unroll_choice import choose_unroll
from tbptt import data as tasks

SHORT, LONG, HIDDEN, BATCH, TEST = 100, 400, 8, 32, 2000
CONSTANT, SECOND_ONLY = 2 / 3, 1 / 3
SOLVED = 0.04  # mean squared error below which the T = 400 task is solved


@dataclasses.dataclass(frozen=True)
class Config(program.Seeded):
    """The adding problem at T = 100 for two cells, and at T = 400 by window."""

    updates: int = 6000
    """updates at T = 100"""
    long_updates: int = 1500
    """updates at T = 400, for each window"""
    long_seeds: int = 3
    """number of seeds at T = 400"""
    windows: tuple[int, ...] = (10, 25, 50, 100, 200, 400)
    """values of k2 at T = 400"""
    lr: float = 5e-3
    """learning rate of Adam, halved after every fifth of the updates"""


def train(
    cell: Any, T: int, k2: int, updates: int, seeds: int, config: Config
) -> tuple[np.ndarray, dict[str, Any]]:
    """Train all seeds by TBPTT(T, k2).

    Return their mean squared errors on new sequences, and the loss curves.
    """
    model = many_seeds.Model(
        cell, nn.Dense(1), tbptt.squared_error, BATCH, choose_unroll(config.unroll)
    )
    estimator = tbptt.truncated_bptt(model.loss_fn, T, k2)
    rate = optax.exponential_decay(config.lr, max(updates // 5, 1), 0.5, staircase=True)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
    keys, test_keys = many_seeds.keys_of(config.seed, seeds)
    draw = functools.partial(tasks.adding, T=T)
    params, losses = many_seeds.train(
        model, estimator, optimizer, functools.partial(draw, batch_size=BATCH), keys, updates
    )

    def score(outputs: jax.Array, batch: tbptt.Batch) -> jax.Array:
        return jnp.mean(tbptt.squared_error(outputs[-1], batch.targets[-1]))

    errors = many_seeds.test(
        model, score, functools.partial(draw, batch_size=TEST), params, test_keys
    )
    console.print(f"{type(cell).__name__:6} T = {T}, k2 = {k2}: test MSE {np.median(errors):.4f}")
    return errors, many_seeds.thinned(losses)


def fails_below(windows: tuple[int, ...], solved: list[bool]) -> int | None:
    """Return the shortest of the ascending windows from which on all solve the task.

    None if the longest does not.
    """
    shortest = None
    for window, good in zip(reversed(windows), reversed(solved), strict=True):
        if not good:
            break
        shortest = window
    return shortest


def measure(config: Config) -> dict[str, Any]:
    """Train both cells at T = 100, and the LSTM at T = 400 with every window."""
    T, solved = LONG, 0.005
    if config.quick:
        config = dataclasses.replace(
            config, updates=2000, long_updates=900, long_seeds=2, windows=(5, SHORT), seeds=3
        )
        T, solved = SHORT, SOLVED
    cells = {"LSTM": tbptt.LSTM(2, HIDDEN), "Elman": tbptt.Elman(2, HIDDEN)}
    errors, curves = {}, {}
    for name, cell in cells.items():
        errors[name], curves[name] = train(cell, SHORT, SHORT, config.updates, config.seeds, config)
    cell, by_window = tbptt.LSTM(2, HIDDEN, longest_lag=T), {}
    for k2 in config.windows:
        by_window[k2] = train(cell, T, k2, config.long_updates, config.long_seeds, config)[0]
    boundary = fails_below(
        config.windows, [float(np.median(e)) < SOLVED for e in by_window.values()]
    )
    shortest, longest = config.windows[0], config.windows[-1]
    rows = [
        targets.expect(
            "LSTM, T = 100: test MSE",
            errors["LSTM"],
            at_most=solved,
            because="a constant prediction has 2/3",
        ),
        targets.expect("Elman, T = 100: test MSE", errors["Elman"], at_least=0.05),
        targets.expect(
            f"chrono LSTM, T = {T}, k2 = {longest}: test MSE", by_window[longest], at_most=SOLVED
        ),
        targets.expect(
            f"chrono LSTM, T = {T}, k2 = {shortest}: test MSE", by_window[shortest], at_least=SOLVED
        ),
        targets.expect(
            f"T = {T}: shortest sufficient window (steps)",
            np.nan if boundary is None else boundary,
            at_least=config.windows[1],
            at_most=longest,
            because=f"of {', '.join(map(str, config.windows))}; solved: error below {SOLVED}",
        ),
    ]
    return {
        "curves": curves,
        "targets": rows,
        "results": {
            "fails_below_k2": boundary,
            "windows": [{"k1": T, "k2": k2, "mse": e.tolist()} for k2, e in by_window.items()],
            "mse": {name: e.tolist() for name, e in errors.items()},
        },
    }


def draw(data: dict[str, Any], folder: Path) -> None:
    """Draw the errors over training at T = 100, and by window at T = 400."""
    figure, axes = style.panels(
        2, title="Adding problem, LSTM and Elman network of 8 units", width=6.0
    )
    for index, (name, curve) in enumerate(data["curves"].items()):
        style.median_and_range(axes[0], curve["updates"], curve["losses"], index, name)
    targets.bound(axes[0], data["targets"][0])
    axes[0].set(yscale="log", xlabel="updates (32 new sequences each)", ylabel="mean squared error")
    axes[0].set_title("T = 100, full BPTT: median and range of the seeds", fontsize=10)
    axes[0].legend(fontsize=8)
    rows = data["results"]["windows"]
    for x, row in enumerate(rows):
        targets.dots(axes[1], x, row["mse"])
    for level, text in (
        (CONSTANT, "constant: 2/3"),
        (SECOND_ONLY, "one of the two numbers: 1/3"),
        (SOLVED, "solved"),
    ):
        axes[1].axhline(level, color=style.GREY, lw=1, ls=":")
        axes[1].text(
            len(rows) - 0.6, level, text, fontsize=8, color=style.GREY, va="bottom", ha="right"
        )
    axes[1].set_xticks(range(len(rows)), [str(row["k2"]) for row in rows])
    axes[1].set(
        yscale="log",
        xlabel="window k2 (steps)",
        ylabel="test mean squared error (one dot per seed)",
    )
    axes[1].set_title("T = {0}, TBPTT({0}, k2), chrono LSTM".format(rows[0]["k1"]), fontsize=10)
    style.save(figure, folder, "adding")


if __name__ == "__main__":
    program.run(__file__)
