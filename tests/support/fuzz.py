"""Generated calls of the public functions, and a reference in numpy that shares no code with them.

    make fuzz      10,000 calls; writes tests/fuzz_results.json

Every call must return what the reference returns, or raise an error of the library that names an
argument. A call has a program (function, shapes, dtypes, windows: what compiles) and values.
"""

import argparse
import collections
import dataclasses
import functools
import json
import pathlib
import re
import sys
import time
import traceback
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import tbptt
from tbptt.unroll import CarriesOnly, Segments, plain_unroll
from tbptt.unroll.newton import newton_unroll

D, H, K, LR = 2, 3, 2, 0.5
CELL, READOUT = tbptt.Elman(D, H), nn.Dense(K, param_dtype=jnp.float64)
PACKAGE = str(pathlib.Path(tbptt.__file__).parent)
ARGUMENTS = (
    "k1 k2 T group weights resets mask inputs targets carry params batch xs loss dtype leaf leaves"
).split()
UNROLLS = {
    "scan": tbptt.unroll,
    "plain": plain_unroll,
    "newton": newton_unroll,
    "carries": functools.partial(tbptt.unroll, remat=CarriesOnly()),
    "segments": functools.partial(tbptt.unroll, remat=Segments(2)),
}
FUNCTIONS = "unroll predict loss full truncated rtrl sparse_rtrl step".split()


@dataclasses.dataclass(frozen=True)
class Program:
    """What is static in a call."""

    function: str
    unroll: str
    T: int
    batch_shape: tuple[int, ...]
    calls: int  # of one stream
    k1: Any
    k2: Any
    group: int
    dtypes: dict[str, str]  # of inputs, targets, weights, resets, mask, params, carry; "" = None
    shapes: dict[str, str]  # "ones": an axis too many, "short": an axis too few
    as_dict: bool


def program_of(seed: int) -> Program:
    """Draw a program; two thirds are valid."""
    draw = np.random.default_rng([seed, 1])
    odd = draw.random() < 0.4

    def pick(usual, rare):
        values = usual if not odd or draw.random() < 0.7 else [*usual, *rare]
        return values[draw.integers(len(values))]

    T = pick([1, 2, 4, 6], [0])
    divisors = [k for k in (1, 2, 3, 4, 6) if T and T % k == 0] or [1]
    program = Program(
        function=pick(FUNCTIONS, []),
        unroll=pick(list(UNROLLS), []),
        T=T,
        batch_shape=pick([(), (1,), (3,), (2, 2)], [(0,)]),
        calls=pick([1, 2], []),
        k1=pick(divisors, [0, -1, 5, "2", 2.0, True]),
        k2=pick([1, 2, 3, 4, 6, 9], [0, -3, None, 2.5]),
        group=pick([1, 2, 100], [0, -1]),
        dtypes={
            "inputs": pick(["float64"], ["float32", "int32", "bool", "complex128"]),
            "targets": pick(["float64"], ["float32", "int32"]),
            "weights": pick(["", "float64", "bool", "int32", "uint8"], ["float32", "int64"]),
            "resets": pick(["", "bool"], ["int32", "float64"]),
            "mask": pick(["", "bool"], ["int32", "float64"]),
            "params": pick(["float64"], ["float32", "int32"]),
            "carry": pick(["float64"], ["float32", "int32"]),
        },
        shapes={
            name: pick([""], ["ones", "short"]) for name in ("weights", "resets", "mask", "targets")
        },
        as_dict=pick([False], [True]),
    )
    if program.function == "loss" and program.dtypes["params"] == "int32":  # refused by jax.grad
        program.dtypes["params"] = "float64"
    return program


def values_of(program: Program, seed: int) -> tuple[Any, Any, list[tbptt.Batch]]:
    """Draw params, carry and the batches of a stream; NaN and inf where they must not matter."""
    draw = np.random.default_rng([seed, 2])
    steps = (program.T, *program.batch_shape)

    def cast(name, array):
        dtype = program.dtypes[name]
        if dtype in ("int32", "uint8", "bool", "int64"):
            array = np.round(2 * np.abs(array))
        with np.errstate(invalid="ignore"):
            return array.astype(dtype)

    def shaped(name, array):
        change = program.shapes.get(name, "")
        if change == "ones":
            return array[..., None]
        return array.astype(float).sum(-1) if change == "short" and array.ndim > 1 else array

    def batch():
        mask, resets = draw.random(steps) < 0.7, draw.random(steps) < 0.2
        weights = draw.normal(size=steps) + draw.integers(0, 3)
        weights[draw.random(steps) < 0.2] = 0
        inputs = draw.normal(size=(*steps, D))
        targets = draw.normal(size=(*steps, K))
        weights = cast("weights", weights) if program.dtypes["weights"] else None
        bad = [np.nan, np.inf, -np.inf][draw.integers(3)]
        absent = ~mask if program.dtypes["mask"] == "bool" else np.zeros(steps, bool)
        if program.dtypes["inputs"].startswith("float"):
            inputs[absent] = bad
        if program.dtypes["targets"].startswith("float"):
            targets[absent if weights is None else absent | (weights == 0)] = bad
        given = {"weights": weights}
        for name, flags in (("resets", resets), ("mask", mask)):
            given[name] = cast(name, flags / 2) if program.dtypes[name] else None
        given = {n: None if a is None else shaped(n, a) for n, a in given.items()}
        xs = cast("inputs", inputs)
        return tbptt.Batch(
            {"x": xs} if program.as_dict else xs,
            cast("targets", shaped("targets", targets)),
            **given,
        )

    params = jax.tree.map(lambda a: cast("params", draw.normal(size=a.shape)), _shapes())
    carry = {"h": cast("carry", draw.normal(size=(*program.batch_shape, H)))}
    return params, type(CELL.initial_carry())(**carry), [batch() for _ in range(program.calls)]


