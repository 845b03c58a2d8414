"""The two forms of a pure step in JAX: called per chunk, and scanned over the chunks."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks.clock import compile_program
from benchmarks.systems.work import CLIP, EPSILON, LEARNING_RATE, Case, Data, Form

PER_CHUNK, ONE_PROGRAM = "per chunk", "one program"

# (state, (inputs, targets) of one chunk) -> (state, loss)
Step = Callable[[Any, Any], tuple[Any, Any]]


def optimizer() -> optax.GradientTransformation:
    """Return the optimizer of every system that uses optax."""
    return optax.chain(optax.clip_by_global_norm(CLIP), optax.adam(LEARNING_RATE, eps=EPSILON))


def mean_loss(outputs: Any, targets: Any) -> Any:
    """Return the mean over the chunk: squared error, or cross-entropy if targets are symbols."""
    if jnp.issubdtype(targets.dtype, jnp.integer):
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(outputs, targets))
    return jnp.mean(optax.squared_error(outputs, targets))


def devices_for(case: Case) -> int | None:
    """Return the largest number of devices that divides the batch; None if it is 1 of several."""
    count = jax.device_count()
    most = max(n for n in range(1, count + 1) if case.B % n == 0)
    return most if most > 1 or count == 1 else None


def features(inputs: Any, case: Any, dtype: Any) -> Any:
    """Return symbols as one-hot vectors, and floats unchanged."""
    return jax.nn.one_hot(inputs, case.D, dtype=dtype) if case.symbols else inputs


def jit_and_wait(step: Step) -> Any:
    """Jit a step on several CPU devices, and wait for the result of each call.

    Several dispatched updates on CPU devices can block each other for ever.
    """
    jitted: Any = jax.jit(step)

    def run(state: Any, chunk: Any) -> Any:
        return jax.block_until_ready(jitted(state, chunk))

    setattr(run, "lower", jitted.lower)  # noqa: B010, a function has no such attribute for pyright
    return run


def compiling(jitted: Any, *args: Any) -> Callable[[], tuple[float, int]]:
    """Make `Form.compile` of a jitted function for its arguments."""

    def compile() -> tuple[float, int]:
        program = compile_program(jitted, *args)
        return program.compile_seconds, program.temp_bytes

    return compile


def chunks_of(data: Data) -> tuple[list[Any], Any]:
    """Put the data on the device: as N chunks, and as a pair of arrays with a leading N."""
    whole = tuple(jnp.asarray(a) for a in data)
    N = data.inputs.shape[0]
    return [jax.tree.map(lambda a, i=i: a[i], whole) for i in range(N)], whole


def per_chunk(jitted: Callable[..., Any], begin: Callable[[], Any], chunks: list[Any]) -> Form:
    """Make the documented form: a Python loop over chunks that calls the jitted step.

    Losses stay on the device until the end.
    """

    def epoch(state: Any) -> tuple[Any, Any]:
        losses = []
        for chunk in chunks:
            state, loss = jitted(state, chunk)
            losses.append(loss)
        return state, losses

    return Form(begin, epoch, compiling(jitted, begin(), chunks[0]), jax.block_until_ready)


def one_program(step: Step, begin: Callable[[], Any], whole: Any) -> Form:
    """Make the fastest form of a pure step: scanned over the chunks, compiled once."""
    jitted = jax.jit(lambda state, chunks: jax.lax.scan(step, state, chunks))
    compile = compiling(jitted, begin(), whole)
    return Form(begin, lambda state: jitted(state, whole), compile, jax.block_until_ready)


def both_forms(
    step: Step, state: Any, data: Data, *, jit: Callable[[Step], Any] = jax.jit
) -> dict[str, Form]:
    """Make both forms of a pure step.

    Args:
      step: `(state, (inputs, targets)) -> (state, loss)`.
      state: the state before the first update; not donated, so it is reused.
      data: the N chunks.
      jit: the way the library's documentation compiles a step.
    """
    chunks, whole = chunks_of(data)

    def begin() -> Any:
        return state

    forms = {PER_CHUNK: per_chunk(jit(step), begin, chunks)}
    if len(chunks) > 1:  # a scan over one chunk is that chunk
        forms[ONE_PROGRAM] = one_program(step, begin, whole)
    return forms
