"""Compiled loops equal `plain_unroll`, in float64 to rounding, in every use."""

import functools
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tbptt.backends.numba_cpu import numba_backend, threads, unroll
from tbptt.backends.numba_cpu.xla_ffi import registered
from tbptt.cells import GRU, LSTM, Elman, Stack
from tbptt.unroll import CarriesOnly, Segments, blocked_vjp, plain_unroll
from tbptt.unroll.scan import Steps
from tests.support.problems import (
    assert_same,
    plain_reference,
    problem,
    values_and_gradients,
    with_gradients,
)
from tests.support.sequences import cell_params, zero_carry

D, H, B, T = 3, 6, 2, 14
ELMAN, GRUS, LSTMS = Elman(D, H), GRU(D, H), LSTM(D, H)
exhaustive = pytest.mark.exhaustive
RUNS = unroll, plain_unroll
# Compiling a loop takes seconds: the essential tier has one product of `Elman` and one of `LSTM`.
PLAIN_ELMAN, PACKED_GRU, PACKED_LSTM = (ELMAN, "plain"), (GRUS, "packed"), (LSTMS, "packed")


def sets(names, chosen, rest=()):
    """Parametrise `names` by `chosen`, and by `rest` in the exhaustive tier."""

    def named(values):
        return "-".join(
            f"{type(v).__name__}{v.hidden_dim}" if hasattr(v, "hidden_dim") else str(v)
            for v in values
        )

    params = [pytest.param(*values, id=named(values)) for values in chosen]
    params += [pytest.param(*values, id=named(values), marks=exhaustive) for values in rest]
    return pytest.mark.parametrize(names, params, indirect=["compiled_loops"])


def only(*chosen):
    return sets(("cell", "compiled_loops"), [chosen])


@pytest.fixture
def compiled_loops(monkeypatch, request):
    """Use one of the two products for any number of batch rows."""
    monkeypatch.setattr(threads, "PACKED_ROWS", {"packed": 0, "plain": 1 << 30}[request.param])


def both(cell, batch_shape=(B,), steps=T, use="resets mask", **options):
    """Return values and gradients of `unroll` and `plain_unroll` on the same problem."""
    params, carry, xs, given = problem(cell, batch_shape, steps)
    given = {name: given[name] for name in use.split()}
    ours = values_and_gradients(lambda *a: unroll(cell, *a, **given, **options), params, carry, xs)
    return ours, plain_reference(cell, batch_shape, steps, use, options.get("reverse", False))


ALL = "resets mask"


@sets(
    ("cell", "use", "reverse", "compiled_loops"),
    [
        (cell, use, use != "", kind)
        for cell, kind in (PLAIN_ELMAN, PACKED_LSTM)
        for use in ("", ALL)
    ],
    [
        (GRUS, "resets", True, "packed"),
        (GRUS, ALL, True, "plain"),
        (LSTMS, "mask", False, "plain"),
    ],
)
def test_equals_plain_unroll(cell, use, reverse, compiled_loops):
    given = jax.tree.map(np.asarray, problem(cell, (B,), T)[3])
    # A masked step is among the resets.
    assert np.any(given["resets"] & ~given["mask"])
    got, want = both(cell, use=use, reverse=reverse)
    assert_same(got, want)
    # The gradient is not zero.
    assert min(np.max(np.abs(g)) for g in jax.tree.leaves(want[1][0])) > 1e-3


ODD = [Elman(D, 7), GRU(D, 1), LSTM(D, 9)]


@sets(
    ("cell", "batch_shape", "compiled_loops"),
    [(ODD[0], (), "plain"), (ODD[2], (5,), "packed")],
    [
        (ODD[1], (1,), "packed"),
        (ODD[1], (2, 2), "packed"),
        (ODD[1], (3,), "plain"),
        (ODD[2], (0,), "packed"),
    ],
)
def test_any_number_of_batch_rows_and_units(cell, batch_shape, compiled_loops):
    assert_same(*both(cell, batch_shape))


@only(*PACKED_LSTM)
def test_blocks_and_remainder(cell, compiled_loops, monkeypatch):
    monkeypatch.setattr(blocked_vjp, "block_length", lambda *_: 2)
    assert_same(*both(cell, steps=7))  # 2 + 2 + 2 + 1


@sets(
    ("cell", "remat", "compiled_loops"),
    [(ELMAN, Segments(2), "plain"), (LSTMS, CarriesOnly(), "packed")],
)
def test_remat(cell, remat, compiled_loops):
    assert_same(*both(cell, remat=remat))


