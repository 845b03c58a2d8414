"""The kernels equal `plain_unroll` in the interpreter, and lower for CUDA without a GPU."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tbptt.backends import pallas_gpu
from tbptt.backends.pallas_gpu import fused, grid
from tbptt.cells import GRU, LSTM, Elman, Stack
from tbptt.unroll import blocked_vjp, plain_unroll, unroll
from tests.support.problems import (
    assert_same,
    plain_reference,
    problem,
    values_and_gradients,
    with_gradients,
)

D, H, B, T = 3, 6, 2, 5
fused_unroll = functools.partial(pallas_gpu.unroll, interpret=True)
BOTH = fused_unroll, plain_unroll


@functools.cache
def fused_program(cell, reverse=False):
    return with_gradients(functools.partial(fused_unroll, cell, reverse=reverse))


def both(cell, batch_shape=(B,), steps=T, use="resets mask", reverse=False):
    """Return values and gradients of `fused_unroll` and of `plain_unroll`, in float64."""
    params, carry, xs, given = problem(cell, batch_shape, steps)
    given = {name: given[name] for name in use.split()}
    ours = values_and_gradients(
        functools.partial(fused_unroll, cell, reverse=reverse, **given), params, carry, xs
    )
    return ours, plain_reference(cell, batch_shape, steps, use, reverse)


# Two programs of 16 batch rows, the second one padded; one case in reverse.
MANY_ROWS = [(LSTM(D, H), (3, 6), False), (GRU(D, H), (17,), True)]
each_cell_of_many_rows = pytest.mark.parametrize(
    ("cell", "batch_shape", "reverse"), MANY_ROWS, ids=["LSTM", "GRU"]
)


@each_cell_of_many_rows
def test_equals_plain_unroll(cell, batch_shape, reverse):
    params, carry, xs, given = problem(cell, batch_shape, T)
    nothing = {"resets": np.zeros(xs.shape[:-1], bool), "mask": np.ones(xs.shape[:-1], bool)}
    for use in ("", "resets", "mask", "resets mask"):
        flags = nothing | {name: given[name] for name in use.split()}
        # NaN at masked steps has no effect.
        padded_xs = np.where(np.asarray(flags["mask"])[..., None], xs, np.nan)
        got = fused_program(cell, reverse)(params, carry, padded_xs, **flags)
        want = plain_reference(cell, batch_shape, T, use, reverse)
        assert_same(got, want)
        # The gradient is not zero.
        assert min(np.max(np.abs(g)) for g in jax.tree.leaves(want[1][0])) > 1e-3


@each_cell_of_many_rows
def test_reset_recovers_a_diverged_batch_row(cell, batch_shape, reverse):
    params, carry, xs, _ = problem(cell, batch_shape, T)
    resets, mask = np.zeros(xs.shape[:-1], bool), np.ones(xs.shape[:-1], bool)
    resets[2] = True
    carry = jax.tree.map(np.array, carry)
    for leaf in jax.tree.leaves(carry):
        leaf[0], leaf[1] = np.nan, np.inf
    plain = jax.jit(functools.partial(plain_unroll, cell, reverse=reverse))
    got = fused_program(cell, reverse)(params, carry, xs, resets=resets, mask=mask)[0]
    assert_same(got, plain(params, carry, xs, resets=resets, mask=mask))
    ys = np.asarray(got[1])[::-1] if reverse else np.asarray(got[1])
    assert np.all(np.isfinite(ys[2:])) and not np.all(np.isfinite(ys[:2]))


@pytest.mark.parametrize(
    ("make", "batch_shape", "use", "reverse"),
    [
        pytest.param(LSTM, (), "resets", True, marks=pytest.mark.exhaustive),
        (GRU, (B,), "", False),
    ],
    ids=str,
)
def test_flags_are_optional(make, batch_shape, use, reverse):
    assert_same(*both(make(D, H), batch_shape, use=use, reverse=reverse))


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("make", "resident"),
    [(GRU, 0), (LSTM, grid.RESIDENT_BYTES)],
    ids=["GRU", "held"],
)
def test_wide_layers_use_several_tiles(make, resident, monkeypatch):
    monkeypatch.setattr(grid, "MAX_TILE_WIDTH", 16)
    monkeypatch.setattr(grid, "RESIDENT_BYTES", resident)
    assert_same(*both(make(D, 24)))  # two tiles of 16, the second one not full


def test_one_step_and_zero_steps():
    cell = LSTM(D, H)
    assert_same(*both(cell, steps=1))
    params, carry, xs, given = jax.tree.map(np.asarray, problem(cell))
    start = jax.tree.map(lambda leaf: leaf[:0], carry)

    @jax.jit
    def run(params, carry, xs, start, nobody, given):
        return fused_unroll(cell, params, carry, xs, **given), fused_unroll(
            cell, params, start, nobody
        )

    given = jax.tree.map(lambda flags: flags[:0], given)
    (last, ys), (none, nothing) = run(params, carry, xs[:0], start, xs[:, :0], given)
    assert_same((last, ys.shape), (carry, (0, B, H)), 0)
    assert none.h.shape == (0, H) and nothing.shape == (xs.shape[0], 0, H)


@pytest.mark.exhaustive
def test_blocks_and_remainder(monkeypatch):
    monkeypatch.setattr(blocked_vjp, "block_length", lambda *_: 2)
    assert_same(*both(GRU(D, H), steps=7))  # 2 + 2 + 2 + 1


@pytest.mark.exhaustive
def test_stack():
    assert_same(*both(Stack((LSTM(D, 17), GRU(17, H))), reverse=True))


@pytest.mark.exhaustive
def test_under_vmap_over_parameters_and_batch_rows():
    cell = GRU(D, H)
    params, carry, xs, given = problem(cell, (2, B), T)
    many = jax.tree.map(lambda a: np.stack([a, 1.5 * np.asarray(a)]), params)

    def run(unroll, params, carry, xs):
        one = lambda p, c, x, r, m: unroll(cell, p, c, x, resets=r, mask=m)  # noqa: E731
        return jax.vmap(one, (0, 0, 1, 1, 1), (0, 1))(
            params, carry, xs, given["resets"], given["mask"]
        )

    assert_same(
        *(values_and_gradients(functools.partial(run, unroll), many, carry, xs) for unroll in BOTH)
    )


def single(run, make, compute=None):
    """Return values and gradients in float32, over 12 steps."""
    params, carry, xs, given = problem(make(D, H), steps=12)
    args = jax.tree.map(lambda a: np.asarray(a, np.float32), (params, carry, xs))
    cell = make(D, H, dtype=jnp.float32, compute_dtype=compute)
    return jax.tree.map(np.asarray, values_and_gradients(lambda *a: run(cell, *a, **given), *args))


def difference(a, b):
    """Return the largest difference of a leaf, relative to its largest entry."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(np.max(np.abs(x - y)) / np.max(np.abs(y))) for x, y in pairs)


