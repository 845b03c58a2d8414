"""Copy memory: symbols are shown, and asked for after a delay. Chrono initialisation bridges it; a shorter window cannot.

    python -m experiments.copy_memory            about 4 minutes on two cores
    python -m experiments.copy_memory --quick    under 60 seconds: fewer delays, windows, updates and seeds

S = 5 symbols of A = 4; each is asked for exactly `delay` steps after it was shown. Who knows when to answer but remembers
nothing has a loss of S log(A) / (delay + S) nats a step; all losses are given as shares of that. Expected (Tallec and Ollivier
2018, in small): the LSTM with chrono initialisation leaves this baseline at every delay, the one with forget bias 1 does not
at 100. And the window: TBPTT(k1, k2) with k2 <= delay stays at the baseline, with k2 = delay + S it leaves it, whatever
k1 is.
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
from experiments.support import known, program, side_by_side, style
from experiments.support.console import console
from tbptt import data as tasks

S, A = 5, 4
LANES, TEST = 32, 1000
CHRONO, STANDARD = "chrono", "forget bias 1"
LEFT, STAYED = 0.5, 0.9  # shares of the baseline


@dataclasses.dataclass(frozen=True)
class Config(program.Seeded):
    """The copy task by delay and initialisation, and by window."""

    hidden: int = 32
    """units"""
    delays: tuple[int, ...] = (10, 30, 100)
    """steps from a symbol to its answer"""
    updates: int = 2000
    """updates of 32 sequences, for every run"""
    window_delay: int = 30
    """delay of the window sweep"""
    lr: float = 5e-3
    """Adam's rate"""


def train(name: str, delay: int, k1: int, k2: int, config: Config) -> tuple[list[float], dict[str, Any]]:
    """Trains all seeds by TBPTT(k1, k2); returns losses on new sequences as shares of the baseline, and the curves."""
    longest = delay * 3 // 2 if name == CHRONO else None
    cell = tbptt.LSTM(A + 2, config.hidden, longest_lag=longest)
    model = side_by_side.Model(cell, nn.Dense(A + 2), optax.softmax_cross_entropy_with_integer_labels, LANES)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(config.lr))
    keys, test_keys = side_by_side.keys_of(config.seed, config.seeds)
    draw = functools.partial(tasks.copy_memory, delay=delay, symbols=S, alphabet=A)
    params, losses = side_by_side.train(
        model,
        tbptt.truncated_bptt(model.loss_fn, k1, k2),
        optimizer,
        functools.partial(draw, lanes=LANES),
        keys,
        config.updates,
    )

    def score(logits: jax.Array, batch: tbptt.Batch) -> jax.Array:
        return jnp.mean(model.loss(logits, batch.targets))

    tested = side_by_side.test(model, score, functools.partial(draw, lanes=TEST), params, test_keys)
    baseline = tasks.copy_baseline(delay, symbols=S, alphabet=A)
    shares = tested / baseline
    console.print(f"delay {delay:3}, {name:13} TBPTT({k1}, {k2}): {np.median(shares):.3f} of the baseline {baseline:.4f}")
    return shares.tolist(), side_by_side.thinned(losses / baseline)


def windows_of(delay: int, quick: bool) -> list[tuple[int, int]]:
    """The pairs (k1, k2) of the sweep: k2 below, at and above the delay, for two strides."""
    T = delay + S
    k2s = (delay - S, T) if quick else (S, delay // 2, delay - S, delay, T)
    return [(k1, k2) for k1 in ((T,) if quick else (S, T)) for k2 in k2s]


def measure(config: Config) -> dict[str, Any]:
    """Trains every delay with both initialisations, then every window at one delay."""
    if config.quick:
        config = dataclasses.replace(config, delays=(10, 100), updates=600, window_delay=10, seeds=2)
    by_delay, curves, by_window = [], {}, []
    for delay in config.delays:
        for name in (CHRONO, STANDARD):
            shares, curve = train(name, delay, delay + S, delay + S, config)
            by_delay.append({"delay": delay, "init": name, "share": shares})
            curves[f"{name}, delay {delay}"] = curve
    for k1, k2 in windows_of(config.window_delay, config.quick):
        by_window.append({"k1": k1, "k2": k2, "share": train(CHRONO, config.window_delay, k1, k2, config)[0]})
    rows = [
        known.expect(
            f"{CHRONO}, delay {row['delay']}: loss / memoryless baseline", row["share"], at_most=LEFT, of=known.largest
        )
        for row in by_delay
        if row["init"] == CHRONO
    ]
    last = by_delay[-1]
    rows.append(
        known.expect(
            f"{STANDARD}, delay {last['delay']}: loss / baseline", last["share"], at_least=STAYED, of=known.smallest
        )
    )
    short = [min(row["share"]) for row in by_window if row["k2"] <= config.window_delay]
    enough = [max(row["share"]) for row in by_window if row["k2"] == config.window_delay + S]
    at = f"delay {config.window_delay}, {CHRONO}"
    rows += [
        known.expect(f"{at}, every k2 <= delay: loss / baseline", short, at_least=STAYED, of=known.smallest),
        known.expect(f"{at}, k2 = delay + {S}: loss / baseline", enough, at_most=LEFT, of=known.largest),
    ]
    baselines = {str(d): tasks.copy_baseline(d, symbols=S, alphabet=A) for d in config.delays}
    return {
        "curves": curves,
        "known": rows,
        "results": {
            "baseline": f"S log(A) / (delay + S), S = {S}, A = {A}",
            "baselines": baselines,
            "delays": by_delay,
            "windows": by_window,
            "window_delay": config.window_delay,
        },
    }


def draw(data: dict[str, Any], folder: Path) -> None:
    """Draws the losses over training by delay, and the final ones by window."""
    figure, axes = style.panels(
        2, title=f"Copy memory: {S} symbols of {A}, loss as a share of the memoryless one", width=6.0
    )
    for index, (name, curve) in enumerate(data["curves"].items()):
        losses = np.asarray(curve["losses"], float)
        axes[0].plot(curve["updates"], np.median(losses, axis=0), label=name, **style.line(index))
        axes[0].fill_between(curve["updates"], losses.min(0), losses.max(0), color=style.COLORS[index], alpha=0.12, lw=0)
    axes[0].set(xlabel=f"updates ({LANES} new sequences each)", ylabel="loss / baseline", ylim=(0, 1.5))
    axes[0].set_title("full BPTT: median and range of the seeds", fontsize=10)
    axes[0].legend(fontsize=8, loc="upper right")
    rows, delay = data["results"]["windows"], data["results"]["window_delay"]
    k2s = sorted({row["k2"] for row in rows})
    for index, k1 in enumerate(sorted({row["k1"] for row in rows})):
        for row in (r for r in rows if r["k1"] == k1):
            label = f"k1 = {k1}" if row["k2"] == k2s[0] else None
            known.dots(axes[1], k2s.index(row["k2"]) + 0.3 * index, row["share"], index, label)
    axes[1].set_xticks(range(len(k2s)), [str(k2) for k2 in k2s])
    axes[1].set(xlabel=f"window k2 (steps); the delay is {delay}", ylabel="loss / baseline (a dot a seed)", ylim=(0, 1.5))
    axes[1].set_title(f"TBPTT(k1, k2), {CHRONO}, delay {delay}: T = {delay + S}", fontsize=10)
    axes[1].legend(fontsize=8)
    for axis in axes:
        axis.axhline(1, color=style.GREY, lw=1, ls=":")
    style.save(figure, folder, "copy_memory")


if __name__ == "__main__":
    program.run(__file__)
