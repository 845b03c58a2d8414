"""Programs started by tests/distributed/test_parallel.py, which need devices set up before jax.

python -m tests.support.parallel_runs two_devices FOLDER              splits the CPU itself
python -m tests.support.parallel_runs one_process FOLDER              8 virtual devices
python -m tests.support.parallel_runs two_processes FOLDER PORT INDEX 2 of them, 2 devices each
"""

import functools
import json
import re
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import tbptt
from tbptt import Batch
from tbptt.checkpoints import Checkpoints, restore

CHUNK, UPDATES, B, D, H = 10, 12, 8, 2, 5
FEW, SPLITS = (
    5,
    (4, 8),
)  # updates of the quick tests; updates after which a run moves to other devices
RATES = [1e-2, 3e-2, float("inf")]  # learning rates of three seeds; the last one diverges
MIN, SMALL = tbptt.MinLSTM(D, H), tbptt.Elman(D, 3)
READOUT = nn.Dense(1, param_dtype=float)  # float64 if x64 is enabled
OPTIMIZER = optax.chain(
    tbptt.optim.with_clip_stats(optax.clip_by_global_norm(0.5)),
    optax.inject_hyperparams(optax.adam)(learning_rate=RATES[0]),
)
# name -> cell, estimator of a loss function
CASES = {
    "full": (SMALL, tbptt.full_bptt),
    "full, a cell without a derived backward pass": (MIN, tbptt.full_bptt),
    "truncated": (SMALL, lambda loss_fn: tbptt.truncated_bptt(loss_fn, CHUNK, 25)),
    "windows in one call": (
        SMALL,
        lambda loss_fn: tbptt.truncated_bptt(loss_fn, CHUNK // 2, CHUNK // 2),
    ),
    "adaptive": (SMALL, lambda loss_fn: tbptt.adaptive_bptt(loss_fn, CHUNK, [10, 20], 0.5, lags=6)),
    "uoro": (SMALL, tbptt.uoro),
}
FIRST = "truncated"


def stream(rows: slice | range = range(B)) -> list[Batch]:
    """Return chunks whose batch rows differ in weights, masks and resets, drawn by NumPy."""
    rng, T = np.random.default_rng(0), CHUNK * UPDATES
    xs, ys = rng.normal(size=(T, B, D)), rng.normal(size=(T, B, 1))
    weights, mask = rng.uniform(0, 2, (T, B)) * np.arange(1, B + 1), rng.uniform(size=(T, B)) < 0.9
    resets = rng.uniform(size=(T, B)) < 0.02
    floats = jnp.result_type(float)
    whole = Batch(xs.astype(floats), ys.astype(floats), weights.astype(floats), resets, mask)
    own = jax.tree.map(lambda a: a[:, rows.start : rows.stop], whole)
    return [jax.tree.map(lambda a, i=i: a[i : i + CHUNK], own) for i in range(0, T, CHUNK)]


def make_state(name: str, loss_fn, batch_size: int, key=None) -> tbptt.TrainState:
    cell, make = CASES[name]
    draw, train_key = jax.random.split(jax.random.key(0) if key is None else key)
    example = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct((CHUNK, batch_size, *a.shape[2:]), a.dtype), stream()[0]
    )
    params = tbptt.init_params(draw, cell, READOUT)
    return tbptt.init_state(
        make(loss_fn), OPTIMIZER, params, cell.initial_carry((batch_size,)), example, train_key
    )


def plain_loss(name: str):
    return tbptt.sequence_loss(CASES[name][0], READOUT, tbptt.squared_error)


def step_of(name: str, loss_fn):
    return tbptt.make_train_step(CASES[name][1](loss_fn), OPTIMIZER)


def train(step, state, batches) -> tuple[tbptt.TrainState, list[float]]:
    losses = []
    for batch in batches:
        state, metrics = step(state, batch)
        losses.append(metrics.loss)
    return state, [float(np.asarray(loss)) for loss in losses]


def on_one_device(name: str) -> list[float]:
    """Return the losses of training without tbptt.distributed."""
    state = jax.jit(lambda: make_state(name, plain_loss(name), B))()
    return train(step_of(name, plain_loss(name)), state, stream())[1]


