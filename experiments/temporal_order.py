"""Classify sequences by the temporal order of two letters, with an LSTM and an Elman network.

    python -m experiments.temporal_order            about a minute on two cores
    python -m experiments.temporal_order --quick    under 60 seconds: fewer updates

This is experiment 6a of Hochreiter and Schmidhuber with T = 50: the first letter is at steps 3 to
12, the second at steps 25 to 40, and there are four classes. Four units, Adam 0.02, clip 1, batches
of 32. Expected: an accuracy of 100 % for every seed of the LSTM whose forget biases cover T (chrono
initialisation), and chance, 25 %, for the Elman network. The LSTM with forget bias 1 is measured,
too; some of its seeds end at three quarters.
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

T, HIDDEN, BATCH, TEST, CLASSES = 50, 4, 32, 2000, 4


@dataclasses.dataclass(frozen=True)
class Config(program.Seeded):
    """Three cells on the temporal order problem."""

    updates: int = 2000
    """updates of 32 sequences each"""
    lr: float = 2e-2
    """initial learning rate of Adam; cosine decay to 0"""


def train(name: str, cell: Any, config: Config) -> tuple[np.ndarray, dict[str, Any]]:
    """Train all seeds; return their accuracies on new sequences, and the loss curves."""
    loss, unroll = optax.softmax_cross_entropy_with_integer_labels, choose_unroll(config.unroll)
    model = many_seeds.Model(cell, nn.Dense(CLASSES), loss, BATCH, unroll)
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adam(optax.cosine_decay_schedule(config.lr, config.updates)),
    )
    keys, test_keys = many_seeds.keys_of(config.seed, config.seeds)
    draw = functools.partial(tasks.temporal_order, T=T)
    estimator = tbptt.full_bptt(model.loss_fn)
    params, losses = many_seeds.train(
        model, estimator, optimizer, functools.partial(draw, batch_size=BATCH), keys, config.updates
    )

    def score(outputs: jax.Array, batch: tbptt.Batch) -> jax.Array:
        return jnp.mean(jnp.argmax(outputs[-1], -1) == batch.targets[-1])

    accuracy = many_seeds.test(
        model, score, functools.partial(draw, batch_size=TEST), params, test_keys
    )
    console.print(f"{name}: accuracy {', '.join(f'{value:.4f}' for value in accuracy)}")
    return accuracy, many_seeds.thinned(losses)


def measure(config: Config) -> dict[str, Any]:
    """Train all cells."""
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
        "targets": [
            targets.expect(
                "LSTM, chrono: test accuracy",
                lstm,
                at_least=1.0,
                of=targets.smallest,
                because="published: 100 % on 5 of 5",
            ),
            targets.expect(
                "Elman: test accuracy", elman, at_least=0.2, at_most=0.3, because="chance is 0.25"
            ),
        ],
        "results": {
            "updates": config.updates,
            "accuracy": {name: accuracy.tolist() for name, (accuracy, _) in found.items()},
        },
    }


def draw(data: dict[str, Any], folder: Path) -> None:
    """Draw the losses over training, and the accuracy of every seed."""
    figure, axes = style.panels(
        2, title=f"Temporal order of two letters among {T}, {HIDDEN} units", width=5.4
    )
    for index, (name, curve) in enumerate(data["curves"].items()):
        style.median_and_range(axes[0], curve["updates"], curve["losses"], index, name)
        targets.dots(axes[1], index, data["results"]["accuracy"][name], index)
    axes[0].axhline(np.log(CLASSES), color=style.GREY, lw=1, ls=":")
    axes[0].text(0, np.log(CLASSES) + 0.05, "chance: log 4", fontsize=8, color=style.GREY)
    axes[0].set(
        xlabel=f"updates ({BATCH} new sequences each)", ylabel="cross-entropy (nats)", ylim=(0, 1.6)
    )
    axes[0].set_title("median and range of the seeds", fontsize=10)
    axes[0].legend(fontsize=9)
    axes[1].axhline(1 / CLASSES, color=style.GREY, lw=1, ls=":")
    axes[1].text(-0.4, 1 / CLASSES + 0.01, "chance: 1/4", fontsize=8, color=style.GREY)
    axes[1].set_xticks(
        range(len(data["curves"])), [name.replace(", ", ",\n") for name in data["curves"]]
    )
    axes[1].set(
        xlim=(-0.5, len(data["curves"]) - 0.5),
        ylim=(0, 1.05),
        ylabel="test accuracy (one dot per seed)",
    )
    style.save(figure, folder, "temporal_order")


if __name__ == "__main__":
    program.run(__file__)
