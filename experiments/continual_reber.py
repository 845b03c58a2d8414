"""Train LSTMs with and without a forget gate on a continual stream of Reber strings, by TBPTT.

    python -m experiments.continual_reber            about 2 minutes on two cores
    python -m experiments.continual_reber --quick    under 60 seconds: fewer updates and windows

Strings B c R c E of the embedded Reber grammar follow each other without a separator; the second c
(T or P) equals the first. TBPTT(75, 75) makes an update every 75 steps and never resets the carry.
Expected: an LSTM with a forget gate predicts more than 98 % of the second c. The LSTM of 1997,
whose forget gate is always 1, predicts little more than half, because its cell states grow without
bound. The two c are at least 6 steps apart, so a window of 3 steps propagates no gradient between
them, and its accuracy is little more than half, too.
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
from tbptt.data import REBER_SYMBOLS, continual_reber, reber_recalls

CHUNK, HIDDEN = 75, 12
SHORTEST = 6  # minimal number of steps from one c to the other
# In float32 sigmoid(100) is exactly 1 and its derivative 0: this forget gate stays open during
# training.
OPEN = 100.0
WITH, WITHOUT = "LSTM with forget gate", "LSTM without forget gate"
BEST, MEMORYLESS = 7 / 12 * float(np.log(2)), 8 / 12 * float(np.log(2))


@dataclasses.dataclass(frozen=True)
class Config(program.Seeded):
    """TBPTT on a stream of Reber strings, with and without a forget gate, and by window."""

    updates: int = 2000
    """updates, one every 75 steps"""
    batch: int = 1
    """number of streams trained side by side"""
    windows: tuple[int, ...] = (3, 5, 15, 25)
    """values of k1 = k2 for further runs with forget gate; divisors of 75"""
    lr: float = 1e-2
    """learning rate of Adam"""


def cell(name: str) -> tbptt.LSTM:
    """Make the LSTM with forget bias 1, or the one whose forget gate stays open."""
    return tbptt.LSTM(len(REBER_SYMBOLS), HIDDEN, forget_bias=1.0 if name == WITH else OPEN)


def score(model: many_seeds.Model, params: Any, keys: jax.Array, steps: int) -> np.ndarray:
    """Test every seed on its own stream.

    Return (fraction of second c predicted, mean loss, norm of c at the end).
    """
    draw = functools.partial(continual_reber, T=steps, batch_size=8)

    def one(params: Any, key: jax.Array) -> jax.Array:
        batch = draw(key)
        carry = model.cell.initial_carry((8,))
        carry, logits = tbptt.predict(
            model.cell, model.readout, params, carry, batch, unroll=model.unroll
        )
        right = jnp.argmax(logits, -1) == batch.targets
        recalls = reber_recalls(batch)
        loss = jnp.mean(model.loss(logits, batch.targets))
        return jnp.stack([
            jnp.sum(right & recalls) / jnp.sum(recalls),
            loss,
            jnp.mean(jnp.linalg.norm(carry.c, axis=-1)),
        ])  # fmt: skip

    return np.asarray(jax.jit(jax.vmap(one))(params, keys))


def one_row(config: Config, name: str, k: int, updates: int) -> dict[str, Any]:
    """Train and test all seeds of one cell and one window."""
    readout, loss = nn.Dense(len(REBER_SYMBOLS)), optax.softmax_cross_entropy_with_integer_labels
    model = many_seeds.Model(cell(name), readout, loss, config.batch, choose_unroll(config.unroll))
    optimizer = optax.chain(optax.clip_by_global_norm(5.0), optax.adam(config.lr))
    draw = functools.partial(continual_reber, T=CHUNK * updates, batch_size=config.batch)
    keys, test_keys = many_seeds.keys_of(config.seed, config.seeds)
    params, losses = many_seeds.train_stream(
        model, tbptt.truncated_bptt(model.loss_fn, k, k), optimizer, draw, keys, CHUNK
    )
    recalled, loss, norm = score(model, params, test_keys, 40 * CHUNK).T
    console.print(
        f"{name:24} TBPTT({k}, {k}): second c {np.median(recalled):.3f}, loss {np.median(loss):.3f}"
    )
    row = {
        "cell": name,
        "k1": k,
        "k2": k,
        "recalled": recalled.tolist(),
        "loss": loss.tolist(),
        "norm_of_c": norm.tolist(),
    }
    return row | {"curve": many_seeds.thinned(losses)}


def measure(config: Config) -> dict[str, Any]:
    """Train both cells, and the one with a forget gate with other windows."""
    updates = min(config.updates, 1000) if config.quick else config.updates
    windows = config.windows[:1] if config.quick else config.windows
    rows = [one_row(config, name, CHUNK, updates) for name in (WITH, WITHOUT)]
    rows += [one_row(config, WITH, k, updates) for k in windows]
    expected = [
        targets.expect(
            f"{WITH}: accuracy at the second c",
            rows[0]["recalled"],
            at_least=0.98,
            because="0.997 published, 0.5 is chance",
        ),
        targets.expect(
            f"{WITHOUT}: accuracy at the second c",
            rows[1]["recalled"],
            at_most=0.65,
            because="0.55 published",
        ),
    ]
    expected += [
        targets.expect(
            f"TBPTT({r['k1']}, {r['k2']}): accuracy at the second c",
            r["recalled"],
            at_most=0.75,
            because="too short",
        )
        for r in rows[2:]
        if r["k2"] <= SHORTEST // 2
    ]
    curves = {f"{r['cell']}, k2 = {r['k2']}": r.pop("curve") for r in rows}
    return {"curves": curves, "targets": expected, "results": {"rows": rows, "updates": updates}}


def draw(data: dict[str, Any], folder: Path) -> None:
    """Draw the losses over training, and the accuracy at the second c by window."""
    figure, axes = style.panels(
        2, title="Continual embedded Reber grammar, TBPTT without resets", width=6.0
    )
    rows = data["results"]["rows"]
    for index, row in enumerate(rows[:2]):
        curve = data["curves"][f"{row['cell']}, k2 = {row['k2']}"]
        style.median_and_range(axes[0], curve["updates"], curve["losses"], index, row["cell"])
    for level, text, dash in (
        (MEMORYLESS, "memoryless: 8/12 log 2", "-."),
        (BEST, "optimal: 7/12 log 2", ":"),
    ):
        axes[0].axhline(level, color=style.GREY, lw=1.2, ls=dash, label=text)
    axes[0].set(
        xlabel=f"updates (every {CHUNK} steps)", ylabel="loss (nats per step)", ylim=(0.38, 1.0)
    )
    axes[0].set_title(f"k1 = k2 = {CHUNK}: median and range of the seeds", fontsize=10)
    axes[0].legend(fontsize=9)
    ordered = sorted(rows, key=lambda row: (row["cell"] == WITHOUT, row["k2"]))
    for x, row in enumerate(ordered):
        targets.dots(axes[1], x, row["recalled"], 1 if row["cell"] == WITHOUT else 0)
    names = [
        f"{row['k2']}" + ("\nno forget\ngate" if row["cell"] == WITHOUT else "") for row in ordered
    ]
    axes[1].set_xticks(range(len(ordered)), names)
    axes[1].axhline(0.5, color=style.GREY, lw=1, ls=":")
    axes[1].text(len(ordered) - 2.5, 0.51, "chance", fontsize=8, color=style.GREY)
    axes[1].set(
        xlabel="k2 = k1 (steps)",
        ylabel="accuracy at the second c (one dot per seed)",
        ylim=(0, 1.05),
    )
    axes[1].set_title("The two c are at least 6 steps apart, 9 on average", fontsize=10)
    style.save(figure, folder, "continual_reber")


if __name__ == "__main__":
    program.run(__file__)
