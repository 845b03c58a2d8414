"""Measure where powers overflow, vanish and lose their effect, by precision (claim 4).

    python -m experiments.finite_precision            about 20 seconds on two cores

Expected: 1.01^n overflows at n = log(largest) / log(1.01), 8,917 steps in float32. In bfloat16 it
overflows at 12,288 steps, 7.8 % later, because each step adds between 1 and 2 units in the last
place and bfloat16 rounds this to 1 or 2. 0.99^n no longer changes a float32 parameter long before
it is 0. A training run whose only gradient comes from 200 steps back changes no parameter in
float16, bfloat16 and float32, and learns in float64.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import tbptt
from experiments.support.common import program, style
from experiments.support.lecture.reference import overflow_in_integers
from tbptt.cells import DiagonalLinearParams, ElmanParams
from tbptt.diagnostics import gradient_range, last_useful_lag, powers

DTYPES = ("float16", "bfloat16", "float32", "float64")


@dataclasses.dataclass(frozen=True)
class Config(program.Common):
    """Powers of numbers near 1, gradients by lag, and a training run, in four precisions."""

    growth: float = 1.01
    """the number whose powers overflow"""
    decay: float = 0.99
    """the number whose powers vanish"""
    lag: int = 200
    """steps between the only input and the loss of the training run, whose cell decays by 0.9 per
    step"""


def rounded(number: float, dtype: str) -> float:
    """Return the number rounded to the dtype."""
    return float(np.asarray(number, jnp.dtype(dtype)))


def ends(config: Config, dtype: str) -> dict[str, Any]:
    """Measure and predict where powers overflow, vanish and lose their effect in a dtype."""
    info, u = jnp.finfo(dtype), float(jnp.finfo(dtype).eps) / 2
    grow, fade = rounded(config.growth, dtype), rounded(config.decay, dtype)
    up, down = powers(config.growth, dtype, 200_000), powers(config.decay, dtype, 200_000)
    useful = last_useful_lag(config.decay, dtype, 200_000, parameter=1.5)
    return {
        "overflow": up.overflow,
        "overflow_predicted": math.log(float(info.max)) / math.log(grow) if grow > 1 else None,
        # The error of every product is at most u, and so is that of the rate log w.
        "overflow_bound": u / (math.log(grow) - u) if math.log(grow) > u else None,
        "stuck": up.stuck,
        "zero": down.zero or down.stuck,
        "useful": useful,
        "useful_predicted": math.log(float(info.eps) / 2) / math.log(fade) if fade < 1 else None,
    }


def off_by(row: dict[str, Any]) -> float | None:
    """Return the relative distance of the measured from the predicted step of overflow."""
    return (
        row["overflow"] / row["overflow_predicted"] - 1
        if row["overflow"] and row["overflow_predicted"]
        else None
    )


def train(dtype: str, lag: int, updates: int = 100) -> float:
    """Train w_x of h' = 0.9 h + w_x x on (h_lag - 1)^2 with x = 1 at step 0 only.

    Return the change of w_x from 1.
    """
    cell = tbptt.DiagonalLinear(1, 1, dtype=jnp.dtype(dtype))
    a, b = np.full((1,), 0.9, dtype), np.zeros((1,), dtype)

    def loss_fn(params: Any, carry: Any, batch: tbptt.Batch) -> tuple[jax.Array, Any]:
        carry, ys = tbptt.unroll(
            cell, params._replace(a=jnp.asarray(a), b=jnp.asarray(b)), carry, batch.inputs
        )
        return jnp.square(ys[-1, 0] - 1), carry

    inputs = jnp.asarray(np.arange(lag + 1)[:, None] == 0, dtype)
    batch = tbptt.Batch(inputs, inputs)
    params = DiagonalLinearParams(jnp.asarray(a), jnp.ones((1, 1), dtype), jnp.asarray(b))
    estimator, optimizer = tbptt.full_bptt(loss_fn), optax.sgd(1.0)
    state = tbptt.init_state(estimator, optimizer, params, cell.initial_carry(), batch)
    step = tbptt.make_train_step(estimator, optimizer)
    for _ in range(updates):
        state, _ = step(tbptt.rewind(estimator, state, cell.initial_carry(), batch), batch)
    return float(state.params.w_x[0, 0]) - 1


def gradient_sizes(config: Config, dtype: str, steps: int) -> list[float]:
    """Return the largest gradient entry of a tanh network (gain 0.8) by lag in one dtype.

    0 is underflow.
    """
    cell, rng = tbptt.Elman(1, 16), np.random.default_rng(config.seed)
    w_h, w_x = 0.8 * np.linalg.qr(rng.normal(size=(16, 16)))[0], rng.normal(size=(1, 16)) / 4
    params = ElmanParams(w_h=jnp.asarray(w_h), w_x=jnp.asarray(w_x), b=jnp.zeros(16))
    xs = jnp.asarray(0.1 * rng.normal(size=(steps, 1)))
    return gradient_range(cell, params, cell.initial_carry(), xs, jnp.sum, dtype).largest.tolist()


def measure(config: Config) -> dict[str, Any]:
    """Measure powers, gradients and training in every precision."""
    steps = 300 if config.quick else 600
    table = {dtype: ends(config, dtype) for dtype in DTYPES}
    with jax.enable_x64(True):
        moved = {dtype: train(dtype, config.lag) for dtype in DTYPES}
    off = {dtype: off_by(row) for dtype, row in table.items()}
    bounds = {
        d: row["overflow_bound"] for d, row in table.items() if row["overflow_bound"] is not None
    }
    within = all(
        abs(off[d] or 0) <= bound + 1 / (table[d]["overflow"] or 1) for d, bound in bounds.items()
    )
    counted = {
        dtype: overflow_in_integers(rounded(config.growth, dtype), dtype) for dtype in DTYPES
    }
    exact = all(row["overflow"] == counted[d] for d, row in table.items())
    single = table["float32"]
    trains_no_more = single["useful"] is not None and single["useful"] < 0.5 * single["zero"]
    return {
        "decay": config.decay,
        "growth": config.growth,
        "table": table,
        "moved": moved,
        "gradients": {
            d: gradient_sizes(config, d, steps)
            for d in (("float16", "float32") if config.quick else DTYPES)
        },
        "claims": [
            program.claim(
                4,
                f"first n at which {config.growth}ⁿ is not finite (None: rounding stops its growth "
                f"before), and the "
                "relative distance of n from log(largest) / log(w), where w is the rounded number",
                ", ".join(
                    f"{d}: {table[d]['overflow']}" + ("" if o is None else f" ({o:+.2%})")
                    for d, o in off.items()
                ),
                "the distance is at most u / (log w - u), where u is half a unit in the last "
                "place: "
                + ", ".join(f"{d} {bound:.1e}" for d, bound in bounds.items())
                + "; n equals the result of exact integer arithmetic: "
                + ", ".join(f"{d} {n}" for d, n in counted.items())
                + " (bfloat16 rounds each increment to 1 or 2 units: a doubling takes 96 steps, "
                "not 89)",
                within and exact,
            ),
            program.claim(
                4,
                f"last n at which {config.decay}ⁿ still changes a parameter of 1.5; first n at "
                f"which it is 0 or constant",
                ", ".join(f"{d}: {row['useful']}; {row['zero']}" for d, row in table.items()),
                "float32: nothing trains below 1e-7, which is reached in less than half the steps",
                trains_no_more and abs(single["useful"] / single["useful_predicted"] - 1) < 0.1,
            ),
            program.claim(
                4,
                f"change of w_x after 100 updates whose gradient comes from {config.lag} steps "
                f"back",
                ", ".join(f"{d}: {change:.1e}" for d, change in moved.items()),
                "exactly 0, except in float64",
                moved["float64"] != 0 and all(moved[d] == 0 for d in DTYPES[:3]),
            ),
        ],
    }


def draw(data: dict[str, Any], folder: Path) -> None:
    """Draw the steps at which powers end, and the gradient by lag."""
    figure, axes = style.panels(
        2, title="Finite precision limits every product of many factors", width=6.2
    )
    places = np.arange(len(DTYPES))
    bars = (
        ("overflow", f"{data['growth']}ⁿ overflows"),
        ("zero", f"{data['decay']}ⁿ is 0 (or stays constant)"),
        ("useful", f"{data['decay']}ⁿ last changes a parameter"),
    )
    for index, (name, label) in enumerate(bars):
        heights = [data["table"][d][name] or 0 for d in DTYPES]
        shown = axes[0].bar(
            places + 0.27 * (index - 1), heights, 0.25, label=label, color=style.COLORS[index]
        )
        axes[0].bar_label(shown, [str(h) if h else "never" for h in heights], fontsize=7)
    axes[0].set_xticks(places, DTYPES)
    axes[0].set(yscale="log", ylabel="n (steps)", title="Steps until a power ends")
    axes[0].set_ylim(
        10, 10 ** math.ceil(math.log10(max(r["overflow"] or 1 for r in data["table"].values()) * 5))
    )
    axes[0].legend(fontsize=8, loc="upper left")
    for dtype, largest in data["gradients"].items():
        index = DTYPES.index(dtype)
        alive = np.array(largest) > 0
        lags, sizes, look = (
            np.arange(1, len(largest) + 1)[alive],
            np.array(largest)[alive],
            style.line(index),
        )
        # The curves of bfloat16 and float32 coincide: one line is thick and one thin, with
        # different end markers.
        axes[1].plot(
            lags,
            sizes,
            label=dtype,
            **look | {"lw": (1.8, 5.0, 1.8, 1.8)[index], "alpha": (1, 0.45, 1, 1)[index]},
        )
        if not alive.all():
            marker, size = style.MARKERS[index], (9, 14, 8, 9)[index]
            axes[1].plot(
                lags[-1], sizes[-1], marker, ms=size, mfc="none", mew=2, color=style.COLORS[index]
            )
    axes[1].set(
        yscale="log", xlabel="lag k (steps back)", ylabel="largest gradient entry k steps back"
    )
    axes[1].set_title("tanh network, gain 0.8 (markers: 0 from here on)")
    axes[1].legend(fontsize=9)
    style.save(figure, folder, "finite_precision")


if __name__ == "__main__":
    program.run(__file__)
