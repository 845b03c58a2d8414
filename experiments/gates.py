"""Gates: what a simple network, a GRU and an LSTM can learn at which lag (claim 7 of the lecture).

    python -m experiments.gates            about 60 seconds on two cores

A sign is shown at step 0, noise as strong as the sign follows, and the sign is asked for `lag` steps later. Expected:
a simple network whose W shrinks a little (gain 0.9) learns lag 30 and fails at 100; so do gates with their usual
biases; the LSTM whose forget biases are spread over the lag (chrono initialisation) learns every lag tried, and an
orthogonal W of gain 1 helps the simple one, though not reliably: it may fail a lag and learn a longer one.
"""

import dataclasses
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import tbptt
from experiments.support import program, style
from tbptt.diagnostics import gradient_by_lag

BATCH = 32


@dataclasses.dataclass(frozen=True)
class Config(program.Common):
    """Five cells at four lags, every one trained for the same number of updates."""

    hidden: int = 32
    """units"""
    lags: tuple[int, ...] = (10, 30, 100, 300)
    """steps between the sign and the question"""
    updates: int = 300
    """updates for each cell and lag"""
    lr: float = 1e-2
    """Adam's rate"""


def cells(hidden: int, lag: int) -> dict[str, Any]:
    """The competitors; the chrono LSTM is told the lag."""
    return {
        "Elman, gain 0.9": tbptt.Elman(2, hidden, gain=0.9),
        "Elman, orthogonal": tbptt.Elman(2, hidden),
        "GRU": tbptt.GRU(2, hidden),
        "LSTM, forget bias 1": tbptt.LSTM(2, hidden),
        "LSTM, chrono": tbptt.LSTM(2, hidden, longest_lag=max(lag, 3)),
    }


def recall(key: jax.Array, sequences: int, lag: int) -> tbptt.Batch:
    """Makes sequences of lag + 1 steps end to end: channel 0 the sign at step 0, channel 1 noise; only the end counts."""
    T = lag + 1
    key_s, key_n = jax.random.split(key)
    signs = jax.random.rademacher(key_s, (sequences, 1, BATCH), jnp.float32)
    first = (jnp.arange(T) == 0)[None, :, None]
    noise = jax.random.normal(key_n, (sequences, T, BATCH))
    inputs = jnp.stack([jnp.where(first, signs, 0.0), noise], axis=-1)
    targets = jnp.broadcast_to(signs, (sequences, T, BATCH))[..., None]
    weights = jnp.broadcast_to((jnp.arange(T) == lag)[None, :, None], (sequences, T, BATCH)).astype(jnp.float32)
    resets = jnp.broadcast_to(first, (sequences, T, BATCH))
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), tbptt.Batch(inputs, targets, weights, resets))