@functools.cache
def _shapes():
    return jax.eval_shape(lambda: tbptt.init_params(jax.random.key(0), CELL, READOUT))


@functools.cache
def _loss_fn(unroll):
    return tbptt.sequence_loss(CELL, READOUT, tbptt.squared_error, unroll=UNROLLS[unroll])


_MADE: dict[tuple[str, str], Any] = {}


def compiled(program: Program) -> Any:
    """Return a function of (params, carry, batches), compiled once for each program."""
    name = repr(dataclasses.replace(program, dtypes={}, shapes={})), ""
    if name in _MADE:
        return _MADE[name]
    loss_fn = _loss_fn(program.unroll)

    def estimator():
        if program.function in ("truncated", "step"):
            return tbptt.truncated_bptt(loss_fn, program.k1, program.k2, group=program.group)
        return {"full": tbptt.full_bptt, "rtrl": tbptt.rtrl, "sparse_rtrl": tbptt.sparse_rtrl}[
            program.function
        ](loss_fn)

    def run(params, carry, batches):
        if program.function == "unroll":
            for b in batches:
                carry, ys = UNROLLS[program.unroll](
                    CELL, params.cell, carry, b.inputs, resets=b.resets, mask=b.mask
                )
            return {"carry": carry.h, "outputs": ys}
        if program.function == "predict":
            for b in batches:
                carry, outputs = tbptt.predict(
                    CELL, READOUT, params, carry, b, unroll=UNROLLS[program.unroll]
                )
            return {"carry": carry.h, "outputs": outputs}
        if program.function == "loss":
            for b in batches:
                (total, carry), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, carry, b)
            return {"loss": total, "carry": carry.h, "grads": grads}
        chosen = estimator()
        if program.function == "step":
            state = tbptt.init_state(chosen, optax.sgd(LR), params, carry, batches[0])
            step = tbptt.make_train_step(chosen, optax.sgd(LR))
            state, metrics = step(state, batches[0])
            grads = jax.tree.map(lambda a, b: (a - b) / LR, params, state.params)
            return {"loss": metrics.loss, "grads": grads}
        memory = chosen.init(params, carry, batches[0])
        for b in batches:
            found = chosen.estimate(params, memory, b)
            memory = found.memory
        return {"loss": found.loss, "grads": found.grads}

    _MADE[name] = jax.jit(run)
    return _MADE[name]


def reference(program: Program, params: Any, carry: Any, batches: list[tbptt.Batch]) -> Any:
    """Compute the result by loops over rows and steps in float64."""
    wide = functools.partial(np.asarray, dtype=np.float64)
    (w_h, w_x, b), readout = jax.tree.map(wide, params[:2])
    kernel, bias = readout["params"]["kernel"], readout["params"]["bias"]
    T, calls = program.T, 1 if program.function == "step" else program.calls
    xs, targets, weights, resets, mask = (
        np.concatenate([_field(each, name, T, program) for each in batches[:calls]])
        for name in ("inputs", "targets", "weights", "resets", "mask")
    )
    h = wide(carry.h).reshape(-1, H)
    before, after, outputs = [], [], np.zeros((calls * T, len(h), K))
    for t in range(calls * T):
        entering = np.where(resets[t][:, None], 0, h)
        new = np.tanh(entering @ w_h + np.where(mask[t][:, None], xs[t], 0) @ w_x + b)
        h = np.where(mask[t][:, None], new, h)
        before.append(entering)
        after.append(np.where(mask[t][:, None], new, 0))
        outputs[t] = after[t] @ kernel + bias
    last = slice((calls - 1) * T, calls * T)
    steps = (T, *program.batch_shape)
    carry = h.reshape(*program.batch_shape, H)
    if program.function == "unroll":
        ys = np.array(after[last]).reshape(*steps, H)
        return {"carry": carry, "outputs": ys}
    if program.function == "predict":
        return {"carry": carry, "outputs": outputs[last].reshape(*steps, K)}
    counts = np.where(mask, weights, 0)
    errors = np.where(counts[..., None] != 0, outputs - targets, 0)
    total = np.sum((counts * np.mean(errors**2, -1))[last])
    grads = [np.zeros_like(a) for a in (w_h, w_x, b, kernel, bias)]
    for start, first, end in _windows(program, (calls - 1) * T):
        dh = np.zeros_like(h)
        for t in reversed(range(start, end)):
            exists = mask[t][:, None]
            d_out = 2 / K * counts[t][:, None] * errors[t] * (t >= first)
            da = np.where(exists, (dh + d_out @ kernel.T) * (1 - after[t] ** 2), 0)
            x = np.where(exists, xs[t], 0)
            pieces = before[t].T @ da, x.T @ da, da.sum(0), after[t].T @ d_out, d_out.sum(0)
            grads = [g + p for g, p in zip(grads, pieces, strict=True)]
            back = np.where(resets[t][:, None], 0, da @ w_h.T)
            dh = np.where(exists, back, dh)
    divisor = 1.0
    if program.function != "loss":
        divisor = np.sum(counts[last])
        if divisor < 1e-3 * np.sum(np.abs(counts[last])):
            divisor = np.nan  # signed weights that cancel
    scale = 0.0 if divisor == 0 else 1 / divisor
    tree = (grads[:3], {"params": {"bias": grads[4], "kernel": grads[3]}})
    found = {"loss": total * scale, "grads": jax.tree.map(lambda g: g * scale, tree)}
    return found | ({"carry": carry} if program.function == "loss" else {})


