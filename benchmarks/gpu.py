"""Full against truncated BPTT on an accelerator: seconds and bytes of one gradient, by the length of the sequence.

    python -m benchmarks.gpu [--quick] [--out FILE]      about 4 minutes on one GPU; on a CPU it says so and exits 0

Needs nothing beyond jax and flax. The last line of stdout is the summary as JSON.
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

CASES = ((32, 32, 128), (64, 512, 512))  # B, D, H
LENGTHS, QUICK_LENGTHS = (400, 1600, 6400), (200, 400)
K1, K2 = 100, 200


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
    summary: dict[str, Any] = {"device": device.device_kind, "jax": jax.__version__, "flax": flax.__version__, "rows": []}
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
    if flags.out:
        flags.out.parent.mkdir(parents=True, exist_ok=True)
        flags.out.write_text(json.dumps(summary, indent=2) + "\n")
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
