"""Programs, what compiles in a call, and the values that a program is called with."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import tbptt
from tbptt.unroll import CarriesOnly, Segments, plain_unroll
from tbptt.unroll.newton import newton_unroll

D, H, K = 2, 3, 2
CELL, READOUT = tbptt.Elman(D, H), nn.Dense(K, param_dtype=jnp.float64)
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
    """Draw a program; most are valid."""
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
