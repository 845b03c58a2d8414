"""Estimators under the transformations of JAX: the second table of docs/transformations.md.

    python -m tests.support.estimator_transformations      print the table as it is measured now

`vmap` and `scan` are compared with a Python loop over separate calls, derivatives with those of
the same estimator on a loss function by `plain_unroll`.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import tbptt
from tbptt.estimators import AwdLengths, ConstantRate
from tbptt.unroll import plain_unroll
from tests.support.problems import scalar_loss
from tests.support.transformations import largest_error, table, tangents

T, B, D, H, K = 6, 2, 2, 3, 2
CELL = tbptt.Elman(D, H)
READOUT = nn.Dense(1, param_dtype=jnp.float64)

ROWS = {
    "`full_bptt`": lambda loss: tbptt.full_bptt(loss),
    "`truncated_bptt`, k2 = k1": lambda loss: tbptt.truncated_bptt(loss, K, K),
    "`truncated_bptt`, k2 < k1": lambda loss: tbptt.truncated_bptt(loss, K, 1),
    "`truncated_bptt`, k2 > k1": lambda loss: tbptt.truncated_bptt(loss, K, 2 * K),
    "`truncated_bptt`, `group`": lambda loss: tbptt.truncated_bptt(loss, K, K, group=3),
    "`adaptive_bptt`": lambda loss: tbptt.adaptive_bptt(loss, K, (K, 2 * K), 0.1, lags=4, tau=2),
    "`random_window_bptt`": lambda loss: tbptt.estimators.random_window_bptt(
        loss, K, AwdLengths(2)
    ),
    "`randomized_bptt`": lambda loss: tbptt.randomized_bptt(loss, K, ConstantRate(4)),
    "`rtrl`": tbptt.rtrl,
    "`sparse_rtrl`": tbptt.estimators.sparse_rtrl,
    "`snap`": lambda loss: tbptt.snap(loss, 1),
    "`uoro`": tbptt.uoro,
}
AXES = {"vmap params": "params", "vmap batch": "batch", "vmap key": "key"}
DERIVATIVES = ("grad", "jvp", "vmap of grad")
COLUMNS = (*AXES, "scan", "vmap of scan", *DERIVATIVES)
NAMES = ("params", "carry", "batch", "key")


@functools.cache
def loss_fn(unroll):
    return tbptt.sequence_loss(CELL, READOUT, tbptt.squared_error, unroll=unroll)


@functools.cache
def problem(N):
    """Return N different values of every argument, as numpy arrays with a first axis N."""
    draw = np.random.default_rng(0)
    shapes = jax.eval_shape(
        lambda: (tbptt.init_params(jax.random.key(0), CELL, READOUT), CELL.initial_carry((B,)))
    )
    params, carry = jax.tree.map(lambda a: 0.5 * draw.normal(size=(N, *a.shape)), shapes)
    batch = tbptt.Batch(
        draw.normal(size=(N, T, B, D)),
        draw.normal(size=(N, T, B, 1)),
        weights=draw.random((N, T, B)),
        resets=draw.random((N, T, B)) < 0.2,
        mask=draw.random((N, T, B)) < 0.8,
    )
    return params, carry, batch, np.arange(N, dtype=np.uint32)


def at(i, leaf):
    return leaf[i]


def one(arguments, **index):
    """Return the arguments with the first axis removed, at an index or at 0."""
    return tuple(
        jax.tree.map(functools.partial(at, index.get(name, 0)), value)
        for name, value in zip(NAMES, arguments, strict=True)
    )


@functools.cache
def estimator_of(row, unroll):
    return ROWS[row](loss_fn(unroll))


def first_call(estimator):
    """Return a function of the four arguments: loss and gradient of the first call of a stream."""

    def run(params, carry, batch, seed):
        memory = estimator.init(params, carry, batch)
        estimate = estimator.estimate(params, memory, batch, jax.random.key(seed))
        return estimate.loss, estimate.grads

    return run


def stream(estimator):
    """Return a function of the four arguments: a scan over calls with a descent step each."""

    def run(params, carry, batches, seeds):
        memory = estimator.init(params, carry, jax.tree.map(lambda a: a[0], batches))

        def call(state, now):
            params, memory = state
            batch, seed = now
            estimate = estimator.estimate(params, memory, batch, jax.random.key(seed))
            params = jax.tree.map(lambda p, g: p - 0.1 * g, params, estimate.grads)
            return (params, estimate.memory), estimate.loss

        return jax.lax.scan(call, (params, memory), (batches, seeds))[1]

    return run


@functools.cache
def looped_stream(estimator):
    """Return `stream` as a Python loop of compiled calls."""
    estimate = jax.jit(lambda p, m, b, s: estimator.estimate(p, m, b, jax.random.key(s)))
    init = jax.jit(estimator.init)

    def run(params, carry, batches, seeds):
        memory, losses = init(params, carry, jax.tree.map(lambda a: a[0], batches)), []
        for i, seed in enumerate(seeds):
            found = estimate(params, memory, jax.tree.map(lambda a, i=i: a[i], batches), seed)
            loss, grads = jax.device_get(found[:2])
            params = jax.tree.map(lambda p, g: p - 0.1 * g, params, grads)
            memory = found.memory
            losses.append(loss)
        return np.stack(losses)

    return run


def derivative(column, estimator):
    """Return a derivative of a number that depends on every entry of the estimate."""

    def f(*args):
        return scalar_loss(first_call(estimator)(*args))

    grad = jax.grad(f, argnums=(0, 1))
    return {
        "grad": grad,
        "jvp": lambda p, c, b, k: jax.jvp(lambda p: f(p, c, b, k), (p,), (tangents(p),)),
        "vmap of grad": lambda p, c, b, k: jax.tree.map(
            lambda a: a[1], jax.vmap(grad, (None, None, 0, None))(p, c, b, k)
        ),
    }[column]


def error_of_derivative(row, step=1e-4):
    """Return the relative error of the derivative of an estimate from a central difference."""
    params, carry, *rest = one(problem(1))
    run, along = first_call(estimator_of(row, tbptt.unroll)), tangents((params, carry))

    @jax.jit
    @jax.value_and_grad
    def moved(t, *rest):
        point = jax.tree.map(lambda a, b: a + t * b, (params, carry), along)
        return scalar_loss(run(*point, *rest))

    (low, _), (_, slope), (high, _) = (moved(t, *rest) for t in (-step, 0.0, step))
    return abs(float(slope - (high - low) / (2 * step))) / abs(float(slope))


@functools.cache
def compiled_call(estimator):
    return jax.jit(first_call(estimator))


@functools.cache
def compiled_derivative(column, estimator):
    return jax.jit(derivative(column, estimator))


def stacked(results):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *results)


def error_of(row, column, N=3):
    """Return the largest error of a row under a column, relative to the largest number."""
    estimator, arguments = estimator_of(row, tbptt.unroll), problem(N)
    if column in DERIVATIVES:
        reference = estimator_of(row, plain_unroll)
        batched = column == "vmap of grad"
        given = one(arguments)
        mapped = (*given[:2], arguments[2], given[3]) if batched else given
        got = jax.jit(derivative(column, estimator))(*mapped)
        single = "grad" if batched else column
        want = compiled_derivative(single, reference)(*one(arguments, batch=int(batched)))
    elif column == "scan":
        given = (*one(arguments)[:2], *arguments[2:])
        got, want = jax.jit(stream(estimator))(*given), looped_stream(estimator)(*given)
    elif column == "vmap of scan":
        run = jax.vmap(stream(estimator), (0, None, None, None))
        rest = (one(arguments)[1], *arguments[2:])
        got = jax.jit(run)(arguments[0], *rest)
        loop = looped_stream(estimator)
        want = stacked(loop(one(arguments, params=i)[0], *rest) for i in range(N))
    else:
        name, call = AXES[column], compiled_call(estimator)
        axes = tuple(0 if each == name else None for each in NAMES)
        mapped = [
            whole if each == name else single
            for each, whole, single in zip(NAMES, arguments, one(arguments), strict=True)
        ]
        got = jax.jit(jax.vmap(first_call(estimator), axes))(*mapped)
        want = stacked(call(*one(arguments, **{name: i})) for i in range(N))
    return largest_error(got, want)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    table(ROWS, COLUMNS, error_of)
