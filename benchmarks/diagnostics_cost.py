"""Cost of the diagnostics inside a train step: without them, with each of them, and with all.

    python -m benchmarks.diagnostics_cost [--quick] [--unroll scan|numba] [--out FILE]

About 2 minutes on two cores. One train step of TBPTT(50, 50) at B=32, D=16, H=128: gradient,
clipping, Adam. `all` adds the norm of the gradient by layer, the clip counters
(`optim.with_clip_stats`) and the saturation of every gate. The programs are interleaved; an
overhead is the median over rounds of the ratio of medians. Expected: all together add less than
10 %. The last line of stdout is the summary as JSON.
"""

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import optax

import tbptt
from benchmarks import clock
from benchmarks.support import program
from benchmarks.support.program import say
from tbptt.diagnostics import monitored, norms_by_layer, saturation_probe

B, D, H, K = 32, 16, 128, 50
CELLS = {"Elman": tbptt.Elman(D, H), "GRU": tbptt.GRU(D, H), "LSTM": tbptt.LSTM(D, H)}
WANTED = 0.1  # largest overhead of all diagnostics together

Systems = dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]


def systems_of(cell: Any, unroll: tbptt.UnrollFn = tbptt.unroll) -> Systems:
    """Make the train steps to compare, by name: functions without donation, and arguments."""
    readout = nn.Dense(1)
    loss_fn = tbptt.sequence_loss(cell, readout, tbptt.squared_error, unroll=unroll)
    keys = jax.random.split(jax.random.key(0), 3)
    xs, targets = jax.random.normal(keys[0], (K, B, D)), jax.random.normal(keys[1], (K, B, 1))
    batch = tbptt.Batch(xs, targets)
    params, carry = tbptt.init_params(keys[2], cell, readout), cell.initial_carry((B,))
    norms, gates = {"norms": norms_by_layer}, {"gates": saturation_probe(cell)}
    plain, clip = tbptt.truncated_bptt(loss_fn, K, K), optax.clip_by_global_norm(1.0)
    counted = tbptt.optim.with_clip_stats(clip)
    variants = {
        "plain": (plain, clip),
        "norms by layer": (monitored(plain, norms), clip),
        "clip counters": (plain, counted),
        "saturation": (monitored(plain, gates), clip),
        "all": (monitored(plain, norms | gates), counted),
    }
    systems = {}
    for name, (estimator, clipping) in variants.items():
        optimizer = optax.chain(clipping, optax.adam(1e-3))
        state = tbptt.init_state(estimator, optimizer, params, carry, batch)
        # The function inside of the jit: the jitted one donates the state, which every run needs.
        step: Any = tbptt.make_train_step(estimator, optimizer)
        systems[name] = (step.__wrapped__, (state, batch))
    return systems


def measure_cell(
    cell: Any, rounds: int, repeats: int, unroll: tbptt.UnrollFn = tbptt.unroll
) -> list[dict[str, Any]]:
    """Time every program in several rounds; an overhead is a median over the rounds."""
    systems = systems_of(cell, unroll)
    seen = [clock.measure(systems, repeats) for _ in range(rounds)]
    rows = []
    for name in systems:
        of_least = [timings[name].least / timings["plain"].least - 1 for timings in seen]
        of_medians = [timings[name].seconds / timings["plain"].seconds - 1 for timings in seen]
        row = {
            "cell": type(cell).__name__,
            "system": name,
            "seconds": statistics.median(timings[name].seconds for timings in seen),
            "least": min(timings[name].least for timings in seen),
            "overhead": statistics.median(of_medians),
            "overhead_of_least": statistics.median(of_least),
            "overheads": of_medians,
        }
        text = f"{row['seconds'] * 1e3:9.2f} ms {row['overhead']:+8.1%}"
        say(f"{row['cell']:6} {name:16}{text} (of minima {row['overhead_of_least']:+.1%})")
        rows.append(row)
    return rows


def measure(flags: argparse.Namespace) -> dict[str, Any]:
    """Measure one cell (--quick) or all of them."""
    rounds, repeats = (1, 20) if flags.quick else (3, 60)
    unroll, rows = program.unroll_of(flags.unroll), []
    for cell in [CELLS["LSTM"]] if flags.quick else CELLS.values():
        rows += measure_cell(cell, rounds, repeats, unroll)
    overhead = {row["cell"]: row["overhead"] for row in rows if row["system"] == "all"}
    case = f"{{}}, B={B}, H={H}, TBPTT({K}, {K}), all diagnostics"
    what, against = "relative added time", "a step without diagnostics"
    targets = [
        program.target(case.format(cell), what, against, WANTED, value, most=True)
        for cell, value in overhead.items()
    ]
    sizes = {"B": B, "D": D, "H": H, "k1": K, "k2": K}
    return {"case": sizes, "rows": rows, "overhead": overhead, "targets": targets}


def main() -> None:
    """Run the benchmark."""
    program.run(__doc__, measure, add_flags=program.add_unroll_flag)


if __name__ == "__main__":
    main()