@exhaustive
@pytest.mark.parametrize("compiled_loops", ["packed"], indirect=True)
def test_stack(compiled_loops):
    assert_same(*both(Stack((LSTM(D, 5), GRU(5, H))), reverse=True))


@only(*PACKED_LSTM)
def test_nan_at_masked_steps_and_reset_after_divergence(cell, compiled_loops):
    params, carry, xs, given = problem(cell, steps=T)
    padded_xs = np.where(np.asarray(given["mask"])[..., None], xs, np.nan)
    got = values_and_gradients(lambda *a: unroll(cell, *a, **given), params, carry, padded_xs)
    assert_same(got, plain_reference(cell, steps=T))
    resets = np.zeros((T, B), bool)
    resets[2] = True
    carry = jax.tree.map(lambda a: np.full(a.shape, [[np.nan], [np.inf]]), carry)
    got, want = jax.jit(
        lambda *a: [run(cell, *a, resets=resets) for run in (unroll, plain_unroll)]
    )(params, carry, xs)
    assert_same(got, want)
    ys = np.asarray(got[1])
    assert np.all(np.isfinite(ys[2:])) and not np.all(np.isfinite(ys[:2]))


def vmapped_with_weights(cell, run, params, carry, xs):
    given = problem(cell, (2, B), T)[3]
    one = lambda p, c, x, r, m: run(cell, p, c, x, resets=r, mask=m)  # noqa: E731
    return jax.vmap(one, (0, 0, 1, 1, 1), (0, 1))(params, carry, xs, given["resets"], given["mask"])


def two_sets(params):
    return jax.tree.map(lambda a: np.stack([np.asarray(a), 1.5 * np.asarray(a)]), params)


def result_with_weights(cell, run):
    params, carry, xs, _ = problem(cell, (2, B), T)
    many = two_sets(params)
    return values_and_gradients(functools.partial(vmapped_with_weights, cell, run), many, carry, xs)


@only(*PLAIN_ELMAN)
def test_vmap_over_weights_uses_the_scan(cell, compiled_loops):
    assert_same(result_with_weights(cell, unroll), result_with_weights(cell, plain_unroll))
    params, carry, xs, _ = problem(cell, (2, B), T)
    many = two_sets(params)
    grad = jax.grad(lambda *a: jnp.sum(vmapped_with_weights(cell, unroll, *a)[1]))
    assert "numba_cpu" not in jax.jit(grad).lower(many, carry, xs).as_text()
    alone = jax.grad(lambda *a: jnp.sum(unroll(cell, *a)[1]))
    assert (
        "numba_cpu"
        in jax.jit(alone)
        .lower(params, jax.tree.map(lambda a: np.asarray(a)[0], carry), np.asarray(xs)[:, 0])
        .as_text()
    )


@exhaustive
@only(*PACKED_GRU)
def test_vmap_over_weights_inside_a_cond(cell, compiled_loops):
    """A batched predicate makes every operand of the branches batched, constants included."""
    params, carry, xs, _ = problem(cell, (2, B), T)
    first_carry, first_xs = jax.tree.map(lambda a: np.asarray(a)[0], carry), np.asarray(xs)[:, 0]

    def gradient(run, params, runs):
        def loss(params):
            ys = run(cell, params, first_carry, first_xs)[1]
            return jnp.sum(jnp.sin(ys))

        return jax.lax.cond(runs, jax.grad(loss), lambda params: params, params)

    @jax.jit
    def both_gradients(params, runs):
        return [jax.vmap(functools.partial(gradient, run))(params, runs) for run in RUNS]

    assert_same(*both_gradients(two_sets(params), np.array([True, False])))


def vmapped_but_for_weights(cell, run):
    """Return programs of (params, carry, xs): values and gradients under vmap; gradients only."""
    given = problem(cell, (5, 3, B), T)[3]  # 5 x 3 x B batch rows

    def one(params, carry, xs, resets):  # the mask is shared by all examples
        return run(cell, params, carry, xs, resets=resets, mask=given["mask"][:, 0, 0])[1]

    def outputs(params, carry, xs):
        inner = jax.vmap(one, (None, 0, 1, 1), 1)
        return jax.vmap(inner, (None, None, 1, 1), 2)(
            params, jax.tree.map(lambda a: a[0], carry), xs, given["resets"]
        )

    def gradients(params, carry, xs):
        entering = jax.tree.map(lambda a: a[0, 0], carry)
        grad = jax.grad(lambda p, x: jnp.sum(jnp.sin(run(cell, p, entering, x)[1])))
        return jax.vmap(grad, (None, 1))(params, xs[:, :, 0])

    return jax.jit(lambda *a: (with_gradients(outputs)(*a), gradients(*a))), jax.jit(gradients)