def _windows(program: Program, begin: int) -> list[tuple[int, int, int]]:
    """Return (start of the gradient, first loss that counts, end) of every window of a call."""
    T = program.T
    if program.function in ("truncated", "step"):
        found = []
        for end in range(begin + program.k1, begin + T + 1, program.k1):
            start = max(0, end - program.k2)
            found.append((start, max(start, end - program.k1), end))
        return found
    return [(0 if "rtrl" in program.function else begin, begin, begin + T)]


def _field(batch: tbptt.Batch, name: str, T: int, program: Program) -> np.ndarray:
    """Return a field as float64 or bool `[T, N, ...]`, with its default."""
    rows = int(np.prod(program.batch_shape, dtype=int))
    value = getattr(batch, name)
    if value is None:
        return np.full((T, rows), name != "resets", float if name == "weights" else bool)
    value = value["x"] if isinstance(value, dict) else value
    value = value.astype(bool if name in ("resets", "mask") else np.float64)
    return value.reshape(T, rows, *value.shape[1 + len(program.batch_shape) :])


def outcome(program: Program, seed: int) -> str:
    """Return "equal" or "refused"; raise an AssertionError that describes any other outcome."""
    params, carry, batches = values_of(program, seed)
    try:
        got = jax.device_get(compiled(program)(params, carry, batches))
    except Exception as error:
        innermost = traceback.extract_tb(error.__traceback__)[-1].filename
        named = set(re.findall(r"[a-zA-Z_0-9]+", str(error))) & set(ARGUMENTS)
        ours = innermost.startswith(PACKAGE) and isinstance(error, TypeError | ValueError)
        assert ours and named, f"not ours: {type(error).__name__}: {error}\n{program}, {seed}"
        return "refused"
    with np.errstate(all="ignore"):
        want = reference(program, params, carry, batches)
    pairs = list(zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True))
    single = "float32" in program.dtypes.values()
    for a, b in pairs:
        assert np.shape(a) == np.shape(b), (
            f"shape {np.shape(a)} for {np.shape(b)}: {program}, {seed}"
        )
        tolerance = 1e-3 if single else 1e-8
        assert np.allclose(a, b, tolerance, tolerance, equal_nan=True), (
            f"wrong: {a} for {b}\n{program}, {seed}"
        )
    return "equal"


def main() -> None:
    """Run the campaign and write its counts."""
    from hypothesis import HealthCheck, given, settings
    from hypothesis import seed as hypothesis_seed
    from hypothesis import strategies as st

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--programs", type=int, default=600, help="programs to draw from")
    parser.add_argument("--seed", type=int, default=0, help="of hypothesis")
    parser.add_argument("--out", type=pathlib.Path, help="where to write the counts")
    flags = parser.parse_args()
    counts: collections.Counter[str] = collections.Counter()
    by_function: collections.Counter[str] = collections.Counter()
    failures: dict[str, str] = {}
    started = time.perf_counter()

    @hypothesis_seed(flags.seed)
    @settings(
        max_examples=flags.calls,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.integers(0, flags.programs - 1), st.integers(0, 2**32 - 1))
    def campaign(number, seed):
        program = program_of(number)
        try:
            found = outcome(program, seed)
        except AssertionError as error:
            found = "failed"
            said = re.sub(r"[-0-9.e\[\] ]+", " ", str(error).splitlines()[0])[:120]
            if said not in failures:
                print(error, file=sys.stderr, flush=True)
            failures.setdefault(said, str(error)[:1500])
        counts[found] += 1
        by_function[f"{program.function}: {found}"] += 1

    campaign()
    record = {
        "calls": sum(counts.values()),
        "counts": dict(counts),
        "by_function": dict(sorted(by_function.items())),
        "failures": list(failures.values()),
        "programs": flags.programs,
        "seed": flags.seed,
        "seconds": round(time.perf_counter() - started, 1),
        "jax": jax.__version__,
    }
    if flags.out:
        flags.out.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record, indent=1))
    raise SystemExit(1 if failures else 0)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main()
