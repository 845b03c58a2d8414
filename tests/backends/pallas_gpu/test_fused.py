"""The fused kernels are `plain_unroll`, in Pallas's interpreter; and JAX lowers them for CUDA. No test here needs a GPU."""

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
from tests.support.problems import assert_same, everything, plain_answer, problem, with_gradients

D, H, B, T = 3, 6, 2, 5
fused_unroll = functools.partial(pallas_gpu.unroll, interpret=True)
BOTH = fused_unroll, plain_unroll


@functools.cache
def fused_program(cell, reverse=False):
    return with_gradients(functools.partial(fused_unroll, cell, reverse=reverse))


def both(cell, batch_shape=(B,), steps=T, use="resets mask", reverse=False):
    """Values and gradients of fused_unroll, compiled anew, and of plain_unroll on the same problem, in float64."""
    params, carry, xs, given = problem(cell, batch_shape, steps)
    given = {name: given[name] for name in use.split()}
    ours = everything(functools.partial(fused_unroll, cell, reverse=reverse, **given), params, carry, xs)
    return ours, plain_answer(cell, batch_shape, steps, use, reverse)


# Two programs of 16 batch rows, of which the last are no rows; in reverse in turns.
ROWS = [(LSTM(D, H), (3, 6), False), (GRU(D, H), (17,), True)]
each_cell_of_many_rows = pytest.mark.parametrize(("cell", "batch_shape", "reverse"), ROWS, ids=["LSTM", "GRU"])


@each_cell_of_many_rows
def test_is_the_plain_scan(cell, batch_shape, reverse):
    params, carry, xs, given = problem(cell, batch_shape, T)
    nothing = {"resets": np.zeros(xs.shape[:-1], bool), "mask": np.ones(xs.shape[:-1], bool)}
    for use in ("", "resets", "mask", "resets mask"):
        flags = nothing | {name: given[name] for name in use.split()}
        holes = np.where(np.asarray(flags["mask"])[..., None], xs, np.nan)  # padding that changes nothing
        got, want = (
            fused_program(cell, reverse)(params, carry, holes, **flags),
            plain_answer(cell, batch_shape, T, use, reverse),
        )
        assert_same(got, want)
        assert min(np.max(np.abs(g)) for g in jax.tree.leaves(want[1][0])) > 1e-3  # the gradient is alive


@each_cell_of_many_rows
def test_a_reset_recovers_after_divergence(cell, batch_shape, reverse):
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
        pytest.param(LSTM, (B,), "mask", False, marks=pytest.mark.exhaustive),
        pytest.param(LSTM, (B,), "", True, marks=pytest.mark.exhaustive),
    ],
    ids=str,
)
def test_without_a_flag_nothing_is_reset_or_masked(make, batch_shape, use, reverse):
    assert_same(*both(make(D, H), batch_shape, use=use, reverse=reverse))


@pytest.mark.parametrize(
    ("make", "resident"),
    [(LSTM, 0), (GRU, 0), pytest.param(LSTM, grid.RESIDENT, marks=pytest.mark.exhaustive)],
    ids=["LSTM", "GRU", "held"],
)
def test_wide_layers_are_cut_into_tiles(make, resident, monkeypatch):
    monkeypatch.setattr(grid, "WIDEST", 16)
    monkeypatch.setattr(grid, "RESIDENT", resident)
    assert_same(*both(make(D, 24)))  # two tiles of 16, the second one not full


@pytest.mark.parametrize("make", [LSTM, pytest.param(GRU, marks=pytest.mark.exhaustive)])
def test_one_step_and_none(make):
    cell = make(D, H)
    assert_same(*both(cell, steps=1))
    params, carry, xs, given = jax.tree.map(np.asarray, problem(cell))
    start = jax.tree.map(lambda leaf: leaf[:0], carry)

    @jax.jit
    def run(params, carry, xs, start, nobody, given):
        return fused_unroll(cell, params, carry, xs, **given), fused_unroll(cell, params, start, nobody)

    given = jax.tree.map(lambda flags: flags[:0], given)
    (last, ys), (none, nothing) = run(params, carry, xs[:0], start, xs[:, :0], given)
    assert_same((last, ys.shape), (carry, (0, B, H)), 0)
    assert none.h.shape == (0, H) and nothing.shape == (xs.shape[0], 0, H)


