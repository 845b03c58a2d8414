"""The compiled loops are `plain_unroll`: in float64 to rounding, in every use that `unroll` has."""

import functools
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import pytest

from tbptt.cells import GRU, LSTM, Elman, Stack
from tbptt.engine import sizes
from tbptt.engine.scan import Steps
from tbptt.native import call, choice
from tbptt.native.call import NativeLoops
from tbptt.native.frame import registered
from tbptt.unroll import CarriesOnly, Segments, plain_unroll, unroll
from tests.problems import assert_same, everything, plain_answer, problem, with_gradients

D, H, B, T = 3, 6, 2, 12
each_cell = pytest.mark.parametrize("cell", [Elman(D, H), GRU(D, H), LSTM(D, H)], ids=lambda cell: type(cell).__name__)


@pytest.fixture(params=["rows", "tiles"])
def compiled_loops(monkeypatch, request):
    """With either kind of product, in float64 too, and sees to it that they ran."""
    monkeypatch.setattr(choice, "DTYPES", (jnp.float32, jnp.float64))
    ran = []
    made, tiled = choice.native_loops, request.param == "tiles"
    monkeypatch.setattr(choice, "native_loops", lambda back, **_: ran.append(back) or made(back, tiled))
    yield
    assert ran


def both(cell, batch_shape=(B,), steps=T, use="resets mask", **options):
    """Values and gradients of unroll and plain_unroll on the same problem."""
    params, carry, xs, given = problem(cell, batch_shape, steps)
    given = {name: given[name] for name in use.split()}
    ours = everything(lambda *a: unroll(cell, *a, **given, **options), params, carry, xs)
    return ours, plain_answer(cell, batch_shape, steps, use, options.get("reverse", False))


@each_cell
@pytest.mark.parametrize(("use", "reverse"), [("", False), ("resets", True), ("mask", False), ("resets mask", True)])
def test_is_the_plain_scan(cell, use, reverse, compiled_loops):
    given = problem(cell, (B,), T)[3]
    assert bool(jnp.any(given["resets"] & ~given["mask"]))  # a step that is reset and does not exist is among them
    got, want = both(cell, use=use, reverse=reverse)
    assert_same(got, want)
    assert min(float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(want[1][0])) > 1e-3  # the gradient is alive


@pytest.mark.parametrize("batch_shape", [(), (0,), (1,), (3,), (2, 2), (5,)], ids=str)
@pytest.mark.parametrize("cell", [Elman(D, 7), GRU(D, 1), LSTM(D, 9)], ids=lambda cell: type(cell).__name__)
def test_lanes_and_units_of_any_number(cell, batch_shape, compiled_loops):
    assert_same(*both(cell, batch_shape))


@each_cell
def test_blocks_of_steps_and_a_rest(cell, compiled_loops, monkeypatch):
    monkeypatch.setattr(sizes, "CPU_BLOCK", 1)
    monkeypatch.setattr(sizes, "FEWEST", 3)
    assert_same(*both(cell, steps=7))  # 2 + 2 + 2 + 1


@each_cell
@pytest.mark.parametrize("remat", [CarriesOnly(), Segments(2)], ids=str)
def test_what_is_not_kept_is_computed_again(cell, remat, compiled_loops):
    assert_same(*both(cell, remat=remat))


def test_a_stack_runs_layer_after_layer(compiled_loops):
    assert_same(*both(Stack((LSTM(D, 5), GRU(5, 4), Elman(4, H))), reverse=True))


@each_cell
def test_nan_padding_and_a_reset_after_divergence(cell, compiled_loops):
    params, carry, xs, given = problem(cell, steps=T)
    holes = jnp.where(given["mask"][..., None], xs, jnp.nan)
    got = everything(lambda *a: unroll(cell, *a, **given), params, carry, holes)
    assert_same(got, plain_answer(cell, steps=T))
    resets = jnp.zeros((T, B), bool).at[2].set(True)
    carry = jax.tree.map(lambda a: a.at[0].set(jnp.nan).at[1].set(jnp.inf), carry)
    got, want = jax.jit(lambda *a: [run(cell, *a, resets=resets) for run in (unroll, plain_unroll)])(params, carry, xs)
    assert_same(got, want)
    assert bool(jnp.all(jnp.isfinite(got[1][2:]))) and not bool(jnp.all(jnp.isfinite(got[1][:2])))


def vmapped_with_weights(cell, run, params, carry, xs):
    given = problem(cell, (2, B), T)[3]
    one = lambda p, c, x, r, m: run(cell, p, c, x, resets=r, mask=m)  # noqa: E731
    return jax.vmap(one, (0, 0, 1, 1, 1), (0, 1))(params, carry, xs, given["resets"], given["mask"])


def answer_with_weights(cell, run):
    params, carry, xs, _ = problem(cell, (2, B), T)
    many = jax.tree.map(lambda a: jnp.stack([a, 1.5 * a]), params)
    return everything(functools.partial(vmapped_with_weights, cell, run), many, carry, xs)


plain_answer_with_weights = functools.cache(functools.partial(answer_with_weights, run=plain_unroll))


