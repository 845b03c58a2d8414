"""Solve the copy memory task by initialisation of the LSTM, by delay and by window.

    python -m experiments.copy_memory            about 5 minutes on two cores
    python -m experiments.copy_memory --quick    under 60 seconds: fewer delays and windows

The input contains S = 3 symbols of A = 4; the target is each symbol exactly `delay` steps later. A
memoryless model that only knows the timing has a loss of S log(A) / (delay + S) nats per step and
recalls one symbol in A.

Expected, as in Tallec and Ollivier (2018) at larger scale: the LSTM with chrono initialisation
falls below this baseline at every delay, the one with forget bias 1 does not at delay 100. With
chrono initialisation and any k1, TBPTT(k1, k2) recalls the symbols if k2 = delay + S. With k2 <
delay its accuracy stays below the midpoint between chance and 1; it may exceed chance, because even
an untrained carry retains traces of the symbols that a readout can decode.
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

S, A = 3, 4
BATCH, TEST = 32, 1000
CHRONO, STANDARD = "chrono", "forget bias 1"
LEFT, STAYED = 0.5, 0.9  # fractions of the baseline
HALF_WAY = (1 / A + 1) / 2  # fraction of symbols recalled, midway between chance and all


@dataclasses.dataclass(frozen=True)
class Config(program.Seeded):
    """The copy task by delay and initialisation, and by window."""

    hidden: int = 32
    """units"""
    delays: tuple[int, ...] = (10, 30, 100)
    """steps from a symbol to its target"""
    updates: int = 3000
    """updates of 32 sequences each, for every delay and initialisation"""
    window_delay: int = 30
    """delay of the window sweep"""
    window_updates: int = 2000
    """updates of every window"""
    window_seeds: int = 3
    """number of seeds of every window"""
    lr: float = 1e-2
    """learning rate of Adam"""


def train(
    name: str, delay: int, k1: int, k2: int, config: Config
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train all seeds by TBPTT(k1, k2).

    Return their scores on new sequences, and loss curves relative to the baseline.
    """
    longest = delay * 3 // 2 if name == CHRONO else None
    cell = tbptt.LSTM(A + 2, config.hidden, longest_lag=longest)
    loss, unroll = optax.softmax_cross_entropy_with_integer_labels, choose_unroll(config.unroll)
    model = many_seeds.Model(cell, nn.Dense(A + 2), loss, BATCH, unroll)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(config.lr))
    keys, test_keys = many_seeds.keys_of(config.seed, config.seeds)
    draw = functools.partial(tasks.copy_memory, delay=delay, symbols=S, alphabet=A)
    estimator = tbptt.truncated_bptt(model.loss_fn, k1, k2)
    params, losses = many_seeds.train(
        model, estimator, optimizer, functools.partial(draw, batch_size=BATCH), keys, config.updates
    )
    baseline = tasks.copy_baseline(delay, symbols=S, alphabet=A)

    def score(logits: jax.Array, batch: tbptt.Batch) -> jax.Array:
        right = jnp.argmax(logits, -1) == batch.targets
        return jnp.stack(
            [jnp.mean(model.loss(logits, batch.targets)) / baseline, jnp.mean(right[-S:])]
        )

    shares, recalled = many_seeds.test(
        model, score, functools.partial(draw, batch_size=TEST), params, test_keys
    ).T
    console.print(
        f"delay {delay:3}, {name:13} TBPTT({k1}, {k2}): {np.median(shares):.3f} of the baseline, "
        f"{np.median(recalled):.3f} of the symbols recalled"
    )
    row = {
        "init": name,
        "delay": delay,
        "k1": k1,
        "k2": k2,
        "share": shares.tolist(),
        "recalled": recalled.tolist(),
    }
    return row, many_seeds.thinned(losses / baseline)