class Parallel:
    """A run on a mesh of devices."""

    def __init__(self, name: str, devices: int | None, key=None):
        self.mesh = tbptt.distributed.batch_mesh(devices)
        self.loss_fn = tbptt.distributed.sharded_loss(
            plain_loss(name), CASES[name][0].initial_carry, self.mesh
        )
        self.make_state = functools.partial(make_state, name, self.loss_fn, key=key)
        self.state = tbptt.distributed.init_sharded_state(self.make_state, B, self.mesh)
        self.step = tbptt.distributed.make_sharded_step(step_of(name, self.loss_fn), self.state)
        self.own = tbptt.distributed.local_rows(B, self.mesh)

    def batches(self) -> list[Batch]:
        return [tbptt.distributed.put_batch(batch, self.mesh) for batch in stream(self.own)]

    def train(self, start: int = 0, stop: int = UPDATES) -> list[float]:
        self.state, losses = train(self.step, self.state, self.batches()[start:stop])
        return losses

    def save(self, folder: Path, step: int) -> None:
        """Save from all processes, each its own shards."""
        with Checkpoints(folder, {}, keep=10) as checkpoints:
            checkpoints.save(step, self.state, step)

    def restore(self, folder: Path, step: int) -> None:
        """Restore every leaf to the sharding of this run, whatever its sharding when saved."""
        self.state = restore(folder / f"step_{step:09d}", self.state, {}).state


def collectives(program: str) -> list[tuple[str, bool, int]]:
    """Return (operation, whether inside a loop, number of entries) of all collectives."""
    text, calls, found, here = {}, {}, [], None
    for line in program.splitlines():
        head = re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        here = head[1] if head else here
        text.setdefault(here, []).append(line)
    for name, lines in text.items():
        calls[name] = {
            ref
            for line in lines
            for ref in re.findall(r"%([\w.\-]+)", line)
            if ref in text and ref != name
        }
    looped = {
        body
        for lines in text.values()
        for line in lines
        for body in re.findall(r"body=%?([\w.\-]+)", line)
    }
    while more := {called for name in looped for called in calls[name]} - looped:
        looped |= more
    kinds = (
        "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter|collective-broadcast"
    )
    for name, lines in text.items():
        for line in lines:
            if match := re.search(rf" = (.*?) ({kinds})(?:-start)?\(", line):
                shapes = re.findall(r"\w+\[([\d,]*)\]", match[1])
                size = sum(
                    int(np.prod([int(n) for n in shape.split(",") if n])) for shape in shapes
                )
                found.append((match[2], name in looped, size))
    return found


def compiled(step, state, batch) -> list[tuple[str, bool, int]]:
    return collectives(step.lower(state, batch).compile().as_text())


def without_sharded_loss(name: str) -> list[tuple[str, bool, int]]:
    """Return the collectives of a step with sharded arguments and without `sharded_loss`."""
    run = Parallel(name, 8)
    step = tbptt.distributed.make_sharded_step(step_of(name, plain_loss(name)), run.state)
    return compiled(step, run.state, run.batches()[0])


def seed_keys():
    return jax.random.split(jax.random.key(7), len(RATES))


def with_rate(state, rate):
    return optax.tree_utils.tree_set(state, learning_rate=jnp.asarray(rate))


def separate_seeds(name: str, seeds: int = len(RATES)) -> list[list[float]]:
    """Return the losses of the first seeds, each with its own rate, without tbptt.distributed."""
    loss_fn = plain_loss(name)
    make, step = (
        jax.jit(lambda key, rate: with_rate(make_state(name, loss_fn, B, key), rate)),
        step_of(name, loss_fn),
    )
    return [
        train(step, make(key, rate), stream()[:FEW])[1]
        for key, rate in list(zip(seed_keys(), RATES, strict=True))[:seeds]
    ]


