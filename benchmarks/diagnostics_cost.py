"""What the diagnostics inside a train step cost: the same step without them, with each of them, and with all.

    python -m benchmarks.diagnostics_cost [--quick] [--out FILE]      about 2 minutes; expected: all together under 10 %

One train step of TBPTT(50, 50) at B=32, D=16, H=128: gradient, clipping, Adam. `all` adds the gradient's norm by layer, the
clip counters (`clipping.with_clip_stats`) and the saturation of every gate in one step. The systems take turns (one honest clock);
an overhead is the median over rounds of the ratio of the medians. Timed on a busy machine, repeat it on an idle one: `load`
in the summary says which it was. The last line of stdout is the summary as JSON.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import optax

import tbptt
from benchmarks.clock import measure
from tbptt.diagnostics import monitored, norms_by_layer, saturation_probe

B, D, H, K = 32, 16, 128, 50
CELLS = {"Elman": tbptt.Elman(D, H), "GRU": tbptt.GRU(D, H), "LSTM": tbptt.LSTM(D, H)}


def systems_of(cell: Any) -> dict[str, tuple[Callable[..., Any], tuple[Any, ...]]]:
    """Makes the train steps to compare, by name: functions that donate nothing, each with its arguments."""
    readout = nn.Dense(1)
    loss_fn = tbptt.sequence_loss(cell, readout, tbptt.squared_error)
    keys = jax.random.split(jax.random.key(0), 3)
    batch = tbptt.Batch(jax.random.normal(keys[0], (K, B, D)), jax.random.normal(keys[1], (K, B, 1)))
    params, carry = tbptt.init_params(keys[2], cell, readout), cell.initial_carry((B,))
    norms, gates = {"norms": norms_by_layer}, {"gates": saturation_probe(cell)}
    plain, clip = tbptt.truncated_bptt(loss_fn, K, K), optax.clip_by_global_norm(1.0)
    variants = {
        "plain": (plain, clip),
        "norms by layer": (monitored(plain, norms), clip),
        "clip counters": (plain, tbptt.optim.with_clip_stats(clip)),
        "saturation": (monitored(plain, gates), clip),
        "all": (monitored(plain, norms | gates), tbptt.optim.with_clip_stats(clip)),
    }
    systems = {}
    for name, (estimator, clipping) in variants.items():
        optimizer = optax.chain(clipping, optax.adam(1e-3))
        state = tbptt.init_state(estimator, optimizer, params, carry, batch)
        # The step's own function, without its jit: that one donates the state, and the clock runs it again and again.
        step: Any = tbptt.make_train_step(estimator, optimizer)
        systems[name] = (step.__wrapped__, (state, batch))
    return systems


def measure_cell(cell: Any, rounds: int, repeats: int) -> list[dict[str, Any]]:
    """Times every system in several rounds of the clock; overhead is the median over rounds of its ratio to plain."""
    systems = systems_of(cell)
    seen = [measure(systems, repeats) for _ in range(rounds)]
    rows = []
    for name in systems:
        ratios = [timings[name].least / timings["plain"].least - 1 for timings in seen]
        medians = [timings[name].seconds / timings["plain"].seconds - 1 for timings in seen]
        rows.append(
            {
                "cell": type(cell).__name__,
                "system": name,
                "seconds": statistics.median(timings[name].seconds for timings in seen),
                "least": min(timings[name].least for timings in seen),
                "overhead": statistics.median(medians),
                "overhead_of_least": statistics.median(ratios),
                "overheads": medians,
            }
        )
    return rows


def main() -> None:
    """Runs the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one cell, few repeats")
    parser.add_argument("--out", type=Path, help="also write the summary to this file")
    flags = parser.parse_args()
    began, rows = time.perf_counter(), []
    rounds, repeats = (1, 20) if flags.quick else (3, 60)
    for cell in [CELLS["LSTM"]] if flags.quick else CELLS.values():
        for row in measure_cell(cell, rounds, repeats):
            rows.append(row)
            text = f"{row['seconds'] * 1e3:9.2f} ms {row['overhead']:+8.1%} (least times {row['overhead_of_least']:+.1%})"
            print(f"{row['cell']:6} {row['system']:16}{text}", file=sys.stderr, flush=True)
    summary = {
        "case": {"B": B, "D": D, "H": H, "k1": K, "k2": K},
        "rows": rows,
        "overhead": {row["cell"]: row["overhead"] for row in rows if row["system"] == "all"},
        "under_10_percent": all(row["overhead"] < 0.1 for row in rows if row["system"] == "all"),
        "quick": flags.quick,
        "minutes": (time.perf_counter() - began) / 60,
        "machine": {
            "device": jax.devices()[0].device_kind,
            "processor": platform.processor() or platform.machine(),
            "cpus": os.cpu_count(),
            "load": os.getloadavg(),
            "jax": jax.__version__,
        },
    }
    if flags.out:
        flags.out.parent.mkdir(parents=True, exist_ok=True)
        flags.out.write_text(json.dumps(summary, indent=2) + "\n")
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
