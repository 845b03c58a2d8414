"""Digits read row by row and pixel by pixel: which cell carries them to the end, and what does a truncated gradient miss?

    python -m experiments.pixel_digits            about 10 minutes on two cores
    python -m experiments.pixel_digits --quick    under 60 seconds: rows alone, too short to conclude from

4,000 digits to train on, 1,000 to test with, the label asked once, after the last step; every run has the same seconds of
training (of the processor), and the runs take turns. Rows: 28 steps of 28 pixels. Pixels: 784 steps of one. Permuted: the
same in one random order. The gradient of TBPTT(T, k2) flows through the last k2 steps only: it never meets what stands
before, though the carry still tells of it, for the weights are the same at every step. Expected: by rows 95 % and more
(LSTM, GRU), which is what 4,000 digits give (papers have 60,000); a window of one row far below; pixel by pixel the LSTM
whose time scales reach 784 steps (chrono) learns, full and through 196 steps, which takes a third of the time; a window
of 28 pixels, the last row, blank in all but 69 of the 5,000 digits, misses most.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax

import tbptt
from experiments.support.common import program
from experiments.support.common import targets as known
from experiments.support.common.console import console, human_bytes, table
from experiments.support.common.equal_time import shown_race
from experiments.support.tasks import digit_figure
from experiments.support.tasks.digit_job import Net, Recipe, Task, make_runners, make_task, test_accuracy
from tbptt.cells import initializers
from tbptt.data import mnist


@dataclasses.dataclass(frozen=True)
class Config(program.Seeded):
    """Four cells on three tasks, full against truncated BPTT at equal seconds."""

    seeds: int = 3
    """runs by rows, each its own parameters and order of digits; the tasks of 784 steps have one"""
    rows_seconds: float = 6.0
    """training seconds of every run by rows, compilation apart"""
    pixel_seconds: float = 30.0
    """training seconds of every run pixel by pixel"""
    row_windows: tuple[int, ...] = (1, 4, 14)
    """k2, rows; full BPTT is run too"""
    pixel_windows: tuple[int, ...] = (28, 196, 392)
    """k2, pixels; full BPTT is run too"""
    permuted_windows: tuple[int, ...] = (28, 196)
    """k2, pixels"""
    batch: int = 50
    """digits an update, rows"""
    pixel_batch: int = 20
    """digits an update, pixels: so that full BPTT, which is slow there, makes a thousand updates and more in its seconds"""


def nets(D: int, T: int, hidden: int) -> dict[str, tuple[Net, float]]:
    """Makes the four networks, each with its learning rate."""
    by_pixel = T > 100
    return {
        "LSTM": (Net("LSTM", tbptt.LSTM(D, hidden, longest_lag=T if by_pixel else None)), 1e-2 if by_pixel else 3e-3),
        "GRU": (Net("GRU", tbptt.GRU(D, hidden)), 5e-3 if by_pixel else 3e-3),
        "Elman": (
            Net("Elman", tbptt.Elman(D, hidden, activation=jax.nn.relu, recurrent_init=initializers.identity)),
            1e-3,
        ),
        "MinGRU": (Net("MinGRU", tbptt.MinGRU(D, hidden), tbptt.parallel_unroll), 1e-2),
    }


def compare(
    config: Config, task: Task, windows: tuple[int, ...], seconds: float, seeds: tuple[int, ...], hidden: int
) -> Any:
    """Trains every cell by full BPTT and the LSTM through every window, all in turns; returns a row each."""
    T, _, D = task.train[0].shape
    cells, digits = nets(D, T, hidden), config.batch if T < 100 else config.pixel_batch
    plan = [(name, T) for name in cells] + [("LSTM", k2) for k2 in windows]
    runners, rates, rows = [], [], []
    for name, k2 in plan:
        net, lr = cells[name]
        label = f"{task.name}: {name}, " + ("full BPTT" if k2 == T else f"TBPTT({T}, {k2})")
        recipe = Recipe(digits, lr, 1.0, 40 if T < 100 else 5)
        made, size = make_runners(label, net, task, k2, recipe, seeds)
        runners += made
        rates += [lr] * len(made)
        rows.append(
            {"task": task.name, "cell": name, "T": T, "k2": k2, "full": k2 == T, "label": label, "temp_bytes": size}
        )
        console.print(f"{label}: compiled, {human_bytes(size)} for a gradient")
    outcomes = shown_race(f"{task.name}: {len(runners)} runs", runners, seconds, rates)
    for i, row in enumerate(rows):
        mine = outcomes[i * len(seeds) : (i + 1) * len(seeds)]
        score = test_accuracy(cells[row["cell"]][0], task)
        row["accuracy"] = [score(outcome.state.params) for outcome in mine]
        row |= {"updates": [o.updates for o in mine], "seconds": [round(o.seconds, 2) for o in mine]}
        row["curve"] = mine[0].curve[:: max(1, len(mine[0].curve) // 200)]
    return rows


def expectations(rows: list[dict[str, Any]]) -> list[known.Row]:
    """Says what should be seen."""
    by = {(r["task"], r["cell"], r["k2"]): r["accuracy"] for r in rows}
    lstm = {k2: known.median(a) for (task, cell, k2), a in by.items() if (task, cell) == ("rows", "LSTM")}
    found = [
        known.expect(f"rows, {cell}, full BPTT: test accuracy", by["rows", cell, 28], at_least=0.95, because="4,000 digits")
        for cell in ("LSTM", "GRU")
    ]
    shortest = min(lstm)
    found.append(
        known.expect(
            f"rows, LSTM, TBPTT(28, {shortest}): test accuracy",
            by["rows", "LSTM", shortest],
            at_most=lstm[28] - 0.15,
            because="0.15 below full BPTT",
        )
    )
    for task, least in (("pixels", 0.6), ("permuted", 0.5)):
        mine = {k2: known.median(a) for (name, cell, k2), a in by.items() if (name, cell) == (task, "LSTM")}
        if not mine:
            continue
        what = f"{task}, LSTM"
        found.append(
            known.expect(
                f"{what}, full BPTT: test accuracy",
                by[task, "LSTM", 784],
                at_least=least,
                otherwise=f"It makes too few updates in its seconds; TBPTT(784, 196) has {mine[196]:.3f} in the same time.",
            )
        )
        found.append(
            known.expect(
                f"{what}, TBPTT(784, 196): test accuracy at equal seconds",
                by[task, "LSTM", 196],
                at_least=mine[784],
                because="full BPTT's",
            )
        )
    if ("pixels", "LSTM", 28) in by:
        full = known.median(by["pixels", "LSTM", 784])
        found.append(
            known.expect(
                "pixels, LSTM, TBPTT(784, 28): test accuracy",
                by["pixels", "LSTM", 28],
                at_most=full - 0.15,
                because="0.15 below full BPTT: its window is the last row, blank in all but 69 of 5,000",
                otherwise="Full BPTT has not come far in its seconds, and a carry that no gradient taught tells much.",
            )
        )
    return found


def measure(config: Config) -> dict[str, Any]:
    """Runs the three tasks, in the quick form rows alone."""
    train, test = mnist()
    seeds = tuple(1000 * config.seed + i for i in range(1 if config.quick else config.seeds))
    if config.quick:
        config = dataclasses.replace(config, rows_seconds=2.0, row_windows=(1, 14))
    rows = compare(config, make_task("rows", train, test), config.row_windows, config.rows_seconds, seeds, 128)
    if not config.quick:
        for name, windows in (("pixels", config.pixel_windows), ("permuted", config.permuted_windows)):
            rows += compare(config, make_task(name, train, test), windows, config.pixel_seconds, seeds[:1], 64)
    tell(rows)
    results = {"rows": [{key: value for key, value in row.items() if key != "curve"} for row in rows]}
    results |= {"train_digits": len(train.labels), "test_digits": len(test.labels)}
    return {"curves": {row["label"]: row["curve"] for row in rows}, "known": expectations(rows), "results": results}


def tell(rows: list[dict[str, Any]]) -> None:
    """Prints the table a person reads."""
    table(
        "digits: test accuracy at equal training seconds",
        ("task, cell, gradient", "accuracy", "spread", "updates", "seconds", "a gradient"),
        [
            (
                row["label"],
                f"{known.median(row['accuracy']):.3f}",
                f"{min(row['accuracy']):.3f} to {max(row['accuracy']):.3f}" if len(row["accuracy"]) > 1 else "one seed",
                str(int(known.median(row["updates"]))),
                f"{known.median(row['seconds']):.1f}",
                human_bytes(row["temp_bytes"]),
            )
            for row in rows
        ],
    )


def draw(data: dict[str, Any], folder: Path) -> None:
    """Draws accuracy by cell, accuracy by window, and loss by second."""
    digit_figure.draw(data, folder)


if __name__ == "__main__":
    program.run(__file__)
