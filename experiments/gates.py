"""Compare the lags that an Elman network, a GRU and an LSTM can learn (claim 7 of the lecture).

    python -m experiments.gates            about 60 seconds on two cores

The input is a sign followed by noise of the same magnitude, and the target `lag` steps later is the
sign. Expected: an Elman network with W = 0.9 times an orthogonal matrix learns lag 30 and fails at
100. Gated cells with the usual biases learn no longer lags. The LSTM whose forget biases cover the
lag (chrono initialisation) learns every lag tried. An orthogonal W of gain 1 helps the Elman
network, but not reliably: it may fail at a lag and learn a longer one.
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
from experiments.support.common import program, style
from experiments.support.common.unroll_choice import choose_unroll
from tbptt.diagnostics import gradient_by_lag

BATCH = 32


@dataclasses.dataclass(frozen=True)
class Config(program.Trained):
    """Five cells at four lags, every one trained for the same number of updates."""

    hidden: int = 32
    """units"""
    lags: tuple[int, ...] = (10, 30, 100, 300)
    """steps between the sign and the target"""
    updates: int = 300
    """updates for each cell and lag"""
    lr: float = 5e-3
    """Adam's rate"""


def cells(config: Config, lag: int) -> dict[str, tuple[Any, Any]]:
    """Make pairs of cells: one for the initialisation, one that shares a compiled program."""
    H = config.hidden
    elman, gru, lstm = tbptt.Elman(2, H), tbptt.GRU(2, H), tbptt.LSTM(2, H)
    made = {
        "Elman, gain 0.9": (tbptt.Elman(2, H, gain=0.9), elman),
        "Elman, orthogonal": (tbptt.Elman(2, H), elman),
        "GRU": (gru, gru),
        "LSTM, forget bias 1": (lstm, lstm),
        "LSTM, chrono": (tbptt.LSTM(2, H, longest_lag=max(lag, 3)), lstm),  # biases for this lag
    }
    return {
        name: pair
        for name, pair in made.items()
        if not (config.quick and name in ("Elman, orthogonal", "GRU"))
    }


def recall(seed: int, sequences: int, lag: int, T: int) -> tbptt.Batch:
    """Make concatenated sequences: channel 0 is a sign `lag` steps before the end, channel 1 noise.

    Only the last step counts. The carry is reset at the step of the sign, so that earlier steps
    have no effect.
    """
    rng = np.random.default_rng(seed)
    signs = rng.choice(np.asarray([-1, 1], np.float32), size=(sequences, 1, BATCH))
    shown, recalled = (np.arange(T) == step for step in (T - 1 - lag, T - 1))
    inputs = rng.standard_normal((sequences, T, BATCH, 2), np.float32)
    inputs[..., 0] = shown[None, :, None] * signs
    targets = np.broadcast_to(signs, (sequences, T, BATCH))[..., None]
    weights, resets = (
        np.broadcast_to(flags[None, :, None], (sequences, T, BATCH)) for flags in (recalled, shown)
    )
    made = (inputs, targets, weights.astype(np.float32), resets)
    return tbptt.Batch(*(jnp.asarray(a.reshape(-1, *a.shape[2:])) for a in made))


@functools.cache
def epoch_of(
    cell: Any, unroll: tbptt.UnrollFn, T: int, updates: int, lr: float
) -> tuple[tbptt.Estimator, Any, Any]:
    """Return (estimator, optimizer, program for all updates) of full BPTT over T steps."""
    loss_fn = tbptt.sequence_loss(cell, nn.Dense(1), tbptt.squared_error, unroll=unroll)
    estimator = tbptt.full_bptt(loss_fn)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(lr, updates))
    )
    return estimator, optimizer, tbptt.make_train_epoch(estimator, optimizer, T)


