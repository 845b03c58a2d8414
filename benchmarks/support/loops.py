"""Time one LSTM layer by every unroll function that runs on an accelerator, and by cuDNN."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import tbptt
from benchmarks import clock
from benchmarks.support.problem import relative_difference
from benchmarks.support.program import say
from tbptt.backends import pallas_gpu
from tbptt.cells import LSTMParams

# Largest relative difference from the plain scan: on a GPU float32 products have TF32's 10 bits.
WITHIN = 0.02
REFERENCE, PALLAS, CUDNN = "plain_unroll", "pallas_gpu.unroll", "cuDNN"


class Loop(NamedTuple):
    """A program in the layout of its library.

    run:           `(weights, xs) -> ys`
    weights, xs:   its arguments
    in_our_layout: converts a result, `ys` or `(d_weights, d_xs)`
    """

    run: Callable[[Any, Any], Any]
    weights: Any
    xs: Any
    in_our_layout: Callable[[Any], Any] = lambda result: result


def loops(T: int, B: int, H: int, *, interpret: bool = False) -> dict[str, Callable[[], Loop]]:
    """Return functions that make the loops, by name, the reference first.

    Each is made when its function is called, because that may fail.

    Args:
      T, B, H: steps, batch, and both input and hidden size.
      interpret: run the Pallas kernels in Pallas's interpreter, on any platform.
    """
    cell, keys = tbptt.LSTM(H, H), jax.random.split(jax.random.key(0), 2)
    params, xs = cell.init(keys[0]), jax.random.normal(keys[1], (T, B, H))
    carry = cell.initial_carry((B,))

    def of(unroll: Callable[..., Any]) -> Callable[[], Loop]:
        return lambda: Loop(lambda p, xs: unroll(cell, p, carry, xs)[1], params, xs)

    return {
        REFERENCE: of(tbptt.plain_unroll),
        "unroll": of(tbptt.unroll),
        PALLAS: of(functools.partial(pallas_gpu.unroll, interpret=interpret)),
        CUDNN: lambda: cudnn_loop(params, xs),
    }


def cudnn_loop(params: LSTMParams, xs: Any) -> Loop:
    """Return cuDNN's LSTM.

    It is batch-first, with gates i, f, g, o as ours, and all weights in one vector. Its second
    bias is 0.
    """
    from jax.experimental import rnn

    (T, B, D), H = xs.shape, params.w_h.shape[0]
    lengths, zero = jnp.full((B,), T, jnp.int32), jnp.zeros((1, B, H), xs.dtype)
    sizes = D, H, 1, 0.0, False  # input, hidden, layers, dropout, bidirectional

    def run(weights: Any, xs: Any) -> Any:
        made: Any = rnn.lstm(xs, zero, zero, weights, lengths, *sizes)
        return made[0]

    def in_our_layout(result: Any) -> Any:
        if isinstance(result, jax.Array):
            return result.swapaxes(0, 1)
        d_flat, d_xs = result
        ends = (4 * H * D, 4 * H * (D + H), 4 * H * (D + H + 1))
        w_x, w_h, b, _ = jnp.split(d_flat, ends)
        d_params = LSTMParams(w_x.reshape(4 * H, D).T, w_h.reshape(4 * H, H).T, b)
        return d_params, d_xs.swapaxes(0, 1)

    weights = (params.w_x.T.ravel(), params.w_h.T.ravel(), params.b, jnp.zeros_like(params.b))
    return Loop(run, jnp.concatenate(weights), xs.swapaxes(0, 1), in_our_layout)


def measure(
    T: int, B: int, H: int, repeats: int, *, interpret: bool = False
) -> list[dict[str, Any]]:
    """Compile every loop forward and with its gradient, compare it with the plain scan, time it.

    A loop that cannot be made, compiled or run here is a row with `error`. A loop whose values
    differ from those of the plain scan is a row with `refused`.
    """
    rows = []
    for form, program_of in (("forward", lambda run: run), ("gradient", _gradient)):
        made, reference = {}, None
        for name, make in loops(T, B, H, interpret=interpret).items():
            row = {"case": {"T": T, "B": B, "H": H}, "system": name, "form": form}
            rows.append(row)
            try:
                loop = make()
                program = clock.compile_program(program_of(loop.run), loop.weights, loop.xs)
                result = loop.in_our_layout(program.run(*program.args))
                jax.block_until_ready(result)
            except Exception as error:  # whatever is missing on this machine belongs in the row
                row["error"] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
                say(f"{name}, {form}: {row['error']}")
                continue
            reference = result if name == REFERENCE else reference
            row["difference"] = relative_difference(result, reference)
            if row["difference"] <= WITHIN:
                made[name] = program
            else:
                row["refused"] = f"its values differ from {REFERENCE}'s by more than {WITHIN:g}"
        timings = clock.time_interleaved(made, repeats)
        for row in rows:
            if row["form"] == form and row["system"] in timings:
                timing = timings[row["system"]]
                row |= {"microseconds_per_step": timing.seconds / T * 1e6, **timing._asdict()}
    return rows


def _gradient(run: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """Return the gradient of sum(sin(ys)), the same scalar in every layout."""
    return jax.grad(lambda weights, xs: jnp.sum(jnp.sin(run(weights, xs))), argnums=(0, 1))
