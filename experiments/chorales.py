"""Bach's chorales: which of 46 notes sound in the next sixteenth, by an LSTM over pieces of different lengths.

    python -m experiments.chorales            about 2 minutes on two cores
    python -m experiments.chorales --quick    under 60 seconds

365 pieces, packed end to end into lanes: a reset where a piece begins, a mask after the last one of a lane, the carry
handed on in between. A tenth of the pieces is for validation and a tenth for the test, settings of one chorale never apart.
Score: negative log-likelihood of a step in nats, 46 independent notes summed. Expected: below the notes' frequencies, below
each note's own last step, and below a logistic regression on all notes of the last step; and a short window loses to a long
one. (Not the published JSB split, so no paper's number compares.) A generated piece is written as chorale.mid.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

import tbptt
from experiments.support.common import program, style
from experiments.support.common import targets as known
from experiments.support.common.console import progress, table
from experiments.support.tasks import midi, note_baselines, note_model, note_split
from tbptt.data import chorales
from tbptt.data.datasets.bach import LOWEST, PITCHES

SPLIT_SEED = 7  # the split is one, whatever --seed
CHUNK = 32


@dataclasses.dataclass(frozen=True)
class Config(program.Seeded):
    """Settings of the LSTM, the same for all windows."""

    seeds: int = 3
    """runs of every window, side by side: each its own parameters and dropout, all drawn from --seed"""
    hidden: int = 128
    """units"""
    rate: float = 0.2
    """dropout of the readout's input"""
    passes: int = 24
    """passes over the training pieces"""
    windows: tuple[int, ...] = (2, 8, 32)
    """k1 = k2 in sixteenth notes, and an update every 32 for all; the one with the best validation is tested"""
    lr: float = 1e-2
    steps: int = 384
    """sixteenth notes of the generated piece"""


def smaller(config: Config) -> Config:
    """What --quick runs."""
    return dataclasses.replace(config, seeds=2, hidden=64, passes=4, windows=(2, 32), steps=128)


def measure(config: Config) -> dict[str, Any]:
    """Scores the baselines, trains at every window, tests the window that validation chose and lets it generate."""
    config = smaller(config) if config.quick else config
    rolls = chorales().rolls
    groups = note_split.families(rolls)
    train, valid, test = ([rolls[i] for i in part] for part in note_split.split(groups, SPLIT_SEED))
    base = {
        "frequency of each note": note_baselines.frequency(train, test),
        "each note's own last step": note_baselines.first_order(train, test),
        "all notes of the last step": note_baselines.first_order_all(train, test),
    }
    table("without a network", ("looks at", "test nll a step"), [(name, f"{nll:.3f}") for name, nll in base.items()])
    cell = tbptt.LSTM(PITCHES, config.hidden)
    runs = {k: train_one(config, cell, k, train, valid) for k in config.windows}
    best_valid = {k: run.valid_nll.min(0) for k, run in runs.items()}
    chosen = min(config.windows, key=lambda k: float(np.median(best_valid[k])))
    nll = np.asarray(note_model.scorer(cell)(runs[chosen].params, note_model.packed(test)))
    first = jax.tree.map(lambda leaf: leaf[0], runs[chosen].params)
    piece = note_model.generate(cell, first, config.steps, jax.random.key(config.seed))
    rows = [
        known.expect(f"test nll a step, against: {name}", nll, at_most=value, of=known.largest, because="of this run")
        for name, value in base.items()
    ]
    lost = best_valid[min(config.windows)] - best_valid[max(config.windows)]
    what = f"nll a step lost by the window {min(config.windows)} against {max(config.windows)}"
    rows.append(known.expect(what, lost, at_least=0.0, of=known.smallest, because="same updates, same carry"))
    counts = {name: [len(part), sum(map(len, part))] for name, part in (("train", train), ("valid", valid), ("test", test))}
    validation = {str(k): values.tolist() for k, values in best_valid.items()}
    return {
        "curves": {str(k): run.valid_nll.mean(1).tolist() for k, run in runs.items()},
        "train_curves": {str(k): run.train_nll.mean(1).tolist() for k, run in runs.items()},
        "test_nll": nll.tolist(),
        "generated": np.argwhere(piece).tolist(),
        "steps": config.steps,
        "real": np.argwhere(test[0]).tolist(),
        "known": rows,
        "results": {
            "baselines": base,
            "validation_nll_by_window": validation,
            "chosen_window": chosen,
            "pieces_and_steps": counts,
            "families": len(groups),
            "notes_a_step": {"generated": float(piece.sum(1).mean()), "test": float(np.concatenate(test).sum(1).mean())},
        },
    }


