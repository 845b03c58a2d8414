"""Call the library as a program says, and compare the result with the reference."""

import dataclasses
import functools
import pathlib
import re
import traceback
from typing import Any

import jax
import jaxtyping
import numpy as np
import optax

import tbptt
from tests.fuzz.programs import CELL, READOUT, UNROLLS, Program, values_of
from tests.fuzz.reference import reference

LR = 0.5
PACKAGE = str(pathlib.Path(tbptt.__file__).parent)
ARGUMENTS = set("k1 k2 T group weights resets mask inputs targets carry params batch xs".split())


@functools.cache
def _loss_fn(unroll):
    return tbptt.sequence_loss(CELL, READOUT, tbptt.squared_error, unroll=UNROLLS[unroll])


_MADE: dict[str, Any] = {}


def compiled(program: Program) -> Any:
    """Return a function of (params, carry, batches), compiled once for each program."""
    name = repr(dataclasses.replace(program, dtypes={}, shapes={}))  # jit distinguishes these
    if name in _MADE:
        return _MADE[name]
    loss_fn = _loss_fn(program.unroll)

    def estimator():
        if program.function in ("truncated", "step"):
            return tbptt.truncated_bptt(loss_fn, program.k1, program.k2, group=program.group)
        return {
            "full": tbptt.full_bptt,
            "rtrl": tbptt.rtrl,
            "sparse_rtrl": tbptt.estimators.sparse_rtrl,
        }[program.function](loss_fn)

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


def outcome(program: Program, seed: int) -> str:
    """Return "equal" or "refused"; raise an AssertionError that describes any other outcome."""
    params, carry, batches = values_of(program, seed)
    try:
        got = jax.device_get(compiled(program)(params, carry, batches))
    except Exception as error:
        innermost = traceback.extract_tb(error.__traceback__)[-1].filename
        text = str(error)
        ours = innermost.startswith(PACKAGE) and isinstance(error, TypeError | ValueError)
        if isinstance(error, jaxtyping.TypeCheckError):  # with the hook of `make test-all`
            ours, text = True, "".join(re.findall(r"whilst typechecking parameter '(\w+)'", text))
        named = set(re.findall(r"[a-zA-Z_0-9]+", text)) & ARGUMENTS
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