def windows_of(delay: int, quick: bool) -> list[tuple[int, int]]:
    """Return the pairs (k1, k2) of the sweep: k2 below, at and above the delay."""
    T = delay + S
    if quick:
        return [(T, T // 3), (T, T)]
    return [(k1, k2) for k1 in (T // 3, T) for k2 in (T // 3, 2 * T // 3, delay, T)]


def measure(config: Config) -> dict[str, Any]:
    """Train every delay with both initialisations, then every window at one delay."""
    if config.quick:
        config = dataclasses.replace(
            config, delays=(10, 100), updates=1000, window_delay=15, window_updates=1000, seeds=2
        )
    by_delay, curves = [], {}
    pairs = [(delay, name) for delay in config.delays for name in (CHRONO, STANDARD)]
    # A quick run trains chrono at the shorter delay and the standard initialisation at the longer
    # one.
    for delay, name in pairs[::3] if config.quick else pairs:
        row, curves[f"{name}, delay {delay}"] = train(name, delay, delay + S, delay + S, config)
        by_delay.append(row)
    at, config = (
        config.window_delay,
        dataclasses.replace(config, updates=config.window_updates, seeds=config.window_seeds),
    )
    by_window = [train(CHRONO, at, k1, k2, config)[0] for k1, k2 in windows_of(at, config.quick)]
    return {
        "curves": curves,
        "targets": expectations(by_delay, by_window, at),
        "results": {
            "baseline": f"S log(A) / (delay + S), S = {S}, A = {A}",
            "baselines": {
                str(d): tasks.copy_baseline(d, symbols=S, alphabet=A) for d in config.delays
            },
            "delays": by_delay,
            "windows": by_window,
        },
    }


def expectations(
    by_delay: list[dict[str, Any]], by_window: list[dict[str, Any]], at: int
) -> list[targets.Row]:
    """Compare losses by delay and initialisation, and recall by window, with the targets."""
    rows = [
        targets.expect(
            f"{CHRONO}, delay {row['delay']}: loss / memoryless baseline",
            row["share"],
            at_most=LEFT,
            because=f"1 = {tasks.copy_baseline(row['delay'], symbols=S, alphabet=A):.4f} nats, "
            "S log(A) / (delay + S)",
        )
        for row in by_delay
        if row["init"] == CHRONO
    ]
    last = by_delay[-1]
    name = f"{STANDARD}, delay {last['delay']}: loss / memoryless baseline"
    rows.append(targets.expect(name, last["share"], at_least=STAYED))
    for row in by_window:
        name = f"delay {at}, TBPTT({row['k1']}, {row['k2']}): symbols recalled"
        if row["k2"] == at + S:
            rows.append(targets.expect(name, row["recalled"], at_least=0.75, because="k2 > delay"))
        elif row["k2"] < at:
            rows.append(
                targets.expect(
                    name, row["recalled"], at_most=HALF_WAY, because="k2 < delay; chance is 1/4"
                )
            )
    return rows


def draw(data: dict[str, Any], folder: Path) -> None:
    """Draw the losses over training by delay, and the recall by window."""
    figure, axes = style.panels(2, title=f"Copy memory: {S} symbols of {A}, LSTM", width=6.0)
    for index, (name, curve) in enumerate(data["curves"].items()):
        style.median_and_range(axes[0], curve["updates"], curve["losses"], index, name)
    axes[0].axhline(1, color=style.GREY, lw=1, ls=":")
    axes[0].set(
        xlabel=f"updates ({BATCH} new sequences each)",
        ylabel="loss / memoryless baseline",
        ylim=(0, 1.6),
    )
    axes[0].set_title("full BPTT: median and range of the seeds", fontsize=10)
    axes[0].legend(fontsize=8, loc="upper right")
    rows = data["results"]["windows"]
    k2s, k1s = sorted({row["k2"] for row in rows}), sorted({row["k1"] for row in rows})
    for row in rows:
        index = k1s.index(row["k1"])
        label = f"k1 = {row['k1']}" if row["k2"] == k2s[0] else None
        targets.dots(axes[1], k2s.index(row["k2"]) + 0.45 * index, row["recalled"], index, label)
    axes[1].axhline(1 / A, color=style.GREY, lw=1, ls=":")
    axes[1].text(
        len(k2s) - 0.4, 1 / A + 0.01, "memoryless: 1/4", fontsize=8, color=style.GREY, ha="right"
    )
    axes[1].set_xticks(
        [x + 0.225 * (len(k1s) - 1) for x in range(len(k2s))], [str(k2) for k2 in k2s]
    )
    delay = rows[0]["delay"]
    axes[1].set(
        xlabel="window k2 (steps)",
        ylabel="fraction of symbols recalled (one dot per seed)",
        ylim=(0, 1.05),
    )
    axes[1].set_title(f"TBPTT(k1, k2), {CHRONO}, delay {delay}, T = {delay + S}", fontsize=10)
    axes[1].legend(fontsize=9, loc="lower right")
    style.save(figure, folder, "copy_memory")


if __name__ == "__main__":
    program.run(__file__)
