"""Temporal order: which of two letters came first, and which second, among fifty? An LSTM knows, a simple network guesses.

    python -m experiments.temporal_order            about a minute on two cores
    python -m experiments.temporal_order --quick    under 60 seconds: fewer updates

Hochreiter and Schmidhuber's experiment 6a with T = 50: the first letter at steps 3 to 12, the second at 25 to 40, four
classes. Four units, Adam 0.02, clip 1, batches of 32. Expected: the LSTM 100 % on every seed, its forget biases spread over
T (chrono initialisation); the simple network at chance, 25 %. The LSTM with forget bias 1 is measured beside them: with
--seeds 20, two of its seeds got stuck at three quarters, and none of the chrono ones did.
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
from tbptt import data as tasks

T, HIDDEN, LANES, TEST, CLASSES = 50, 4, 32, 2000, 4


@dataclasses.dataclass(frozen=True)
class Config(program.Seeded):
    """Three cells on the temporal order problem."""

    updates: int = 2000
    """updates of 32 sequences"""
    lr: float = 2e-2
    """Adam's rate, decayed to 0 by half a cosine"""


def train(name: str, cell: Any, config: Config) -> tuple[np.ndarray, dict[str, Any]]:
    """Trains all seeds; returns the shares of new sequences that are classed right, and the curves."""
    model = side_by_side.Model(cell, nn.Dense(CLASSES), optax.softmax_cross_entropy_with_integer_labels, LANES)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(config.lr, config.updates))
    )
    keys, test_keys = side_by_side.keys_of(config.seed, config.seeds)
    draw = functools.partial(tasks.temporal_order, T=T)
    params, losses = side_by_side.train(
        model,
        tbptt.full_bptt(model.loss_fn),
        optimizer,
        functools.partial(draw, lanes=LANES),
        keys,
        config.updates,
    )

    def score(outputs: jax.Array, batch: tbptt.Batch) -> jax.Array:
        return jnp.mean(jnp.argmax(outputs[-1], -1) == batch.targets[-1])

    right = side_by_side.test(model, score, functools.partial(draw, lanes=TEST), params, test_keys)
    console.print(f"{name}: right {', '.join(f'{share:.4f}' for share in right)}")
    return right, side_by_side.thinned(losses)


def measure(config: Config) -> dict[str, Any]:
    """Trains all cells."""
    symbols = len(tasks.ORDER_SYMBOLS)
    cells = {
        "LSTM, chrono": tbptt.LSTM(symbols, HIDDEN, longest_lag=T),
        "Elman": tbptt.Elman(symbols, HIDDEN),
        "LSTM, forget bias 1": tbptt.LSTM(symbols, HIDDEN),
    }
    if config.quick:
        config = dataclasses.replace(config, updates=1500)
        del cells["LSTM, forget bias 1"]
    found = {name: train(name, cell, config) for name, cell in cells.items()}
    lstm, elman = found["LSTM, chrono"][0], found["Elman"][0]
    return {
        "curves": {name: curve for name, (_, curve) in found.items()},
        "known": [
            known.expect(
                "LSTM, chrono: test accuracy", lstm, at_least=1.0, of=known.smallest, because="published: 100 % on 5 of 5"
            ),
            known.expect("Elman: test accuracy", elman, at_least=0.2, at_most=0.3, because="chance is 0.25"),
        ],
        "results": {"updates": config.updates, "accuracy": {name: right.tolist() for name, (right, _) in found.items()}},
    }


def draw(data: dict[str, Any], folder: Path) -> None:
    """Draws the losses over training, and the accuracy of every seed."""
    figure, axes = style.panels(2, title=f"Temporal order of two letters among {T}, {HIDDEN} units", width=5.4)
    for index, (name, curve) in enumerate(data["curves"].items()):
        losses = np.asarray(curve["losses"], float)
        axes[0].plot(curve["updates"], np.median(losses, axis=0), label=name, **style.line(index))
        axes[0].fill_between(curve["updates"], losses.min(0), losses.max(0), color=style.COLORS[index], alpha=0.15, lw=0)
        known.dots(axes[1], index, data["results"]["accuracy"][name], index)
    axes[0].axhline(np.log(CLASSES), color=style.GREY, lw=1, ls=":")
    axes[0].text(0, np.log(CLASSES) + 0.05, "chance: log 4", fontsize=8, color=style.GREY)
    axes[0].set(xlabel=f"updates ({LANES} new sequences each)", ylabel="cross-entropy (nats)", ylim=(0, 1.6))
    axes[0].set_title("median and range of the seeds", fontsize=10)
    axes[0].legend(fontsize=9)
    axes[1].axhline(1 / CLASSES, color=style.GREY, lw=1, ls=":")
    axes[1].text(-0.4, 1 / CLASSES + 0.01, "chance: 1/4", fontsize=8, color=style.GREY)
    axes[1].set_xticks(range(len(data["curves"])), [name.replace(", ", ",\n") for name in data["curves"]])
    axes[1].set(
        xlim=(-0.5, len(data["curves"]) - 0.5),
        ylim=(0, 1.05),
        ylabel="test accuracy (a dot a seed)",
    )
    style.save(figure, folder, "temporal_order")


if __name__ == "__main__":
    program.run(__file__)
