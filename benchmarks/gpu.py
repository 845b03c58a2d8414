"""Full against truncated BPTT on an accelerator, by the length of the sequence; and loop against loop, cuDNN's among them.

    python -m benchmarks.gpu [--quick] [--out FILE]      some minutes on one GPU; on a CPU it says so and exits 0

`rows`: seconds and bytes of one gradient by each estimator. `loops`: one LSTM layer forward and with its gradient by
`unroll`, `plain_unroll`, `fused_unroll` and cuDNN (through `jax.experimental.rnn`), each compared with `plain_unroll`
before it is timed; what cannot run says why in its row's `error`. Needs nothing beyond jax and flax. The last line of
stdout is the summary as JSON.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import flax
import flax.linen as nn
import jax

import tbptt
from benchmarks.clock import measure
from benchmarks.support import loops

CASES = ((32, 32, 128), (64, 512, 512))  # B, D, H
LENGTHS, QUICK_LENGTHS = (400, 1600, 6400), (200, 400)
K1, K2 = 100, 200
LOOPS, QUICK_LOOPS = ((1000, 32, 128), (1000, 64, 512), (1000, 1, 128)), ((100, 32, 128),)  # T, B, H; D = H


def measure_case(B: int, D: int, H: int, T: int, repeats: int) -> list[dict[str, Any]]:
    """Times the gradient of one LSTM layer over T steps by each estimator at fixed parameters."""
    cell, readout = tbptt.LSTM(D, H), nn.Dense(1)
    loss_fn = tbptt.sequence_loss(cell, readout, tbptt.squared_error)
    keys = jax.random.split(jax.random.key(0), 3)
    batch = tbptt.Batch(jax.random.normal(keys[0], (T, B, D)), jax.random.normal(keys[1], (T, B, 1)))
    params, carry = tbptt.init_params(keys[2], cell, readout), cell.initial_carry((B,))
    estimators = {
        "tbptt full_bptt": tbptt.full_bptt(loss_fn),
        f"tbptt truncated_bptt({K1}, {K1})": tbptt.truncated_bptt(loss_fn, K1, K1),
        f"tbptt truncated_bptt({K1}, {K2})": tbptt.truncated_bptt(loss_fn, K1, K2),
    }
    systems = {
        name: (lambda p, m, b, e=e: e.estimate(p, m, b)[:2], (params, e.init(params, carry, batch), batch))
        for name, e in estimators.items()
    }
    timings = measure(systems, repeats)
    case = {"B": B, "D": D, "H": H, "T": T}
    return [
        {"case": case, "system": name, "steps_per_second": T / timing.seconds, **timing._asdict()}
        for name, timing in timings.items()
    ]


def main() -> None:
    """Runs the table, or says why it cannot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two short lengths")
    parser.add_argument("--out", type=Path, help="also write the summary to this file")
    flags = parser.parse_args()
    device = jax.devices()[0]
    summary: dict[str, Any] = {"device": device.device_kind, "jax": jax.__version__, "flax": flax.__version__}
    summary |= {"quick": flags.quick, "rows": [], "loops": []}
    if device.platform == "cpu":
        summary["skipped"] = "jax finds no accelerator here; this benchmark is about one"
        print(summary["skipped"], file=sys.stderr)
    else:
        for B, D, H in CASES:
            for T in QUICK_LENGTHS if flags.quick else LENGTHS:
                rows = measure_case(B, D, H, T, repeats=5)
                summary["rows"] += rows
                for row in rows:
                    text = f"{row['seconds'] * 1e3:10.1f} ms {row['temp_bytes'] / 2**20:9.1f} MiB  {row['case']}"
                    print(f"{row['system']:34}{text}", file=sys.stderr, flush=True)
        for T, B, H in QUICK_LOOPS if flags.quick else LOOPS:
            summary["loops"] += loops.measure(T, B, H, repeats=5)
        for row in summary["loops"]:
            text = row.get("error") or row.get("refused") or f"{row['microseconds_per_step']:.2f} microseconds a step"
            print(f"{row['system']:16}{row['form']:10}{row['case']}  {text}", file=sys.stderr, flush=True)
    if flags.out:
        flags.out.parent.mkdir(parents=True, exist_ok=True)
        flags.out.write_text(json.dumps(summary, indent=2) + "\n")
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