@pytest.mark.exhaustive
def test_float32():
    """Check a relative difference below 1e-5."""
    ours, plain = (single(run, LSTM) for run in BOTH)
    assert {leaf.dtype for leaf in jax.tree.leaves(ours)} == {jnp.dtype(jnp.float32)}
    assert difference(ours, plain) < 1e-5


@pytest.mark.exhaustive
def test_bfloat16_products_in_float32_carries():
    """Compare with `unroll` to 1e-5; `plain_unroll` does not round cotangents."""
    ours, rounded, plain = (
        single(run, LSTM, jnp.bfloat16) for run in (fused_unroll, unroll, plain_unroll)
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(ours)} == {jnp.dtype(jnp.float32)}
    assert difference(ours, rounded) < 1e-5
    assert difference(ours[0], plain[0]) < 1e-5 and difference(ours[1], plain[1]) < 1e-2


def shapes(tree, *leading):
    """Return the shapes of a pytree, with the axes `leading` in front."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct((*leading, *a.shape), a.dtype), tree)


def lowered(make, hidden, compute=None, steps=7, rows=3, flags=True, vmapped=False):
    """Return the program of the gradient for CUDA."""
    cell = make(D, hidden, dtype=jnp.float32, compute_dtype=compute)
    params = jax.eval_shape(cell.init, jax.random.key(0))
    carry = jax.eval_shape(lambda: cell.initial_carry((rows,)))
    xs, every = jax.ShapeDtypeStruct((steps, rows, D), jnp.float32), np.ones((steps, rows), bool)
    given = {"resets": every, "mask": every} if flags else {}

    def loss(params, carry, xs):
        last, ys = fused_unroll(cell, params, carry, xs, **given, interpret=False)
        return jnp.sum(ys**2) + sum(jnp.sum(leaf) for leaf in jax.tree.leaves(last))

    grad = jax.value_and_grad(loss, argnums=(0, 1, 2))
    if vmapped:
        params, grad = shapes(params, 2), jax.vmap(grad, (0, None, None))
    return jax.jit(grad).trace(params, carry, xs).lower(lowering_platforms=("cuda",)).as_text()


def launches(program):
    # Depending on the version of JAX.
    return program.count("xla.gpu.triton") + program.count("triton_kernel_call")


@functools.cache
def _lowers_without_a_gpu():
    """Return why this JAX cannot lower Triton kernels without a GPU; empty if it can."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    def double(x_ref, y_ref):
        y_ref[...] = 2 * x_ref[...]

    x = jnp.ones((16,), jnp.float32)
    f = pl.pallas_call(
        double,
        out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype),
        compiler_params=triton.CompilerParams(),
    )
    try:
        jax.jit(f).trace(x).lower(lowering_platforms=("cuda",))
    except Exception as error:
        return str(error) or type(error).__name__
    return ""


