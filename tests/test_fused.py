"""The fused kernels are `plain_unroll`, in Pallas's interpreter; and JAX lowers them for CUDA. No test here needs a GPU."""

import functools
import inspect

import jax
import jax.numpy as jnp
import pytest

from tbptt.cells import GRU, LSTM, Elman, Stack
from tbptt.engine import sizes
from tbptt.kernels import fused_unroll, grid
from tbptt.kernels import unroll as door
from tbptt.unroll import plain_unroll, unroll
from tests.problems import assert_same, everything, plain_answer, problem

D, H, B, T = 3, 6, 2, 5
CELLS = [LSTM(D, H), GRU(D, H)]
each_cell = pytest.mark.parametrize("cell", CELLS, ids=lambda cell: type(cell).__name__)
BOTH = fused_unroll, plain_unroll


def both(cell, batch_shape=(B,), steps=T, use="resets mask", **options):
    """Values and gradients of fused_unroll and plain_unroll on the same problem, in float64."""
    params, carry, xs, given = problem(cell, batch_shape, steps)
    given = {name: given[name] for name in use.split()}
    ours = everything(lambda *a: fused_unroll(cell, *a, **given, **options), params, carry, xs)
    return ours, plain_answer(cell, batch_shape, steps, use, options.get("reverse", False))


@each_cell
@pytest.mark.parametrize(("use", "reverse"), [("", False), ("resets mask", True)])
def test_is_the_plain_scan(cell, use, reverse):
    got, want = both(cell, use=use, reverse=reverse)
    assert_same(got, want)
    assert min(float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(want[1][0])) > 1e-3  # the gradient is alive


@pytest.mark.parametrize(("make", "resident"), [(LSTM, 0), (GRU, 0), (LSTM, grid.RESIDENT)], ids=["LSTM", "GRU", "held"])
def test_wide_layers_are_cut_into_pieces(make, resident, monkeypatch):
    monkeypatch.setattr(grid, "WIDEST", 16)
    monkeypatch.setattr(grid, "RESIDENT", resident)
    assert_same(*both(make(D, 24)))  # two pieces of 16, the second one not full


@pytest.mark.parametrize(
    ("make", "batch_shape", "use"), [(LSTM, (), "resets"), (GRU, (17,), "mask"), (LSTM, (3, 6), "mask")], ids=str
)
def test_lanes_of_any_shape(make, batch_shape, use):
    assert_same(*both(make(D, H), batch_shape, use=use))


@each_cell
def test_one_step_and_none(cell):
    assert_same(*both(cell, steps=1))
    params, carry, xs, given = problem(cell)
    given = jax.tree.map(lambda flags: flags[:0], given)
    last, ys = fused_unroll(cell, params, carry, xs[:0], **given)
    assert_same((last, ys.shape), (carry, (0, B, H)), 0)
    last, ys = fused_unroll(cell, params, cell.initial_carry((0,)), xs[:, :0])
    assert last.h.shape == (0, H) and ys.shape == (xs.shape[0], 0, H)


@each_cell
def test_blocks_of_steps_and_a_rest(cell, monkeypatch):
    monkeypatch.setattr(sizes, "CPU_BLOCK", 1)
    monkeypatch.setattr(sizes, "FEWEST", 3)
    assert_same(*both(cell, steps=7))  # 2 + 2 + 2 + 1


def test_a_stack_runs_layer_after_layer():
    assert_same(*both(Stack((LSTM(D, 17), GRU(17, H))), reverse=True))


def test_under_vmap_over_parameters_and_lanes():
    cell = GRU(D, H)
    params, carry, xs, given = problem(cell, (2, B), T)
    many = jax.tree.map(lambda a: jnp.stack([a, 1.5 * a]), params)

    def run(unroll, params, carry, xs):
        one = lambda p, c, x, r, m: unroll(cell, p, c, x, resets=r, mask=m)  # noqa: E731
        return jax.vmap(one, (0, 0, 1, 1, 1), (0, 1))(params, carry, xs, given["resets"], given["mask"])

    assert_same(*(everything(functools.partial(run, unroll), many, carry, xs) for unroll in BOTH))


@each_cell
def test_nan_padding_and_a_reset_after_divergence(cell):
    params, carry, xs, given = problem(cell, steps=T)
    holes = jnp.where(given["mask"][..., None], xs, jnp.nan)
    got = everything(lambda *a: fused_unroll(cell, *a, **given), params, carry, holes)
    assert_same(got, plain_answer(cell, steps=T))
    resets = jnp.zeros((T, B), bool).at[2].set(True)
    carry = jax.tree.map(lambda a: a.at[0].set(jnp.nan).at[1].set(jnp.inf), carry)
    got, want = (jax.jit(run, static_argnums=0)(cell, params, carry, xs, resets=resets) for run in BOTH)
    assert_same(got, want)
    assert bool(jnp.all(jnp.isfinite(got[1][2:]))) and not bool(jnp.all(jnp.isfinite(got[1][:2])))


