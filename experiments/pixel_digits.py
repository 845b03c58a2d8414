"""Classify digits row by row and pixel by pixel, by cell and by window.

    python -m experiments.pixel_digits            about 10 minutes on two cores
    python -m experiments.pixel_digits --quick    under 60 seconds: the rows task only

There are 4,000 training and 1,000 test digits, and the label is predicted after the last step.
Rows: 28 steps of 28 pixels. Pixels: 784 steps of one pixel. Permuted: the same in one random order.
Every run of a task has the same CPU seconds, in turns. The gradient of TBPTT(T, k2) is propagated
through the last k2 steps only. Earlier steps contribute no gradient, but the carry still depends on
them, and the weights are the same at every step.

Expected: by rows, LSTM and GRU reach 95 % or more with 4,000 digits (papers use 60,000), and a
window of one row is far worse. By pixels, the LSTM with time scales up to 784 steps (chrono
initialisation) learns by full BPTT, and through 196 steps in a third of the time. A window of 28
pixels is much worse: it is the last row, which is blank in all but 69 of the 5,000 digits.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax

import tbptt
from experiments.support.common import program, targets
from experiments.support.common.console import console, human_bytes, table
from experiments.support.common.equal_time import run_with_progress
from experiments.support.common.unroll_choice import UnrollName, choose_unroll
from experiments.support.tasks import digit_figure
from experiments.support.tasks.digit_job import (
    Net,
    Recipe,
    Task,
    make_runners,
    make_task,
    test_accuracy,
)
from tbptt.cells import initializers
from tbptt.data import mnist


@dataclasses.dataclass(frozen=True)
class Config(program.Seeded):
    """Four cells on three tasks, full against truncated BPTT at equal seconds."""

    seeds: int = 3
    """number of seeds of the rows task, each with its own parameters and order of digits; tasks of
    784 steps have one"""
    unroll: UnrollName = "scan"
    """function that runs LSTM, GRU and Elman network through time; MinGRU always uses parallel"""
    rows_seconds: float = 6.0
    """training seconds of every run of the rows task, without compilation"""
    pixel_seconds: float = 30.0
    """training seconds of every run of the pixel tasks"""
    row_windows: tuple[int, ...] = (1, 4, 14)
    """values of k2 in rows, in addition to full BPTT"""
    pixel_windows: tuple[int, ...] = (28, 196, 392)
    """values of k2 in pixels, in addition to full BPTT"""
    permuted_windows: tuple[int, ...] = (28, 196)
    """values of k2 of the permuted task in pixels"""
    batch: int = 50
    """digits per update of the rows task"""
    pixel_batch: int = 20
    """digits per update of the pixel tasks; small, so that full BPTT makes about a thousand
    updates"""


def nets(D: int, T: int, hidden: int, unroll: tbptt.UnrollFn) -> dict[str, tuple[Net, float]]:
    """Make the four networks, each with its learning rate."""
    by_pixel = T > 100
    lstm = tbptt.LSTM(D, hidden, longest_lag=T if by_pixel else None)
    elman = tbptt.Elman(D, hidden, activation=jax.nn.relu, recurrent_init=initializers.identity)
    return {
        "LSTM": (Net("LSTM", lstm, unroll), 1e-2 if by_pixel else 3e-3),
        "GRU": (Net("GRU", tbptt.GRU(D, hidden), unroll), 5e-3 if by_pixel else 3e-3),
        "Elman": (Net("Elman", elman, unroll), 1e-3),
        "MinGRU": (Net("MinGRU", tbptt.MinGRU(D, hidden), tbptt.parallel_unroll), 1e-2),
    }


def compare(
    config: Config,
    task: Task,
    windows: tuple[int, ...],
    seconds: float,
    seeds: tuple[int, ...],
    hidden: int,
) -> Any:
    """Train every cell by full BPTT, and the LSTM with every window, all in turns.

    Return a row of each.
    """
    T, _, D = task.train[0].shape
    cells = nets(D, T, hidden, choose_unroll(config.unroll))
    digits = config.batch if T < 100 else config.pixel_batch
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
            {
                "task": task.name,
                "cell": name,
                "T": T,
                "k2": k2,
                "full": k2 == T,
                "label": label,
                "temp_bytes": size,
            }
        )
        console.print(f"{label}: compiled, {human_bytes(size)} per gradient")
    outcomes = run_with_progress(f"{task.name}: {len(runners)} runs", runners, seconds, rates)
    for i, row in enumerate(rows):
        mine = outcomes[i * len(seeds) : (i + 1) * len(seeds)]
        score = test_accuracy(cells[row["cell"]][0], task)
        row["accuracy"] = [score(outcome.state.params) for outcome in mine]
        row |= {
            "updates": [o.updates for o in mine],
            "seconds": [round(o.seconds, 2) for o in mine],
        }
        row["curve"] = mine[0].curve[:: max(1, len(mine[0].curve) // 200)]
    return rows


def expectations(rows: list[dict[str, Any]]) -> list[targets.Row]:
    """Compare the accuracies with the targets."""
    by = {(r["task"], r["cell"], r["k2"]): r["accuracy"] for r in rows}
    lstm = {
        k2: targets.median(a)
        for (task, cell, k2), a in by.items()
        if (task, cell) == ("rows", "LSTM")
    }
    found = [
        targets.expect(
            f"rows, {cell}, full BPTT: test accuracy",
            by["rows", cell, 28],
            at_least=0.95,
            because="4,000 digits",
        )
        for cell in ("LSTM", "GRU")
    ]
    shortest = min(lstm)
    found.append(
        targets.expect(
            f"rows, LSTM, TBPTT(28, {shortest}): test accuracy",
            by["rows", "LSTM", shortest],
            at_most=lstm[28] - 0.15,
            because="0.15 below full BPTT",
        )
    )
    for task, least in (("pixels", 0.6), ("permuted", 0.5)):
        mine = {
            k2: targets.median(a)
            for (name, cell, k2), a in by.items()
            if (name, cell) == (task, "LSTM")
        }
        if not mine:
            continue
        what = f"{task}, LSTM"
        found.append(
            targets.expect(
                f"{what}, full BPTT: test accuracy",
                by[task, "LSTM", 784],
                at_least=least,
                otherwise="Full BPTT makes too few updates; TBPTT(784, 196) has "
                f"{mine[196]:.3f} after the same time.",
            )
        )
        found.append(
            targets.expect(
                f"{what}, TBPTT(784, 196): test accuracy at equal seconds",
                by[task, "LSTM", 196],
                at_least=mine[784],
                because="full BPTT",
            )
        )
    if ("pixels", "LSTM", 28) in by:
        full = targets.median(by["pixels", "LSTM", 784])
        found.append(
            targets.expect(
                "pixels, LSTM, TBPTT(784, 28): test accuracy",
                by["pixels", "LSTM", 28],
                at_most=full - 0.15,
                because="0.15 below full BPTT: the window is the last row, "
                "blank in all but 69 of 5,000 digits",
                otherwise="Full BPTT makes few updates, and even an untrained carry "
                "contains much information.",
            )
        )
    return found


def measure(config: Config) -> dict[str, Any]:
    """Run the three tasks; a quick run has rows only."""
    train, test = mnist()
    seeds = tuple(1000 * config.seed + i for i in range(1 if config.quick else config.seeds))
    if config.quick:
        config = dataclasses.replace(config, rows_seconds=2.0, row_windows=(1, 14))
    rows = compare(
        config, make_task("rows", train, test), config.row_windows, config.rows_seconds, seeds, 128
    )
    if not config.quick:
        for name, windows in (
            ("pixels", config.pixel_windows),
            ("permuted", config.permuted_windows),
        ):
            rows += compare(
                config, make_task(name, train, test), windows, config.pixel_seconds, seeds[:1], 64
            )
    show(rows)
    results = {
        "rows": [{key: value for key, value in row.items() if key != "curve"} for row in rows]
    }
    results |= {"train_digits": len(train.labels), "test_digits": len(test.labels)}
    return {
        "curves": {row["label"]: row["curve"] for row in rows},
        "targets": expectations(rows),
        "results": results,
    }


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table of accuracies."""
    table(
        "digits: test accuracy at equal training seconds",
        ("task, cell, gradient", "accuracy", "range", "updates", "seconds", "bytes per gradient"),
        [
            (
                row["label"],
                f"{targets.median(row['accuracy']):.3f}",
                f"{min(row['accuracy']):.3f} to {max(row['accuracy']):.3f}"
                if len(row["accuracy"]) > 1
                else "one seed",
                str(int(targets.median(row["updates"]))),
                f"{targets.median(row['seconds']):.1f}",
                human_bytes(row["temp_bytes"]),
            )
            for row in rows
        ],
    )


def draw(data: dict[str, Any], folder: Path) -> None:
    """Draw accuracy by cell, accuracy by window, and loss by seconds."""
    digit_figure.draw(data, folder)


if __name__ == "__main__":
    program.run(__file__)
