"""Continual Reber strings: one endless stream, the carry kept, the gradient cut. Who cannot forget drowns.

    python -m experiments.continual_reber            about 2 minutes on two cores
    python -m experiments.continual_reber --quick    under 60 seconds: fewer updates, windows and seeds

Strings B c R c E of the embedded Reber grammar follow each other without a sign; the second c (T or P) is known to who
remembers the first. TBPTT(75, 75): an update every 75 steps, the carry handed on, never reset. Expected: an LSTM with a
forget gate says more than 98 % of the second c right, the LSTM of 1997, whose forget gate is always 1, hardly more than
half: its cell states only grow. And the window: the other c lies 6 or more steps away, so one of 3 steps carries no
gradient to it and comes to little more than half.
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
from experiments.support.common import targets as known
from experiments.support.common import vmap_seeds as side_by_side
from experiments.support.common.console import console
from tbptt.data import REBER_SYMBOLS, continual_reber, reber_recalls

CHUNK, HIDDEN = 75, 12
SHORTEST = 6  # steps, at least, from one c to the other
# sigmoid(100) is 1 and its slope 0, exactly, in float32: this forget gate is open, and no training closes it.
OPEN = 100.0
WITH, WITHOUT = "LSTM with forget gate", "LSTM without"
BEST, MEMORYLESS = 7 / 12 * float(np.log(2)), 8 / 12 * float(np.log(2))


@dataclasses.dataclass(frozen=True)
class Config(program.Seeded):
    """TBPTT on an endless stream of Reber strings, with and without a forget gate, and by window."""

    updates: int = 2000
    """updates, one every 75 steps"""
    lanes: int = 1
    """streams side by side in one training"""
    windows: tuple[int, ...] = (3, 5, 15, 25)
    """k2 = k1 of further trainings with forget gate; divisors of 75"""
    lr: float = 1e-2
    """Adam's rate"""


def cell(name: str) -> tbptt.LSTM:
    """The two: forget bias 1, and a forget gate held open."""
    return tbptt.LSTM(len(REBER_SYMBOLS), HIDDEN, forget_bias=1.0 if name == WITH else OPEN)


def score(model: side_by_side.Model, params: Any, keys: jax.Array, steps: int) -> np.ndarray:
    """Tests every seed on a stream of its own: (share of second c said right, mean loss, norm of c at the end)."""
    draw = functools.partial(continual_reber, T=steps, lanes=8)

    def one(params: Any, key: jax.Array) -> jax.Array:
        batch = draw(key)
        carry, logits = tbptt.predict(model.cell, model.readout, params, model.cell.initial_carry((8,)), batch)
        right = jnp.argmax(logits, -1) == batch.targets
        recalls = reber_recalls(batch)
        loss = jnp.mean(model.loss(logits, batch.targets))
        return jnp.stack([
            jnp.sum(right & recalls) / jnp.sum(recalls), loss, jnp.mean(jnp.linalg.norm(carry.c, axis=-1))
        ])  # fmt: skip

    return np.asarray(jax.jit(jax.vmap(one))(params, keys))


def one_row(config: Config, name: str, k: int, updates: int) -> dict[str, Any]:
    """Trains and tests all seeds of one cell and one window."""
    model = side_by_side.Model(
        cell(name), nn.Dense(len(REBER_SYMBOLS)), optax.softmax_cross_entropy_with_integer_labels, config.lanes
    )
    optimizer = optax.chain(optax.clip_by_global_norm(5.0), optax.adam(config.lr))
    draw = functools.partial(continual_reber, T=CHUNK * updates, lanes=config.lanes)
    keys, test_keys = side_by_side.keys_of(config.seed, config.seeds)
    params, losses = side_by_side.train_stream(
        model, tbptt.truncated_bptt(model.loss_fn, k, k), optimizer, draw, keys, CHUNK
    )
    recalled, loss, norm = score(model, params, test_keys, 40 * CHUNK).T
    console.print(f"{name:22} TBPTT({k}, {k}): second c right {np.median(recalled):.3f}, loss {np.median(loss):.3f}")
    row = {"cell": name, "k1": k, "k2": k, "recalled": recalled.tolist(), "loss": loss.tolist(), "norm_of_c": norm.tolist()}
    return row | {"curve": side_by_side.thinned(losses)}


def measure(config: Config) -> dict[str, Any]:
    """Trains both cells, and the one with a forget gate at other windows."""
    updates = min(config.updates, 1000) if config.quick else config.updates
    windows = config.windows[:1] if config.quick else config.windows
    rows = [one_row(config, name, CHUNK, updates) for name in (WITH, WITHOUT)]
    rows += [one_row(config, WITH, k, updates) for k in windows]
    expected = [
        known.expect(
            f"{WITH}: second c said right", rows[0]["recalled"], at_least=0.98, because="0.997 published, 0.5 is chance"
        ),
        known.expect(f"{WITHOUT}: second c said right", rows[1]["recalled"], at_most=0.65, because="0.55 published"),
    ]
    expected += [
        known.expect(f"TBPTT({r['k1']}, {r['k2']}): second c said right", r["recalled"], at_most=0.75, because="too short")
        for r in rows[2:]
        if r["k2"] <= SHORTEST // 2
    ]
    curves = {f"{r['cell']}, k2 = {r['k2']}": r.pop("curve") for r in rows}
    return {"curves": curves, "known": expected, "results": {"rows": rows, "updates": updates}}


def draw(data: dict[str, Any], folder: Path) -> None:
    """Draws the losses over training and the share said right by window."""
    figure, axes = style.panels(2, title="Continual embedded Reber grammar, TBPTT with the carry kept", width=6.0)
    rows = data["results"]["rows"]
    for index, row in enumerate(rows[:2]):
        curve = data["curves"][f"{row['cell']}, k2 = {row['k2']}"]
        losses = np.asarray(curve["losses"], float)
        axes[0].plot(curve["updates"], np.median(losses, axis=0), label=row["cell"], **style.line(index))
        axes[0].fill_between(curve["updates"], losses.min(0), losses.max(0), color=style.COLORS[index], alpha=0.15, lw=0)
    for level, text, dash in ((MEMORYLESS, "without memory of c: 8/12 log 2", "-."), (BEST, "best: 7/12 log 2", ":")):
        axes[0].axhline(level, color=style.GREY, lw=1.2, ls=dash, label=text)
    axes[0].set(xlabel=f"updates (every {CHUNK} steps)", ylabel="loss (nats a step)", ylim=(0.38, 1.0))
    axes[0].set_title(f"k1 = k2 = {CHUNK}: median and range of the seeds", fontsize=10)
    axes[0].legend(fontsize=9)
    ordered = sorted(rows, key=lambda row: (row["cell"] == WITHOUT, row["k2"]))
    for x, row in enumerate(ordered):
        known.dots(axes[1], x, row["recalled"], 1 if row["cell"] == WITHOUT else 0)
    names = [f"{row['k2']}" + ("\nno forget\ngate" if row["cell"] == WITHOUT else "") for row in ordered]
    axes[1].set_xticks(range(len(ordered)), names)
    axes[1].axhline(0.5, color=style.GREY, lw=1, ls=":")
    axes[1].text(len(ordered) - 2.5, 0.51, "chance", fontsize=8, color=style.GREY)
    axes[1].set(xlabel="k2 = k1 (steps)", ylabel="second c said right (a dot a seed)", ylim=(0, 1.05))
    axes[1].set_title("The first c lies 6 steps back or more, 9 on average", fontsize=10)
    style.save(figure, folder, "continual_reber")


if __name__ == "__main__":
    program.run(__file__)
