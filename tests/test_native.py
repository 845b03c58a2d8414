"""The compiled loops are `plain_unroll`: in float64 to rounding, in every use that `unroll` has."""

import functools
import importlib.util
import inspect
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numba
import numpy as np
import pytest

from tbptt import cores
from tbptt.cells import GRU, LSTM, Elman, Stack
from tbptt.engine import sizes
from tbptt.engine.loops import ScanLoops
from tbptt.engine.scan import Steps
from tbptt.native import call, choice
from tbptt.native import sizes as native_sizes
from tbptt.native.arithmetic import tanh
from tbptt.native.call import NativeLoops
from tbptt.native.frame import registered
from tbptt.native.rows import product_back_by_rows, product_by_rows
from tbptt.native.tiles import COLUMNS, pack, product_by_tiles
from tbptt.unroll import CarriesOnly, Segments, plain_unroll, unroll
from tests.compiled import callable_here
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


by_rows, back_by_rows, by_tiles = map(callable_here, (product_by_rows, product_back_by_rows, product_by_tiles))


@callable_here
def _tanh_of(xs, ys):
    for n in range(xs.size):
        ys[n] = tanh(xs[n])


def test_tanh_in_float32():
    """Its relative error is at most 4e-7, some three units in the last place, from 1e-30 to where it is 1."""
    xs = np.concatenate([np.geomspace(1e-30, 1, 20_000), np.linspace(0, 12, 200_001)]).astype(np.float32)
    xs = np.concatenate([xs, -xs])
    ys = np.empty_like(xs)
    _tanh_of(xs, ys)
    want = np.tanh(xs.astype(np.float64))
    assert np.max(np.abs(ys - want) / np.maximum(np.abs(want), 1e-300)) < 4e-7
    assert np.max(np.abs(ys)) <= 1
    special, out = np.asarray([np.inf, -np.inf, np.nan, -0.0], np.float32), np.empty(4, np.float32)
    _tanh_of(special, out)
    assert np.allclose(out[:2], [1, -1], atol=3e-7) and np.isnan(out[2]) and out[3] == 0 and np.signbit(out[3])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("lanes", "rows", "columns"), [(1, 4, 8), (2, 5, 3), (3, 7, 16), (4, 1, 1), (21, 9, 77)])
def test_products(lanes, rows, columns, dtype):
    draw = np.random.default_rng(0).normal
    a, h, w = (draw(size=s).astype(dtype) for s in ((lanes, columns), (lanes, rows), (rows, columns)))
    there, back = np.full_like(a, np.nan), np.full_like(h, np.nan)
    by_rows(there, h, w)
    back_by_rows(back, a, w)
    close = functools.partial(np.testing.assert_allclose, rtol=100 * np.finfo(dtype).eps, atol=100 * np.finfo(dtype).eps)
    close(there, h @ w)
    close(back, a @ w.T)
    there, back = (np.full((lanes, size + -size % COLUMNS), np.nan, dtype) for size in (columns, rows))
    by_tiles(there, h, np.asarray(pack(jnp.asarray(w))))
    by_tiles(back, a, np.asarray(pack(jnp.asarray(w.T))))
    close(there[:, :columns], h @ w)
    close(back[:, :rows], a @ w.T)
    assert not there[:, columns:].any() and not back[:, rows:].any()


@pytest.mark.parametrize("lanes", range(1, 19))
def test_tiles_of_any_number_of_lanes(lanes):
    draw = np.random.default_rng(0).normal
    h, w, out = draw(size=(lanes, 3)), draw(size=(3, COLUMNS)), np.full((lanes, COLUMNS), np.nan)
    by_tiles(out, h, np.asarray(pack(jnp.asarray(w))))
    np.testing.assert_allclose(out, h @ w, rtol=1e-13, atol=1e-13)


def test_which_loops_run(monkeypatch):
    def kind(cell, lanes=1):
        return type(choice.loops_of(cell.backprop, jax.eval_shape(lambda: cell.initial_carry((lanes,)))))

    Other = type("Other", (type(LSTM(1, 1).backprop),), {})  # it may compute anything
    single = functools.partial(LSTM, D, dtype=jnp.float32)

    monkeypatch.setattr(native_sizes, "cores_of_a_device", lambda: 1)
    assert kind(single(native_sizes.NARROW + 1)) is NativeLoops
    monkeypatch.setattr(native_sizes, "cores_of_a_device", lambda: 3)
    assert kind(single(native_sizes.NARROW)) is NativeLoops
    assert kind(single(native_sizes.NARROW + 1), lanes=11) is ScanLoops
    assert kind(single(native_sizes.NARROW + 1), lanes=12) is NativeLoops
    assert kind(LSTM(D, H)) is ScanLoops  # float64
    assert kind(single(H, compute_dtype=jnp.bfloat16)) is ScanLoops
    assert kind(Elman(D, H, activation=jnp.sin, dtype=jnp.float32)) is ScanLoops
    assert kind(Elman(D, H, dtype=jnp.float32)) is NativeLoops
    carry = jax.eval_shape(single(H).initial_carry)
    assert type(choice.loops_of(Other(None), carry)) is ScanLoops
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert kind(single(H)) is ScanLoops
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    monkeypatch.setattr(choice, "_numba_is_here", lambda: False)
    assert kind(single(H)) is ScanLoops


def test_tiles_are_for_several_lanes():
    cell = LSTM(D, H, dtype=jnp.float32)
    tiled = [
        choice.loops_of(cell.backprop, jax.eval_shape(lambda b=b: cell.initial_carry(b))).tiled for b in ((), (1,), (2,))
    ]
    assert tiled == [False, False, True]


def test_cores_of_a_device(monkeypatch):
    for there, devices, of_each in ((8, 2, 4), (2, 2, 1), (3, 2, 1), (1, 4, 1)):
        monkeypatch.setattr(cores, "usable_cores", lambda there=there: there)
        monkeypatch.setattr(jax, "local_device_count", lambda devices=devices: devices)
        assert cores.cores_of_a_device() == of_each


@pytest.mark.parametrize("kind", [ImportError, OSError])
def test_numba_is_not_needed(kind, monkeypatch):
    ask = inspect.unwrap(choice._numba_is_here)
    assert ask()
    with monkeypatch.context() as patch:
        patch.setattr(importlib.util, "find_spec", lambda name: None)
        assert not ask()
    with monkeypatch.context() as patch:
        patch.setattr(numba.config, "DISABLE_JIT", 1)
        assert not ask()

    def refuse(name):
        raise kind("Numba needs NumPy 2.9 or less")

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.warns(
        UserWarning, match=r"cannot be imported \(Numba needs NumPy 2.9 or less\).*pip install -U 'tbptt\[cpu\]'"
    ):
        assert not ask()


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
