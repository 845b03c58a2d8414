"""Speed of a truncated gradient over many windows, in sequence and as one batch.

    python -m benchmarks.windows_in_parallel [--quick] [--unroll scan|numba] [--out FILE]

About 2 minutes on two idle cores; --quick: 20 s.

The truncated gradient of one LSTM layer (D=8, H=128) over T = 20,000 steps with k1 = k2 = 100, at
B = 1 and 4: one call of `tbptt.truncated_bptt(...).estimate` on the whole sequence, against the
usual program: a scan over windows of `jax.value_and_grad` of a textbook scan. Expected: 2.5 times
as fast at both batch sizes. The gradients are compared first: `gradient_difference` is relative,
and more than 1e-3 is an error. Further rows differentiate `group` windows as one batch, so that
about 16 and 64 rows (batch size times windows) are computed together.

`ratio` of a row: how many times as fast ours with group=1, the default, is. The last line of
stdout is JSON.
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp

import tbptt
from benchmarks import clock
from benchmarks.support import problem, program
from benchmarks.support.program import say

D, H, K = 8, 128, 100
T, QUICK_T = 20_000, 2000
OURS, SEQUENTIAL = "tbptt truncated_bptt", "sequential windows"
TOLERANCE, WANTED = 1e-3, 2.5
GROUP_ROWS = (16, 64)


def sequential(params: Any, carry: Any, batch: tbptt.Batch, k: int) -> tuple[Any, Any]:
    """Return mean loss and truncated gradient, window by window, with constant carries."""
    windows = jax.tree.map(lambda a: a.reshape(-1, k, *a.shape[1:]), batch)
    gradient = jax.value_and_grad(problem.textbook_loss, has_aux=True)

    def body(state: Any, window: tbptt.Batch) -> tuple[Any, Any]:
        carry, total = state
        (loss_sum, carry), grads = gradient(params, carry, window)
        return (carry, jax.tree.map(jnp.add, total, grads)), loss_sum

    zeros = jax.tree.map(jnp.zeros_like, params)
    (_, total), sums = jax.lax.scan(body, (carry, zeros), windows)
    steps = batch.targets.size
    return jnp.sum(sums) / steps, jax.tree.map(lambda g: g / steps, total)


def measure_batch(
    T: int, B: int, k: int, H: int, repeats: int, unroll: tbptt.UnrollFn = tbptt.unroll
) -> list[dict[str, Any]]:
    """Make the rows of one batch size.

    Raises:
      ValueError: the gradients differ.
    """
    made = problem.make(T, B, D, H)
    sizes = sorted({max(2, rows // B) for rows in GROUP_ROWS})
    groups = {OURS: 1} | {f"{OURS}, group={group}": group for group in sizes}
    arguments = made.params, made.carry, made.batch
    programs = {
        SEQUENTIAL: clock.compile_program(lambda p, c, b: sequential(p, c, b, k), *arguments)
    }
    loss_fn = problem.our_loss(made, unroll=unroll)
    for name, group in groups.items():
        estimator = tbptt.truncated_bptt(loss_fn, k, k, group=group)
        function, args = problem.estimating(estimator, made)
        programs[name] = clock.compile_program(function, *args)
    grads = {name: p.run(*p.args)[1] for name, p in programs.items()}
    reference = grads[SEQUENTIAL]
    difference = max(problem.relative_difference(grads[name], reference) for name in groups)
    if not difference <= TOLERANCE:
        raise ValueError(
            f"B={B}: the gradients differ by {difference:.1e}, more than {TOLERANCE:g}: "
            "nothing is timed"
        )
    timings = clock.time_interleaved(programs, repeats)
    rows = []
    for name, timing in timings.items():
        case = {"T": T, "B": B, "D": D, "H": H, "k1": k, "k2": k}
        row = {"case": case, "system": name, **timing._asdict()}
        row["steps_per_second"] = T / timing.seconds
        row["ratio"] = timing.seconds / timings[OURS].seconds
        row["gradient_difference"] = difference
        text = f"{timing.seconds * 1e3:9.1f} ms {timing.temp_bytes / 2**20:8.1f} MiB"
        say(f"B={B} {name:32} {text}")
        rows.append(row)
    return rows


def measure(flags: argparse.Namespace) -> dict[str, Any]:
    """Measure both batch sizes."""
    unroll = program.unroll_of(flags.unroll)
    length, repeats = (QUICK_T, 3) if flags.quick else (T, 9)
    rows, targets = [], []
    for B in (1, 4):
        new = measure_batch(length, B, K, H, repeats, unroll)
        case = f"truncated gradient, T={length}, k={K}, B={B}"
        ratio = next(row["ratio"] for row in new if row["system"] == SEQUENTIAL)
        targets.append(program.target(case, "times as fast", SEQUENTIAL, WANTED, ratio))
        rows += new
    return {"rows": rows, "targets": targets}


def main() -> None:
    """Run the benchmark."""
    program.run(__doc__, measure, add_flags=program.add_unroll_flag)


if __name__ == "__main__":
    main()