def vmapped_seeds(name: str, devices: int) -> list[list[float]]:
    """Return the losses of the three seeds in one program, on a mesh of devices."""
    mesh = tbptt.distributed.batch_mesh(devices)
    loss_fn = tbptt.distributed.sharded_loss(plain_loss(name), CASES[name][0].initial_carry, mesh)

    def together(batch_size):
        make = functools.partial(make_state, name, loss_fn, batch_size)
        return with_rate(tbptt.distributed.init_seeds(make, seed_keys()), RATES)

    states = tbptt.distributed.init_sharded_state(together, B, mesh)
    step = tbptt.distributed.over_seeds(step_of(name, loss_fn))
    step = tbptt.distributed.make_sharded_step(step, states)
    losses = []
    for batch in stream()[:FEW]:
        states, metrics = step(states, tbptt.distributed.put_batch(batch, mesh))
        losses.append(np.asarray(metrics.loss).tolist())
    return np.transpose(losses).tolist()


def rejected(*batch_sizes: int) -> list[str]:
    """Return the error messages of put_batch for batch sizes that do not divide."""
    messages = []
    for n in batch_sizes:
        try:
            tbptt.distributed.put_batch(
                jax.tree.map(lambda a, n=n: np.repeat(a, 2, axis=1)[:, :n], stream()[0]),
                tbptt.distributed.batch_mesh(),
            )
        except ValueError as error:
            messages.append(str(error))
    return messages


def two_devices(folder: Path) -> dict:
    """Run the quick tests: one seed, on one device and on two."""
    found: dict = {
        "split": [tbptt.distributed.split_cpu(2), jax.device_count()],
        "alone": separate_seeds(FIRST, 1),
    }
    run = Parallel(FIRST, None, seed_keys()[0])
    found["collectives"], found["devices"] = (
        compiled(run.step, run.state, run.batches()[0]),
        run.train(0, FEW),
    )
    return found | {"rejected": rejected(3, 1)}


def one_process(folder: Path) -> dict:
    found: dict = {"losses": {}, "collectives": {}, "without sharded_loss": {}}
    for name in CASES:
        run = Parallel(name, 8)
        found["collectives"][name] = compiled(run.step, run.state, run.batches()[0])
        found["losses"][name] = {"one device": on_one_device(name), "devices": run.train()}
        if name == "truncated":
            found["resumed"] = resumed(run, folder)
    for name in ("full", "full, a cell without a derived backward pass"):
        found["without sharded_loss"][name] = without_sharded_loss(name)
    with jax.enable_x64(False):
        run = Parallel(FIRST, 8)
        found["losses"]["truncated, float32"] = {
            "one device": on_one_device(FIRST),
            "devices": run.train(),
        }
    found["rejected"] = rejected(12, 4)
    found["alone"], found["together"] = separate_seeds(FIRST), vmapped_seeds(FIRST, 4)
    return found


def resumed(on_eight: Parallel, folder: Path) -> list[float]:
    """Return the losses of the first updates on 1 device and the next on 8."""
    on_one = Parallel("truncated", 1)
    losses = on_one.train(0, SPLITS[0])
    on_one.save(folder / "saved", SPLITS[0])
    on_eight.restore(folder / "saved", SPLITS[0])
    losses += on_eight.train(*SPLITS)
    on_eight.save(folder / "saved", SPLITS[1])
    return losses


def two_processes(folder: Path, port: str, index: str) -> dict:
    started = tbptt.distributed.start_processes(f"127.0.0.1:{port}", 2, int(index), timeout=120)
    run = Parallel("truncated", None)
    found = {"started": started, "own": [run.own.start, run.own.stop], "losses": run.train()}
    run.restore(folder / "saved", SPLITS[1])  # written by eight devices
    found["resumed"] = run.train(SPLITS[1], SPLITS[1] + 2)
    run.save(folder / "saved by two", SPLITS[1] + 2)
    run = Parallel("truncated", None)
    run.restore(folder / "saved by two", SPLITS[1] + 2)
    found["resumed"] += run.train(SPLITS[1] + 2)
    return found


if __name__ == "__main__":
    what, folder, *rest = sys.argv[1:]
    found = {
        "two_devices": two_devices,
        "one_process": one_process,
        "two_processes": two_processes,
    }[what](Path(folder), *rest)
    (Path(folder) / f"{'-'.join([what, *rest[1:]])}.json").write_text(json.dumps(found))