@pytest.mark.parametrize("make", [GRU, pytest.param(LSTM, marks=pytest.mark.exhaustive)])
def test_blocks_of_steps_and_a_rest(make, monkeypatch):
    monkeypatch.setattr(blocked_vjp, "block_length", lambda *_: 2)
    assert_same(*both(make(D, H), steps=7))  # 2 + 2 + 2 + 1


def test_a_stack_runs_layer_after_layer():
    assert_same(*both(Stack((LSTM(D, 17), GRU(17, H))), reverse=True))


def test_under_vmap_over_parameters_and_batch_rows():
    cell = GRU(D, H)
    params, carry, xs, given = problem(cell, (2, B), T)
    many = jax.tree.map(lambda a: np.stack([a, 1.5 * np.asarray(a)]), params)

    def run(unroll, params, carry, xs):
        one = lambda p, c, x, r, m: unroll(cell, p, c, x, resets=r, mask=m)  # noqa: E731
        return jax.vmap(one, (0, 0, 1, 1, 1), (0, 1))(params, carry, xs, given["resets"], given["mask"])

    assert_same(*(everything(functools.partial(run, unroll), many, carry, xs) for unroll in BOTH))


def single(run, make, compute=None):
    """Values and gradients in float32, over 12 steps."""
    params, carry, xs, given = problem(make(D, H), steps=12)
    args = jax.tree.map(lambda a: np.asarray(a, np.float32), (params, carry, xs))
    cell = make(D, H, dtype=jnp.float32, compute_dtype=compute)
    return jax.tree.map(np.asarray, everything(lambda *a: run(cell, *a, **given), *args))


def difference(a, b):
    """The largest difference of a leaf, over its largest entry."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(np.max(np.abs(x - y)) / np.max(np.abs(y))) for x, y in pairs)


@pytest.mark.exhaustive
def test_float32():
    """Within 1e-5: float32 has 6e-8."""
    ours, plain = (single(run, LSTM) for run in BOTH)
    assert {leaf.dtype for leaf in jax.tree.leaves(ours)} == {jnp.dtype(jnp.float32)}
    assert difference(ours, plain) < 1e-5


@pytest.mark.parametrize("make", [LSTM, pytest.param(GRU, marks=pytest.mark.exhaustive)])
def test_bfloat16_products_in_float32_carries(make):
    """Within 1e-5 of unroll, which rounds the same operands forward and back; plain_unroll does not round cotangents."""
    ours, rounded, plain = (single(run, make, jnp.bfloat16) for run in (fused_unroll, unroll, plain_unroll))
    assert {leaf.dtype for leaf in jax.tree.leaves(ours)} == {jnp.dtype(jnp.float32)}
    assert difference(ours, rounded) < 1e-5
    assert difference(ours[0], plain[0]) < 1e-5 and difference(ours[1], plain[1]) < 1e-2


def shapes(tree, *leading):
    """What `jax.jit` needs of arrays to trace a program; `leading`: axes in front."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct((*leading, *a.shape), a.dtype), tree)


def lowered(make, hidden, compute=None, steps=7, lanes=3, flags=True, vmapped=False):
    """The gradient's program for CUDA, made on this machine."""
    cell = make(D, hidden, dtype=jnp.float32, compute_dtype=compute)
    params, carry = jax.eval_shape(cell.init, jax.random.key(0)), jax.eval_shape(lambda: cell.initial_carry((lanes,)))
    xs, every = jax.ShapeDtypeStruct((steps, lanes, D), jnp.float32), np.ones((steps, lanes), bool)
    given = {"resets": every, "mask": every} if flags else {}

    def loss(params, carry, xs):
        last, ys = fused_unroll(cell, params, carry, xs, **given, interpret=False)
        return jnp.sum(ys**2) + sum(jnp.sum(leaf) for leaf in jax.tree.leaves(last))

    grad = jax.value_and_grad(loss, argnums=(0, 1, 2))
    if vmapped:
        params, grad = shapes(params, 2), jax.vmap(grad, (0, None, None))
    return jax.jit(grad).trace(params, carry, xs).lower(lowering_platforms=("cuda",)).as_text()


def launches(program):
    return program.count("xla.gpu.triton") + program.count("triton_kernel_call")  # by the version of JAX


