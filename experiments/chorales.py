"""Predict the next notes of Bach's chorales by an LSTM, trained by TBPTT on packed pieces.

    python -m experiments.chorales            about 2 minutes on two cores
    python -m experiments.chorales --quick    under 60 seconds

The 365 pieces are packed into batch rows, with a reset at the start of each piece and a mask after
the last one of a row. A tenth of the pieces is for validation and a tenth for the test; all
settings of one chorale are in the same part. The score is the negative log-likelihood of a step in
nats, summed over 46 independent notes.

Expected: a score below those of note frequencies, of each note's own previous step, and of a
logistic regression on all notes of the previous step; and a long window is better than a short one.
The split is not the published JSB split, so the scores do not compare with those of papers. A
generated piece is written to chorale.mid.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

import tbptt
from experiments.support.common import program, style, targets
from experiments.support.common.console import progress, table
from experiments.support.common.unroll_choice import choose_unroll
from experiments.support.tasks import midi, note_baselines, note_model, note_split
from tbptt.data import chorales
from tbptt.data.datasets.bach import LOWEST, PITCHES

SPLIT_SEED = 7  # the split does not depend on --seed
CHUNK = 32


@dataclasses.dataclass(frozen=True)
class Config(program.Seeded):
    """Settings of the LSTM, the same for all windows."""

    seeds: int = 3
    """number of seeds of every window, each with its own parameters and dropout, all derived from
    --seed"""
    hidden: int = 128
    """units"""
    rate: float = 0.2
    """dropout rate of the input of the readout"""
    passes: int = 24
    """passes over the training pieces"""
    windows: tuple[int, ...] = (2, 8, 32)
    """values of k1 = k2 in sixteenth notes, all with an update every 32; the best by validation is
    tested"""
    lr: float = 1e-2
    """initial learning rate of Adam; cosine decay to 0"""
    steps: int = 384
    """sixteenth notes of the generated piece"""


def smaller(config: Config) -> Config:
    """Return the settings of a quick run."""
    return dataclasses.replace(config, seeds=2, hidden=64, passes=4, windows=(2, 32), steps=128)


def measure(config: Config) -> dict[str, Any]:
    """Score baselines, train with every window, test the best one and generate a piece."""
    config = smaller(config) if config.quick else config
    rolls = chorales().rolls
    groups = note_split.families(rolls)
    train, valid, test = ([rolls[i] for i in part] for part in note_split.split(groups, SPLIT_SEED))
    base = {
        "frequency of each note": note_baselines.frequency(train, test),
        "each note's previous step": note_baselines.first_order(train, test),
        "all notes of the previous step": note_baselines.first_order_all(train, test),
    }
    table(
        "without a network",
        ("input", "test nll per step"),
        [(name, f"{nll:.3f}") for name, nll in base.items()],
    )
    cell = tbptt.LSTM(PITCHES, config.hidden)
    runs = {k: train_one(config, cell, k, train, valid) for k in config.windows}
    best_valid = {k: run.valid_nll.min(0) for k, run in runs.items()}
    chosen = min(config.windows, key=lambda k: float(np.median(best_valid[k])))
    nll = np.asarray(note_model.scorer(cell)(runs[chosen].params, note_model.packed(test)))
    first = jax.tree.map(lambda leaf: leaf[0], runs[chosen].params)
    piece = note_model.generate(cell, first, config.steps, jax.random.key(config.seed))
    rows = [
        targets.expect(
            f"test nll per step, against: {name}",
            nll,
            at_most=value,
            of=targets.largest,
            because="of this run",
        )
        for name, value in base.items()
    ]
    lost = best_valid[min(config.windows)] - best_valid[max(config.windows)]
    what = (
        f"nll per step of window {min(config.windows)} minus that of window {max(config.windows)}"
    )
    rows.append(
        targets.expect(
            what, lost, at_least=0.0, of=targets.smallest, because="same updates, same carry"
        )
    )
    counts = {
        name: [len(part), sum(map(len, part))]
        for name, part in (("train", train), ("valid", valid), ("test", test))
    }
    validation = {str(k): values.tolist() for k, values in best_valid.items()}
    return {
        "curves": {str(k): run.valid_nll.mean(1).tolist() for k, run in runs.items()},
        "train_curves": {str(k): run.train_nll.mean(1).tolist() for k, run in runs.items()},
        "test_nll": nll.tolist(),
        "generated": np.argwhere(piece).tolist(),
        "steps": config.steps,
        "real": np.argwhere(test[0]).tolist(),
        "targets": rows,
        "results": {
            "baselines": base,
            "validation_nll_by_window": validation,
            "chosen_window": chosen,
            "pieces_and_steps": counts,
            "families": len(groups),
            "notes_a_step": {
                "generated": float(piece.sum(1).mean()),
                "test": float(np.concatenate(test).sum(1).mean()),
            },
        },
    }


def train_one(
    config: Config, cell: tbptt.LSTM, k: int, train: Any, valid: Any
) -> note_model.Trained:
    """Train with one window, with a progress bar on stderr."""
    keys = jax.random.split(jax.random.key(config.seed), config.seeds)
    with progress() as display:
        task = display.add_task(f"k1 = k2 = {k}".ljust(16), total=config.passes, loss="compiling")

        def report(done: int, loss: float, nll: float) -> None:
            display.update(
                task, completed=done, loss=f"{loss:.3f}, validation {nll:.3f} nats per step"
            )

        unroll = choose_unroll(config.unroll)
        return note_model.train(
            cell,
            config.rate,
            train,
            valid,
            k,
            CHUNK,
            config.passes,
            config.lr,
            keys,
            report,
            unroll,
        )


def draw(data: dict[str, Any], folder: Path) -> None:
    """Draw scores, curves and two pieces, and write the generated one as MIDI."""
    roll = np.zeros((data["steps"], PITCHES), bool)
    generated = np.asarray(data["generated"], int).reshape(-1, 2)
    roll[generated[:, 0], generated[:, 1]] = True
    midi.write(folder / "chorale.mid", roll, LOWEST)
    figure, axes = style.panels(3, title="Bach's chorales: the notes of the next sixteenth")
    validation = data["results"]["validation_nll_by_window"]
    for x, values in enumerate(validation.values()):
        targets.dots(axes[0], x, values)
    axes[0].set_xticks(range(len(validation)), list(validation))
    axes[0].set(
        xlabel="window k1 = k2 (sixteenth notes)", ylabel="nats per step, validation pieces"
    )
    axes[0].set_title("Validation by window, at equal updates", fontsize=10)
    for index, (k, curve) in enumerate(data["curves"].items()):
        axes[1].plot(
            range(1, 1 + len(curve)), curve, label=f"validation, k = {k}", **style.line(index)
        )
    chosen = str(data["results"]["chosen_window"])
    curve = data["train_curves"][chosen]
    axes[1].plot(
        range(1, 1 + len(curve)),
        curve,
        label=f"training with dropout, k = {chosen}",
        **style.line(6),
    )
    axes[1].set(xlabel="passes over the training pieces", ylabel="nats per step")
    axes[1].set_title("Training, mean of the seeds", fontsize=10)
    axes[1].legend(fontsize=8)
    targets.dots(axes[2], 0, data["test_nll"], 0, f"LSTM, k = {chosen}")
    for x, (name, nll) in enumerate(data["results"]["baselines"].items(), start=1):
        targets.dots(axes[2], x, [nll], x, name)
    axes[2].set_xticks([])
    axes[2].set(ylabel="nats per step, test pieces", ylim=(0, None))
    axes[2].set_title("LSTM (one dot per seed) and baselines", fontsize=10)
    axes[2].legend(fontsize=8)
    style.save(figure, folder, "chorales")
    figure, axes = style.panels(2, title="Sounding notes, the first 128 sixteenths", width=6.5)
    for axis, notes, title in (
        (axes[0], data["real"], "a test piece"),
        (axes[1], data["generated"], "generated"),
    ):
        shown = np.asarray([note for note in notes if note[0] < 128], int).reshape(-1, 2)
        axis.barh(shown[:, 1] + LOWEST, 1, left=shown[:, 0], height=0.9, color=style.COLORS[0])
        axis.set(
            xlabel="step (sixteenth notes)",
            ylabel="MIDI pitch",
            title=title,
            xlim=(0, 128),
            ylim=(35, 82),
        )
    style.save(figure, folder, "pieces")


if __name__ == "__main__":
    program.run(__file__)
