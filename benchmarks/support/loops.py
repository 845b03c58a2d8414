"""One LSTM layer through time by every loop there is: ours, the plain scan, the fused kernel, and cuDNN's."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import tbptt
from benchmarks import clock
from benchmarks.support.problem import relative_difference
from benchmarks.support.program import say
from tbptt.cells import LSTMParams

# Within this, relative to the plain scan, values are taken for the same: on a GPU float32 products have TF32's 10 bits.
WITHIN = 0.02
REFERENCE = "plain_unroll"


class Loop(NamedTuple):
    """run: `(weights, xs) -> ys`, in the loop's own layout; in_our_layout: of a result, `ys` or `(d_weights, d_xs)`."""

    run: Callable[[Any, Any], Any]
    weights: Any
    xs: Any
    in_our_layout: Callable[[Any], Any] = lambda result: result


def loops(T: int, B: int, H: int) -> dict[str, Callable[[], Loop]]:
    """The loops by name, the reference first; made on demand, for making one may fail."""
    cell, keys = tbptt.LSTM(H, H), jax.random.split(jax.random.key(0), 2)
    params, xs, carry = cell.init(keys[0]), jax.random.normal(keys[1], (T, B, H)), cell.initial_carry((B,))

    def of(unroll: Callable[..., Any]) -> Callable[[], Loop]:
        return lambda: Loop(lambda p, xs: unroll(cell, p, carry, xs)[1], params, xs)

    return {
        REFERENCE: of(tbptt.plain_unroll),
        "unroll": of(tbptt.unroll),
        "fused_unroll": of(tbptt.backends.pallas_gpu.unroll),
        "cuDNN": lambda: cudnn_loop(params, xs),
    }


def cudnn_loop(params: LSTMParams, xs: Any) -> Loop:
    """cuDNN's LSTM: batch-first, gates i, f, g, o as ours, all weights in one vector, a second bias that stays 0."""
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
        w_x, w_h, b, _ = jnp.split(d_flat, (4 * H * D, 4 * H * (D + H), 4 * H * (D + H + 1)))
        return LSTMParams(w_x.reshape(4 * H, D).T, w_h.reshape(4 * H, H).T, b), d_xs.swapaxes(0, 1)

    flat = jnp.concatenate([params.w_x.T.ravel(), params.w_h.T.ravel(), params.b, jnp.zeros_like(params.b)])
    return Loop(run, flat, xs.swapaxes(0, 1), in_our_layout)


def measure(T: int, B: int, H: int, repeats: int) -> list[dict[str, Any]]:
    """Compiles every loop forward and with its gradient, compares it with the plain scan, and races those that agree.

    A loop that cannot be built, compiled or run here is a row with `error`; one that disagrees is a row with `refused`.
    """
    rows = []
    for form, program_of in (("forward", lambda run: run), ("gradient", _gradient)):
        made, reference = {}, None
        for name, make in loops(T, B, H).items():
            row = {"case": {"T": T, "B": B, "H": H}, "system": name, "form": form}
            rows.append(row)
            try:
                loop = make()
                program = clock.prepare(program_of(loop.run), loop.weights, loop.xs)
                result = jax.block_until_ready(loop.in_our_layout(program.run(*program.args)))
            except Exception as error:  # whatever an installation lacks is an answer too
                row["error"] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
                say(f"{name}, {form}: {row['error']}")
                continue
            reference = result if name == REFERENCE else reference
            row["difference"] = relative_difference(result, reference)
            if row["difference"] <= WITHIN:
                made[name] = program
            else:
                row["refused"] = f"its values differ from {REFERENCE}'s by more than {WITHIN:g}"
        timings = clock.race(made, repeats)
        for row in rows:
            if row["form"] == form and row["system"] in timings:
                timing = timings[row["system"]]
                row |= {"microseconds_per_step": timing.seconds / T * 1e6, **timing._asdict()}
    return rows


def _gradient(run: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    """The gradient of sum(sin(ys)) with respect to weights and inputs: the same in every layout."""
    return jax.grad(lambda weights, xs: jnp.sum(jnp.sin(run(weights, xs))), argnums=(0, 1))