@functools.cache
def _lowers_without_a_gpu():
    """Some versions of JAX compile Triton's code while they lower, and need a GPU's plugin for it."""
    from jax.experimental import pallas as pl
    from jax.experimental.pallas import triton

    def double(x_ref, y_ref):
        y_ref[...] = 2 * x_ref[...]

    x = jnp.ones((16,), jnp.float32)
    f = pl.pallas_call(double, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype), compiler_params=triton.CompilerParams())
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
        (GRU, 24, jnp.bfloat16, {"flags": False, "lanes": 17}),
        (LSTM, 24, None, {"vmapped": True}),
        *(
            pytest.param(make, *rest, marks=pytest.mark.exhaustive)
            for make, *rest in [
                (GRU, 6, None, {}),
                (LSTM, 24, jnp.bfloat16, {"flags": False, "lanes": 17}),
                (GRU, 24, None, {"vmapped": True}),
                (LSTM, 256, None, {"flags": False}),
                (GRU, 256, None, {"flags": False}),
                (LSTM, 128, None, {}),
                (GRU, 128, None, {}),
                (LSTM, 128, jnp.bfloat16, {"flags": False}),
                (GRU, 128, jnp.bfloat16, {"flags": False}),
            ]
        ),
    ],
    ids=str,
)
def test_lowers_for_cuda(make, hidden, compute, options, lowers):
    with jax.enable_x64(False):
        program = lowered(make, hidden, compute, **options)
    assert launches(program) == 2  # one forward and one back for all steps, and no loop around them
    assert "stablehlo.while" not in program


@pytest.mark.exhaustive  # the first tier: the LSTM's, in the next test
def test_lowers_for_cuda_where_numbers_have_64_bits(lowers):
    assert [launches(lowered(make, 24)) for make in (LSTM, GRU)] == [2, 2]


def test_the_program_does_not_grow_with_time(lowers, monkeypatch):
    short, long = (lowered(LSTM, 24, steps=steps) for steps in (7, 4096))
    assert launches(short) == launches(long) == 2 and "stablehlo.while" not in long
    assert abs(len(long) - len(short)) < 0.02 * len(short)
    monkeypatch.setattr(fused, "BLOCK_BYTES", 1 << 20)
    long = lowered(LSTM, 24, steps=4096)
    assert launches(long) == 2 and "stablehlo.while" in long


class Child(LSTM):
    """A child that could change the step."""


CELL = LSTM(D, H)


def zeros(make, *args):
    """What `make` would return, but zeros of numpy."""
    return jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), jax.eval_shape(functools.partial(make, *args)))


def carry_of(cell, batch_shape=(B,)):
    return zeros(cell.initial_carry, batch_shape)


@pytest.mark.parametrize(
    ("error", "words", "change"),
    [
        (TypeError, r"cell must be an LSTM or a GRU itself.*got Elman: use unroll", {"cell": Elman(D, H)}),
        (TypeError, r"cell must be an LSTM.*got Child: use unroll", {"cell": Child(D, H)}),
        (TypeError, r"cells\[1\] of the Stack must be.*got Elman", {"cell": Stack((CELL, Elman(H, H)))}),
        (TypeError, r"cells\[0\] of the Stack must be.*got Stack", {"cell": Stack((Stack((CELL,)),))}),
        (ValueError, r"hidden_dim at most 256.*got 257: use unroll", {"cell": GRU(D, 257)}),
        (TypeError, r"dtype float32.*got float64 and float64", {"interpret": False}),
        (TypeError, r"got bfloat16 and bfloat16: use dtype=float32", {"cell": LSTM(D, H, dtype=jnp.bfloat16)}),
        (TypeError, r"xs must be floating.*int", {"xs": np.ones((T, B, D), int)}),
        (TypeError, r"mask must be booleans", {"mask": np.ones((T, B), int)}),
        (ValueError, r"resets must have .* \(5, 2\); got \(5,\)", {"resets": np.ones((T,), bool)}),
        (ValueError, r"carry\.h must be .*\[2, 6\]; got .*\[6\]", {"carry": carry_of(CELL, ())}),
    ],
)
def test_errors_name_what_is_wrong(error, words, change):
    given = {"params": zeros(CELL.init, jax.random.key(0)), "carry": carry_of(CELL), "xs": np.ones((T, B, D))}
    # Only the library's own message counts: jaxtyping's hook of the tests would speak first.
    with pytest.raises(error, match=words):
        inspect.unwrap(pallas_gpu.unroll)(**{"cell": CELL, "interpret": True} | given | change)
