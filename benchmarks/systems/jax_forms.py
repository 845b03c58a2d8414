"""A pure step in JAX, run in its two forms: called chunk by chunk, and scanned over chunks in one program."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from benchmarks.clock import prepare
from benchmarks.systems.work import CLIP, EPSILON, LEARNING_RATE, Case, Data, Form

PER_CHUNK, ONE_PROGRAM = "per chunk", "one program"

# (state, (inputs, targets) of one chunk) -> (state, loss)
Step = Callable[[Any, Any], tuple[Any, Any]]


def optimizer() -> optax.GradientTransformation:
    """What every system that uses optax updates with."""
    return optax.chain(optax.clip_by_global_norm(CLIP), optax.adam(LEARNING_RATE, eps=EPSILON))


def mean_loss(outputs: Any, targets: Any) -> Any:
    """The mean over the chunk: squared error, or cross-entropy where targets are symbols."""
    if jnp.issubdtype(targets.dtype, jnp.integer):
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(outputs, targets))
    return jnp.mean(optax.squared_error(outputs, targets))


def devices_for(case: Case) -> int | None:
    """The most devices that the lanes go into evenly; None where several are there and the lanes need but one."""
    there = jax.device_count()
    most = max(n for n in range(1, there + 1) if case.B % n == 0)
    return most if most > 1 or there == 1 else None


def features(inputs: Any, case: Any, dtype: Any) -> Any:
    """Symbols as one-hot vectors; floats as they are."""
    return jax.nn.one_hot(inputs, case.D, dtype=dtype) if case.symbols else inputs


def jit_and_wait(step: Step) -> Any:
    """Jits a step whose devices are CPU cores, and ends each call when it is done: several under way can block all."""
    jitted: Any = jax.jit(step)

    def run(state: Any, chunk: Any) -> Any:
        return jax.block_until_ready(jitted(state, chunk))

    setattr(run, "lower", jitted.lower)  # noqa: B010, an attribute that a checker of types does not know
    return run


def compiling(jitted: Any, *args: Any) -> Callable[[], tuple[float, int]]:
    """Makes `Form.compile` of a jitted function for its arguments."""

    def compile() -> tuple[float, int]:
        program = prepare(jitted, *args)
        return program.compile_seconds, program.temp_bytes

    return compile


def chunks_of(data: Data) -> tuple[list[Any], Any]:
    """Puts the data on the device: as a list of N chunks, and as one pair of arrays with a leading N."""
    whole = tuple(jnp.asarray(a) for a in data)
    return [jax.tree.map(lambda a, i=i: a[i], whole) for i in range(data.inputs.shape[0])], whole


def per_chunk(jitted: Callable[..., Any], begin: Callable[[], Any], chunks: list[Any]) -> Form:
    """The documented form: a Python loop over chunks calls the jitted step. Losses stay on the device until the end."""

    def epoch(state: Any) -> tuple[Any, Any]:
        losses = []
        for chunk in chunks:
            state, loss = jitted(state, chunk)
            losses.append(loss)
        return state, losses

    return Form(begin, epoch, compiling(jitted, begin(), chunks[0]), jax.block_until_ready)


def one_program(step: Step, begin: Callable[[], Any], whole: Any) -> Form:
    """The best form of a pure step: scanned over the chunks, compiled once."""
    jitted = jax.jit(lambda state, chunks: jax.lax.scan(step, state, chunks))
    return Form(begin, lambda state: jitted(state, whole), compiling(jitted, begin(), whole), jax.block_until_ready)


def both_forms(step: Step, state: Any, data: Data, *, jit: Callable[[Step], Any] = jax.jit) -> dict[str, Form]:
    """Makes both forms of a pure step.

    Args:
      state: where every epoch starts; a pytree of arrays. Nothing is donated, so it stays.
      jit: how the library's documentation compiles a step.
    """
    chunks, whole = chunks_of(data)

    def begin() -> Any:
        return state

    forms = {PER_CHUNK: per_chunk(jit(step), begin, chunks)}
    if len(chunks) > 1:  # a scan over one chunk is that chunk
        forms[ONE_PROGRAM] = one_program(step, begin, whole)
    return forms