@only(*PACKED_LSTM)
def test_vmap_over_all_but_the_weights_adds_batch_rows(cell, compiled_loops):
    given = problem(cell, (5, 3, B), T)[:3]
    ours, gradients = vmapped_but_for_weights(cell, unroll)
    assert_same(ours(*given), vmapped_but_for_weights(cell, plain_unroll)[0](*given))
    text = gradients.lower(*given).as_text()
    assert (
        text.count("stablehlo.custom_call @tbptt.backends.numba_cpu") == 2
    )  # forward and backward
    assert f"tensor<{T}x5x{B}x{H}x" in text


def second_derivative(cell, run):
    params, carry, xs, given = problem(cell, (B,), T)

    def function_of_gradient(params):
        grad = jax.grad(lambda p: jnp.sum(jnp.sin(run(cell, p, carry, xs, **given)[1])))(params)
        return sum(jnp.sum(jnp.cos(leaf)) for leaf in jax.tree.leaves(grad))

    return jax.jit(jax.grad(function_of_gradient))(params)


@exhaustive  # essential tier: the next test
@only(*PACKED_GRU)
def test_second_derivatives(cell, compiled_loops):
    want = second_derivative(cell, plain_unroll)
    assert_same(second_derivative(cell, unroll), want)
    assert min(float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(want)) > 1e-4


@sets(("cell", "compiled_loops", "examples"), [(*PLAIN_ELMAN, T)], [(*PACKED_LSTM, 5)])
def test_second_derivatives_under_vmap(cell, compiled_loops, examples):
    """With as many examples as steps a wrong axis has the right size."""
    params, carry, _, _ = problem(cell, (B,), T)
    xs = np.random.default_rng(0).normal(size=(examples, T, B, D))

    def mean_steepness(run, params):
        def steepness(xs):
            loss = lambda p: jnp.sum(jnp.sin(run(cell, p, carry, xs)[1]))  # noqa: E731
            return sum(jnp.sum(g**2) for g in jax.tree.leaves(jax.jit(jax.grad(loss))(params)))

        return jnp.mean(jax.vmap(steepness)(xs))

    @jax.jit
    def both_gradients(params):
        return [jax.grad(functools.partial(mean_steepness, run))(params) for run in RUNS]

    got, want = both_gradients(params)
    assert min(np.max(np.abs(g)) for g in jax.tree.leaves(want)) > 1e-3
    assert_same(got, want, 1e-9)


@exhaustive
def test_float32():
    """Compare with float64 to 1e-5, as the scan satisfies."""
    make = LSTM
    params, carry, xs, given = problem(make(D, H), steps=T)
    want = plain_reference(make(D, H), steps=T)
    single = jax.tree.map(lambda a: np.asarray(a, np.float32), (params, carry, xs))
    cell = make(D, H, dtype=jnp.float32)
    got = values_and_gradients(lambda *a: unroll(cell, *a, **given), *single)
    assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {jnp.dtype(jnp.float32)}
    for a, b in zip(*(map(np.asarray, jax.tree.leaves(tree)) for tree in (got, want)), strict=True):
        assert np.max(np.abs(a - b)) <= 1e-5 * np.max(np.abs(b))


@pytest.mark.parametrize("compiled_loops", ["plain"], indirect=True)
def test_mixed_dtypes_are_an_error(compiled_loops):
    """A loop compiled for float32 would misread float64."""
    cell = LSTM(D, H, dtype=jnp.float32)
    params = cell_params(cell)
    xs, carry = np.ones((T, B, D)), zero_carry(cell, (B,))
    with pytest.raises(ValueError, match="dtype"):  # checked by unroll
        jax.eval_shape(functools.partial(unroll, cell), params, carry, xs)
    loops = numba_backend(cell, cell.backprop, carry)
    with pytest.raises(
        TypeError,
        match="params, carry and xs must have one dtype; got float32, float64: convert them",
    ):
        jax.eval_shape(
            lambda p, c, xs: loops.forward(loops.prepare(p), c, c, Steps(xs), True),
            params,
            carry,
            xs,
        )


def _nothing(dtype, packed, checksum):
    def does_nothing(address):
        return 0 * checksum

    return does_nothing


def test_threads_register_an_operation_once(monkeypatch):
    names = []
    monkeypatch.setattr(
        jax.ffi,
        "register_ffi_target",
        lambda name, *_, **__: time.sleep(0.05) or names.append(name),
    )
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: registered(_nothing, jnp.float32, False), range(8)))
    assert (
        found == set(names) == {"tests.backends.numba_cpu.test_loops.does_nothing.float32.plain"}
        and len(names) == 1
    )