def learn(drawn: Any, cell: Any, lag: int, T: int, updates: int, config: Config) -> float:
    """Train on sequences of T steps and return the mean loss of the last tenth of the updates."""
    estimator, optimizer, epoch = epoch_of(
        cell, choose_unroll(config.unroll), T, updates, config.lr
    )
    params = tbptt.init_params(jax.random.key(config.seed), drawn, nn.Dense(1))
    batch = recall(config.seed, updates, lag, T)
    state = tbptt.init_state(estimator, optimizer, params, cell.initial_carry((BATCH,)), batch)
    with program.optimizations(most=True):  # the updates take longer than the optimization
        _, metrics = epoch(state, batch)
    return float(np.mean(np.asarray(metrics.loss)[-max(updates // 10, 1) :]))


@functools.partial(jax.jit, static_argnums=0)
def by_lag(cell: Any, params: Any, xs: jax.Array) -> jax.Array:
    """Return the gradient by lag of the last step's output."""
    return gradient_by_lag(cell, params, cell.initial_carry((BATCH,)), xs, jnp.sum)


def profile(drawn: Any, cell: Any, steps: int, seed: int) -> list[float]:
    """Return the gradient of the untrained cell by lag, relative to lag 1, on noise.

    1e-38 is underflow.
    """
    norms = by_lag(cell, drawn.init(jax.random.key(seed)), recall(seed, 1, steps, steps + 1).inputs)
    median = np.median(np.asarray(norms, np.float64), axis=1)
    return np.maximum(median / median[0], 1e-38).tolist()


def longest_learnt(lags: tuple[int, ...], losses: list[float]) -> int:
    """Return the longest of the ascending lags that is learnt with all shorter ones, or 0.

    A constant prediction has an error of 1; a lag is learnt if the error is below 0.1.
    """
    longest = 0
    for lag, loss in zip(lags, losses, strict=True):
        if not loss < 0.1:
            break
        longest = lag
    return longest


def missed(lags: tuple[int, ...], losses: list[float]) -> list[int]:
    """Return the lags that were learnt beyond one that was not."""
    longest = longest_learnt(lags, losses)
    return [lag for lag, loss in zip(lags, losses, strict=True) if lag > longest and loss < 0.1]


def measure(config: Config) -> dict[str, Any]:
    """Measure the loss after training at every lag, and the gradient by lag before training."""
    lags = (30, 100) if config.quick else config.lags
    updates = 120 if config.quick else config.updates
    losses: dict[str, list[float]] = {}
    for lag in lags:
        T = max(lags) + 1 if config.quick else lag + 1  # quick: one program serves all lags
        for name, (drawn, cell) in cells(config, lag).items():
            losses.setdefault(name, []).append(learn(drawn, cell, lag, T, updates, config))
    steps = 100 if config.quick else 300
    profiles = {
        name: profile(drawn, cell, steps, config.seed)
        for name, (drawn, cell) in cells(config, 300).items()
    }
    longest = {name: longest_learnt(lags, row) for name, row in losses.items()}
    gaps = {name: missed(lags, row) for name, row in losses.items() if missed(lags, row)}
    at_100 = {name: row[99] for name, row in profiles.items()}
    return {
        "lags": lags,
        "losses": losses,
        "profiles": profiles,
        "updates": updates,
        "claims": [
            program.claim(
                7,
                "norm of the gradient 100 steps back over that 1 step back, before training: Elman "
                "network of gain 0.9; "
                "LSTM of forget bias 1; chrono LSTM",
                "; ".join(
                    f"{at_100[n]:.1e}"
                    for n in ("Elman, gain 0.9", "LSTM, forget bias 1", "LSTM, chrono")
                ),
                "the LSTM's is larger than the Elman network's, the chrono LSTM's at least 1000 "
                "times as large",
                at_100["LSTM, chrono"]
                > 1000 * at_100["Elman, gain 0.9"]
                < at_100["LSTM, forget bias 1"],
            ),
            program.claim(
                7,
                f"longest lag that is learnt in {updates} updates together with all shorter ones",
                ", ".join(f"{name}: {lag}" for name, lag in longest.items())
                + "".join(
                    f" ({name} also learns {', '.join(map(str, more))}, after a failure)"
                    for name, more in gaps.items()
                ),
                "Elman network of gain 0.9: below 100; chrono LSTM: 100 or more, and no other cell "
                "learns a longer one",
                longest["Elman, gain 0.9"]
                < 100
                <= longest["LSTM, chrono"]
                == max(longest.values()),
            ),
        ],
    }


def draw(data: dict[str, Any], folder: Path) -> None:
    """Draw the profiles and the losses by lag."""
    figure, axes = style.panels(2, title="Recall of a sign through noise", width=6.0)
    for index, (name, norms) in enumerate(data["profiles"].items()):
        axes[0].plot(np.arange(1, len(norms) + 1), norms, label=name, **style.line(index))
        if name in data["losses"]:
            axes[1].plot(
                data["lags"],
                data["losses"][name],
                marker=style.MARKERS[index],
                label=name,
                **style.line(index),
            )
    axes[0].set(
        xlabel="lag k (steps back)", ylabel="gradient k steps back / 1 step back", yscale="log"
    )
    axes[0].set_title("Before training")
    axes[0].set_ylim(bottom=max(min(min(row) for row in data["profiles"].values()), 1e-30))
    axes[1].axhline(0.1, color=style.GREY, lw=1.0, ls=":")
    axes[1].set(
        xscale="log",
        xlabel="lag of the sign to recall (steps)",
        ylabel="mean squared error (constant prediction: 1)",
    )
    axes[1].set(title=f"After {data['updates']} updates (dotted: threshold)", ylim=(0, None))
    axes[1].set_xticks(data["lags"], [str(lag) for lag in data["lags"]])
    axes[1].minorticks_off()
    for axis in axes:
        axis.legend(fontsize=9)
    style.save(figure, folder, "gates")


if __name__ == "__main__":
    program.run(__file__)