def learn(cell: Any, lag: int, updates: int, config: Config) -> float:
    """Trains by full BPTT over each sequence, one program for all updates; returns the mean loss of the last tenth."""
    readout = nn.Dense(1)
    estimator = tbptt.full_bptt(tbptt.sequence_loss(cell, readout, tbptt.squared_error))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(config.lr, updates)))
    key_p, key_d = jax.random.split(jax.random.key(config.seed))
    params = tbptt.init_params(key_p, cell, readout)
    batch = recall(key_d, updates, lag)
    state = tbptt.init_state(estimator, optimizer, params, cell.initial_carry((BATCH,)), batch)
    _, metrics = tbptt.make_train_epoch(estimator, optimizer, lag + 1)(state, batch)
    return float(metrics.loss[-max(updates // 10, 1) :].mean())


def profile(cell: Any, steps: int, seed: int) -> list[float]:
    """Returns the untrained cell's gradient by lag, relative to lag 1, on the task's noise; 1e-38 stands for underflow."""
    batch = recall(jax.random.key(seed), 1, steps)
    params = cell.init(jax.random.key(seed))
    norms = jax.jit(lambda p: gradient_by_lag(cell, p, cell.initial_carry((BATCH,)), batch.inputs, jnp.sum))(params)
    median = np.median(np.asarray(norms, np.float64), axis=1)
    return np.maximum(median / median[0], 1e-38).tolist()


def longest_learnt(lags: tuple[int, ...], losses: list[float]) -> int:
    """Returns the longest lag that is learnt with all shorter ones; 0 if not even the first. Lags ascend.

    A constant answer has an error of 1; below 0.1 the sign is recalled."""
    longest = 0
    for lag, loss in zip(lags, losses, strict=True):
        if not loss < 0.1:
            break
        longest = lag
    return longest


def missed(lags: tuple[int, ...], losses: list[float]) -> list[int]:
    """Returns the lags that were learnt beyond one that was not."""
    longest = longest_learnt(lags, losses)
    return [lag for lag, loss in zip(lags, losses, strict=True) if lag > longest and loss < 0.1]


def measure(config: Config) -> dict[str, Any]:
    """Measures what is learnt at every lag, and the profiles at the start."""
    lags = (30, 100) if config.quick else config.lags
    updates = 120 if config.quick else config.updates
    names = [n for n in cells(config.hidden, 10) if not (config.quick and n in ("Elman, orthogonal", "GRU"))]
    losses = {name: [] for name in names}
    for lag in lags:
        for name in names:
            losses[name].append(learn(cells(config.hidden, lag)[name], lag, updates, config))
    profiles = {name: profile(cell, 300, config.seed) for name, cell in cells(config.hidden, 300).items()}
    reach = {name: longest_learnt(lags, row) for name, row in losses.items()}
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
                "gradient 100 steps back (relative to 1 step): Elman, gain 0.9; LSTM; chrono LSTM",
                "; ".join(f"{at_100[n]:.1e}" for n in ("Elman, gain 0.9", "LSTM, forget bias 1", "LSTM, chrono")),
                "LSTM above Elman, chrono LSTM at least 1000 times Elman",
                at_100["LSTM, chrono"] > 1000 * at_100["Elman, gain 0.9"] < at_100["LSTM, forget bias 1"],
            ),
            program.claim(
                7,
                f"longest lag learnt in {updates} updates, all shorter ones too",
                ", ".join(f"{name}: {lag}" for name, lag in reach.items())
                + "".join(f" ({name} also {', '.join(map(str, more))}, beyond a gap)" for name, more in gaps.items()),
                "Elman of gain 0.9 below 100; the chrono LSTM 100 or more, and none longer",
                reach["Elman, gain 0.9"] < 100 <= reach["LSTM, chrono"] == max(reach.values()),
            ),
        ],
    }


def draw(data: dict[str, Any], folder: Path) -> None:
    """Draws the profiles and the losses by lag."""
    figure, axes = style.panels(2, title="What gates do", width=6.0)
    for index, (name, norms) in enumerate(data["profiles"].items()):
        axes[0].plot(np.arange(1, len(norms) + 1), norms, label=name, **style.line(index))
        if name in data["losses"]:
            axes[1].plot(data["lags"], data["losses"][name], marker=style.MARKERS[index], label=name, **style.line(index))
    axes[0].set(xlabel="lag k (steps back)", ylabel="gradient k steps back / 1 step back", yscale="log")
    axes[0].set_title("Before training")
    axes[0].set_ylim(bottom=max(min(min(row) for row in data["profiles"].values()), 1e-30))
    axes[1].axhline(0.1, color=style.GREY, lw=1.0, ls=":")
    axes[1].set(xscale="log", xlabel="lag of the sign to recall (steps)", ylabel="mean squared error (constant answer: 1)")
    axes[1].set(title=f"After {data['updates']} updates (dotted: recalled)", ylim=(0, None))
    axes[1].set_xticks(data["lags"], [str(lag) for lag in data["lags"]])
    axes[1].minorticks_off()
    for axis in axes:
        axis.legend(fontsize=9)
    style.save(figure, folder, "gates")


if __name__ == "__main__":
    program.run(__file__)