def train_one(config: Config, cell: tbptt.LSTM, k: int, train: Any, valid: Any) -> note_model.Trained:
    """Trains at one window, with a bar on stderr."""
    keys = jax.random.split(jax.random.key(config.seed), config.seeds)
    with progress() as display:
        task = display.add_task(f"k1 = k2 = {k}".ljust(16), total=config.passes, loss="compiling")

        def report(done: int, loss: float, nll: float) -> None:
            display.update(task, completed=done, loss=f"{loss:.3f}, validation {nll:.3f} nats a step")

        return note_model.train(cell, config.rate, train, valid, k, CHUNK, config.passes, config.lr, keys, report)


def draw(data: dict[str, Any], folder: Path) -> None:
    """Draws scores, curves and two pieces; writes the generated one as MIDI."""
    roll = np.zeros((data["steps"], PITCHES), bool)
    generated = np.asarray(data["generated"], int).reshape(-1, 2)
    roll[generated[:, 0], generated[:, 1]] = True
    midi.write(folder / "chorale.mid", roll, LOWEST)
    figure, axes = style.panels(3, title="Bach's chorales: the notes of the next sixteenth")
    validation = data["results"]["validation_nll_by_window"]
    for x, values in enumerate(validation.values()):
        known.dots(axes[0], x, values)
    axes[0].set_xticks(range(len(validation)), list(validation))
    axes[0].set(xlabel="window k1 = k2 (sixteenth notes)", ylabel="nats a step, validation pieces")
    axes[0].set_title("The window, at equal updates", fontsize=10)
    for index, (k, curve) in enumerate(data["curves"].items()):
        axes[1].plot(range(1, 1 + len(curve)), curve, label=f"validation, k = {k}", **style.line(index))
    chosen = str(data["results"]["chosen_window"])
    curve = data["train_curves"][chosen]
    axes[1].plot(range(1, 1 + len(curve)), curve, label=f"training with dropout, k = {chosen}", **style.line(6))
    axes[1].set(xlabel="passes over the training pieces", ylabel="nats a step")
    axes[1].set_title("Training, mean of the seeds", fontsize=10)
    axes[1].legend(fontsize=8)
    known.dots(axes[2], 0, data["test_nll"], 0, f"LSTM, k = {chosen}")
    for x, (name, nll) in enumerate(data["results"]["baselines"].items(), start=1):
        known.dots(axes[2], x, [nll], x, name)
    axes[2].set_xticks([])
    axes[2].set(ylabel="nats a step, test pieces", ylim=(0, None))
    axes[2].set_title("LSTM (a dot a seed) and baselines", fontsize=10)
    axes[2].legend(fontsize=8)
    style.save(figure, folder, "chorales")
    figure, axes = style.panels(2, title="Sounding notes, the first 128 sixteenths", width=6.5)
    for axis, notes, title in ((axes[0], data["real"], "a test piece"), (axes[1], data["generated"], "generated")):
        shown = np.asarray([note for note in notes if note[0] < 128], int).reshape(-1, 2)
        axis.barh(shown[:, 1] + LOWEST, 1, left=shown[:, 0], height=0.9, color=style.COLORS[0])
        axis.set(xlabel="step (sixteenth notes)", ylabel="MIDI pitch", title=title, xlim=(0, 128), ylim=(35, 82))
    style.save(figure, folder, "pieces")


if __name__ == "__main__":
    program.run(__file__)
