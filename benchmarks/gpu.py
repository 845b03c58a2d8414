"""Full and truncated BPTT on an accelerator, and unroll functions against cuDNN.

    python -m benchmarks.gpu [--quick] [--out FILE]      minutes on one GPU; nothing on a CPU

`rows`: seconds and bytes of one gradient by each estimator. `loops`: one LSTM layer, forward and
with its gradient, by `unroll`, `plain_unroll`, `backends.pallas_gpu.unroll` and cuDNN (through
`jax.experimental.rnn`). Each is compared with `plain_unroll` before it is timed; a loop that
cannot run has the reason in `error`. Needs nothing but jax and flax. The last line of stdout is
the summary as JSON.
"""

import argparse
from typing import Any

import flax.linen as nn
import jax

import tbptt
from benchmarks.clock import measure as measure_systems
from benchmarks.support import loops, program
from benchmarks.support.program import say

CASES = ((32, 32, 128), (64, 512, 512))  # B, D, H
LENGTHS, QUICK_LENGTHS = (400, 1600, 6400), (200, 400)
K1, K2 = 100, 200
LOOPS = ((1000, 32, 128), (1000, 64, 512), (1000, 1, 128))  # T, B, H; D = H
QUICK_LOOPS = ((100, 32, 128),)


def measure_case(B: int, D: int, H: int, T: int, repeats: int) -> list[dict[str, Any]]:
    """Time the gradient of one LSTM layer over T steps by each estimator, at fixed parameters."""
    cell, readout = tbptt.LSTM(D, H), nn.Dense(1)
    loss_fn = tbptt.sequence_loss(cell, readout, tbptt.squared_error)
    keys = jax.random.split(jax.random.key(0), 3)
    xs, targets = jax.random.normal(keys[0], (T, B, D)), jax.random.normal(keys[1], (T, B, 1))
    batch = tbptt.Batch(xs, targets)
    params, carry = tbptt.init_params(keys[2], cell, readout), cell.initial_carry((B,))
    estimators = {
        "tbptt full_bptt": tbptt.full_bptt(loss_fn),
        f"tbptt truncated_bptt({K1}, {K1})": tbptt.truncated_bptt(loss_fn, K1, K1),
        f"tbptt truncated_bptt({K1}, {K2})": tbptt.truncated_bptt(loss_fn, K1, K2),
    }
    systems = {}
    for name, estimator in estimators.items():
        memory = estimator.init(params, carry, batch)
        function = lambda p, m, b, e=estimator: e.estimate(p, m, b)[:2]  # noqa: E731
        systems[name] = (function, (params, memory, batch))
    timings = measure_systems(systems, repeats)
    case = {"B": B, "D": D, "H": H, "T": T}
    return [
        {"case": case, "system": name, "steps_per_second": T / timing.seconds, **timing._asdict()}
        for name, timing in timings.items()
    ]


def measure(flags: argparse.Namespace) -> dict[str, Any]:
    """Measure all cases; on a CPU none, with the reason in `skipped`."""
    summary: dict[str, Any] = {"rows": [], "loops": []}
    if jax.devices()[0].platform == "cpu":
        summary["skipped"] = "jax finds no accelerator on this machine"
        say(f"nothing is measured: {summary['skipped']}")
        return summary
    for B, D, H in CASES:
        for T in QUICK_LENGTHS if flags.quick else LENGTHS:
            for row in measure_case(B, D, H, T, repeats=5):
                summary["rows"].append(row)
                text = f"{row['seconds'] * 1e3:10.1f} ms {row['temp_bytes'] / 2**20:9.1f} MiB"
                say(f"{row['system']:34}{text}  {row['case']}")
    for T, B, H in QUICK_LOOPS if flags.quick else LOOPS:
        summary["loops"] += loops.measure(T, B, H, repeats=5)
    for row in summary["loops"]:
        text = row.get("error") or row.get("refused")
        text = text or f"{row['microseconds_per_step']:.2f} microseconds per step"
        say(f"{row['system']:18}{row['form']:10}{row['case']}  {text}")
    return summary


def main() -> None:
    """Run the benchmark."""
    program.run(__doc__, measure)


if __name__ == "__main__":
    main()