def single(run, make, compute=None):
    """Values and gradients in float32, over 12 steps."""
    params, carry, xs, given = problem(make(D, H), steps=12)
    args = jax.tree.map(lambda a: a.astype(jnp.float32), (params, carry, xs))
    cell = make(D, H, dtype=jnp.float32, compute_dtype=compute)
    return everything(lambda *a: run(cell, *a, **given), *args)


def difference(a, b):
    """The largest difference of a leaf, over its largest entry."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(jnp.max(jnp.abs(x - y)) / jnp.max(jnp.abs(y))) for x, y in pairs)


def test_float32():
    """Within 1e-5: float32 has 6e-8."""
    ours, plain = (single(run, LSTM) for run in BOTH)
    assert {leaf.dtype for leaf in jax.tree.leaves(ours)} == {jnp.dtype(jnp.float32)}
    assert difference(ours, plain) < 1e-5


@pytest.mark.parametrize("make", [LSTM, GRU])
def test_bfloat16_products_in_float32_carries(make):
    """Within 1e-5 of unroll, which rounds the same operands forward and back; plain_unroll does not round cotangents."""
    ours, rounded, plain = (single(run, make, jnp.bfloat16) for run in (fused_unroll, unroll, plain_unroll))
    assert {leaf.dtype for leaf in jax.tree.leaves(ours)} == {jnp.dtype(jnp.float32)}
    assert difference(ours, rounded) < 1e-5
    assert difference(ours[0], plain[0]) < 1e-5 and difference(ours[1], plain[1]) < 1e-2


def lowered(make, hidden, compute=None, steps=7, lanes=3, flags=True, vmapped=False):
    """The gradient's program for CUDA, made on this machine."""
    cell = make(D, hidden, dtype=jnp.float32, compute_dtype=compute)
    params, carry = cell.init(jax.random.key(0)), cell.initial_carry((lanes,))
    xs, every = jnp.ones((steps, lanes, D), jnp.float32), jnp.ones((steps, lanes), bool)
    given = {"resets": every, "mask": every} if flags else {}

    def loss(params, carry, xs):
        last, ys = fused_unroll(cell, params, carry, xs, **given, interpret=False)
        return jnp.sum(ys**2) + sum(jnp.sum(leaf) for leaf in jax.tree.leaves(last))

    grad = jax.value_and_grad(loss, argnums=(0, 1, 2))
    if vmapped:
        params, grad = jax.tree.map(lambda a: jnp.stack([a, a]), params), jax.vmap(grad, (0, None, None))
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


@pytest.mark.parametrize("make", [LSTM, GRU])
@pytest.mark.parametrize(
    ("hidden", "compute", "options"),
    [
        (6, None, {}),
        (24, jnp.bfloat16, {"flags": False, "lanes": 17}),
        (128, None, {}),
        (128, jnp.bfloat16, {"flags": False}),
        (256, None, {"flags": False}),
        (24, None, {"vmapped": True}),
    ],
    ids=str,
)
def test_lowers_for_cuda(make, hidden, compute, options, lowers):
    with jax.enable_x64(False):
        program = lowered(make, hidden, compute, **options)
    assert launches(program) == 2  # one forward and one back for all steps, and no loop around them
    assert "stablehlo.while" not in program


def test_lowers_for_cuda_where_numbers_have_64_bits(lowers):
    assert [launches(lowered(make, 24)) for make in (LSTM, GRU)] == [2, 2]


def test_the_program_does_not_grow_with_time(lowers, monkeypatch):
    short, long = (lowered(LSTM, 24, steps=steps) for steps in (7, 4096))  # blocks of the size for CPUs: 16 of them
    assert launches(short) == launches(long) == 2 and "stablehlo.while" in long
    monkeypatch.setattr(sizes, "CPU_BLOCK", sizes.ACCELERATOR_BLOCK)
    long = lowered(LSTM, 24, steps=4096)
    assert launches(long) == 2 and "stablehlo.while" not in long
    assert abs(len(long) - len(short)) < 0.02 * len(short)


class Child(LSTM):
    """A child that could change the step."""


CELL = LSTM(D, H)


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
        (TypeError, r"xs must be floating.*int", {"xs": jnp.ones((T, B, D), int)}),
        (TypeError, r"mask must be booleans", {"mask": jnp.ones((T, B), int)}),
        (ValueError, r"resets must have .* \(5, 2\); got \(5,\)", {"resets": jnp.ones((T,), bool)}),
        (ValueError, r"carry\.h must be .*\[2, 6\]; got .*\[6\]", {"carry": CELL.initial_carry()}),
    ],
)
def test_errors_name_what_is_wrong(error, words, change):
    given = {"params": CELL.init(jax.random.key(0)), "carry": CELL.initial_carry((B,)), "xs": jnp.ones((T, B, D))}
    # Only the library's own message counts: jaxtyping's hook of the tests would speak first.
    with pytest.raises(error, match=words):
        inspect.unwrap(fused_unroll)(**{"cell": CELL} | given | change)


def test_interprets_on_a_cpu_only(monkeypatch):
    for backend, asked, answer in (("cpu", None, True), ("gpu", None, False), ("gpu", True, True), ("tpu", True, True)):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        assert door._interpreted(asked) is answer
    with pytest.raises(ValueError, match=r"default backend is tpu: use unroll"):
        door._interpreted(None)