@each_cell
def test_under_vmap_over_weights_it_is_the_scan(cell, compiled_loops):
    assert_same(answer_with_weights(cell, unroll), plain_answer_with_weights(cell))
    params, carry, xs, _ = problem(cell, (2, B), T)
    many = jax.tree.map(lambda a: jnp.stack([a, 1.5 * a]), params)
    grad = jax.grad(lambda *a: jnp.sum(vmapped_with_weights(cell, unroll, *a)[1]))
    assert "native" not in jax.jit(grad).lower(many, carry, xs).as_text()
    alone = jax.grad(lambda *a: jnp.sum(unroll(cell, *a)[1]))
    assert "native" in jax.jit(alone).lower(params, jax.tree.map(lambda a: a[0], carry), xs[:, 0]).as_text()


def vmapped_but_for_weights(cell, run):
    """Programs of params, carry and xs: outputs with their gradients and gradients under vmap; and the latter alone."""
    given = problem(cell, (5, 3, B), T)[3]  # of five, three and B lanes

    def one(params, carry, xs, resets):  # the mask is no example's own
        return run(cell, params, carry, xs, resets=resets, mask=given["mask"][:, 0, 0])[1]

    def outputs(params, carry, xs):
        inner = jax.vmap(one, (None, 0, 1, 1), 1)
        return jax.vmap(inner, (None, None, 1, 1), 2)(params, jax.tree.map(lambda a: a[0], carry), xs, given["resets"])

    def gradients(params, carry, xs):
        entering = jax.tree.map(lambda a: a[0, 0], carry)
        grad = jax.grad(lambda p, x: jnp.sum(jnp.sin(run(cell, p, entering, x)[1])))
        return jax.vmap(grad, (None, 1))(params, xs[:, :, 0])

    return jax.jit(lambda *a: (with_gradients(outputs)(*a), gradients(*a))), jax.jit(gradients)


@functools.cache
def plain_but_for_weights(cell):
    return vmapped_but_for_weights(cell, plain_unroll)[0](*problem(cell, (5, 3, B), T)[:3])


@each_cell
def test_vmap_over_all_but_the_weights_adds_lanes(cell, compiled_loops, monkeypatch):
    given = problem(cell, (5, 3, B), T)[:3]
    ours, gradients = vmapped_but_for_weights(cell, unroll)
    assert_same(ours(*given), plain_but_for_weights(cell))
    text = gradients.lower(*given).as_text()
    assert text.count("stablehlo.custom_call @tbptt.native") == 2  # forward and back
    assert f"tensor<{T}x5x{B}x{H}x" in text
    monkeypatch.setattr(call, "loops_fit", lambda lanes, units: False)
    assert "native" not in vmapped_but_for_weights(cell, unroll)[1].lower(*given).as_text()


def change_of_steepness(cell, run):
    params, carry, xs, given = problem(cell, (B,), T)

    def steepness(params):
        grad = jax.grad(lambda p: jnp.sum(jnp.sin(run(cell, p, carry, xs, **given)[1])))(params)
        return sum(jnp.sum(jnp.cos(leaf)) for leaf in jax.tree.leaves(grad))

    return jax.jit(jax.grad(steepness))(params)


plain_change_of_steepness = functools.cache(functools.partial(change_of_steepness, run=plain_unroll))


@each_cell
def test_the_gradient_has_a_gradient(cell, compiled_loops):
    want = plain_change_of_steepness(cell)
    assert_same(change_of_steepness(cell, unroll), want)
    assert min(float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(want)) > 1e-4


@pytest.mark.parametrize("make", [Elman, GRU, LSTM])
def test_float32(make):
    """Within 1e-5 of float64, which the scan is too: float32 has 6e-8."""
    params, carry, xs, given = problem(make(D, H), steps=12)
    want = plain_answer(make(D, H), steps=12)
    single, cell = jax.tree.map(lambda a: a.astype(jnp.float32), (params, carry, xs)), make(D, H, dtype=jnp.float32)
    assert isinstance(choice.loops_of(cell.backprop, single[1]), NativeLoops)
    got = everything(lambda *a: unroll(cell, *a, **given), *single)
    assert {leaf.dtype for leaf in jax.tree.leaves(got)} == {jnp.dtype(jnp.float32)}
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert float(jnp.max(jnp.abs(a - b))) <= 1e-5 * float(jnp.max(jnp.abs(b)))


def test_numbers_of_another_kind_are_refused(compiled_loops):
    """Read as float32, float64 would be any number."""
    cell = LSTM(D, H, dtype=jnp.float32)
    params = cell.init(jax.random.key(0))
    with pytest.raises(ValueError, match="dtype"):  # at the door
        unroll(cell, params, cell.initial_carry((B,)), jnp.ones((T, B, D)))
    loops = choice.native_loops(cell.backprop, tiled=False)
    carry = cell.initial_carry((B,))
    weights = loops.prepare(params)
    with pytest.raises(TypeError, match="params, carry and xs must be of one dtype; got float32, float64: convert them"):
        loops.forward(weights, carry, carry, Steps(jnp.ones((T, B, D))), True)


def _nothing(kind, tiled, sources):
    def does_nothing(address):
        return 0 * sources

    return does_nothing


def test_threads_register_an_operation_once(monkeypatch):
    names = []
    monkeypatch.setattr(jax.ffi, "register_ffi_target", lambda name, *_, **__: time.sleep(0.05) or names.append(name))
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: registered(_nothing, jnp.float32, False), range(8)))
    assert found == set(names) == {"tests.test_native.does_nothing.float32.rows"} and len(names) == 1