@pytest.fixture
def lowers():
    if reason := _lowers_without_a_gpu():
        pytest.skip(f"this JAX lowers no Triton kernel without a GPU: {reason}")


@pytest.mark.parametrize(
    ("make", "hidden", "compute", "options"),
    [
        (LSTM, 6, None, {}),
        (GRU, 24, jnp.bfloat16, {"flags": False, "rows": 17}),
        *(
            pytest.param(make, *rest, marks=pytest.mark.exhaustive)
            for make, *rest in [
                (LSTM, 24, None, {"vmapped": True}),
                (GRU, 256, None, {"flags": False}),
                (LSTM, 128, jnp.bfloat16, {"flags": False}),
            ]
        ),
    ],
    ids=str,
)
def test_lowers_for_cuda(make, hidden, compute, options, lowers):
    with jax.enable_x64(False):
        program = lowered(make, hidden, compute, **options)
    assert launches(program) == 2  # one forward and one backward kernel for all steps
    assert "stablehlo.while" not in program


@pytest.mark.exhaustive  # the essential tier has the next test
def test_lowers_for_cuda_with_x64(lowers):
    assert [launches(lowered(make, 24)) for make in (LSTM, GRU)] == [2, 2]


@pytest.mark.exhaustive
def test_the_program_does_not_grow_with_time(lowers, monkeypatch):
    short, long = (lowered(LSTM, 24, steps=steps) for steps in (7, 1024))
    assert launches(short) == launches(long) == 2 and "stablehlo.while" not in long
    assert abs(len(long) - len(short)) < 0.02 * len(short)
    monkeypatch.setattr(fused, "BLOCK_BYTES", 1 << 20)
    long = lowered(LSTM, 24, steps=1024)
    assert launches(long) == 2 and "stablehlo.while" in long


class Derived(LSTM):
    """A derived class, which could change the step."""


CELL = LSTM(D, H)


def zeros(make, *args):
    """Return zeros with the shapes of `make(*args)`."""
    return jax.tree.map(
        lambda a: np.zeros(a.shape, a.dtype), jax.eval_shape(functools.partial(make, *args))
    )


def carry_of(cell, batch_shape=(B,)):
    return zeros(cell.initial_carry, batch_shape)


@pytest.mark.parametrize(
    ("error", "words", "change"),
    [
        (
            TypeError,
            r"cell must be an LSTM or a GRU, not a class derived.*got Elman: use unroll",
            {"cell": Elman(D, H)},
        ),
        (TypeError, r"cell must be an LSTM.*got Derived: use unroll", {"cell": Derived(D, H)}),
        (
            TypeError,
            r"cells\[1\] of the Stack must be.*got Elman",
            {"cell": Stack((CELL, Elman(H, H)))},
        ),
        (
            TypeError,
            r"cells\[0\] of the Stack must be.*got Stack",
            {"cell": Stack((Stack((CELL,)),))},
        ),
        (ValueError, r"hidden_dim at most 256.*got 257: use unroll", {"cell": GRU(D, 257)}),
        (TypeError, r"dtype float32.*got float64 and float64", {"interpret": False}),
        (
            TypeError,
            r"got bfloat16 and bfloat16: use dtype=float32",
            {"cell": LSTM(D, H, dtype=jnp.bfloat16)},
        ),
        (TypeError, r"xs must be floating.*int", {"xs": np.ones((T, B, D), int)}),
        (TypeError, r"mask must be booleans", {"mask": np.ones((T, B), int)}),
        (ValueError, r"resets must have .* \(5, 2\); got \(5,\)", {"resets": np.ones((T,), bool)}),
        (ValueError, r"carry\.h must be .*\[2, 6\]; got .*\[6\]", {"carry": carry_of(CELL, ())}),
    ],
)
def test_error_messages(error, words, change):
    given = {
        "params": zeros(CELL.init, jax.random.key(0)),
        "carry": carry_of(CELL),
        "xs": np.ones((T, B, D)),
    }
    # Unwrapped, because jaxtyping's hook checks the arguments before the library does.
    with pytest.raises(error, match=words):
        inspect.unwrap(pallas_gpu.unroll)(**{"cell": CELL, "interpret": True} | given | change)
