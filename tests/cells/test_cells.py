"""Initial parameters, hashing, equations, closed forms and errors of the cells."""

import functools
import math
import types

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tbptt.cells import (
    GRU,
    LSTM,
    DiagonalLinear,
    Elman,
    GRUCarry,
    GRUResetBefore,
    GRUResetBeforeParams,
    LSTMCarry,
    MinGRU,
    MinLSTM,
    Stack,
    initializers,
)
from tbptt.cells.base import SplitCell
from tbptt.cells.linear import DiagonalLinearCarry, DiagonalLinearParams
from tbptt.cells.matmul import FEW_INPUTS, outer_and_sum, project_inputs
from tbptt.types import Cell
from tbptt.unroll import unroll

D, H = 3, 6
MAKERS = [Elman, GRU, GRUResetBefore, LSTM, DiagonalLinear, MinGRU, MinLSTM]
each_maker = pytest.mark.parametrize("make", MAKERS)
close = dict(rtol=1e-12, atol=1e-12)
exhaustive = functools.partial(pytest.param, marks=pytest.mark.exhaustive)


def drawn(cell, key, *names):
    """Return the leaves of `cell.init` with these names, or all of them."""
    return drawn_by([cell], key, *names)[0]


def drawn_by(cells, key, *names):
    """Return the leaves of every cell, drawn by one program."""

    def leaves(key):
        draws = [cell.init(key) for cell in cells]
        return [tuple(getattr(p, name) for name in names) if names else p for p in draws]

    return jax.tree.map(np.asarray, jax.jit(leaves)(key))


GATES = {Elman: 1, GRU: 3, GRUResetBefore: 3, LSTM: 4}


def normal(*shapes):
    random = np.random.default_rng(0)
    return [random.normal(size=shape) for shape in shapes]


def recurrent_blocks(params):
    """Return the [H, H] recurrent matrix of every gate."""
    matrices = [params.w_h] + ([params.w_n] if hasattr(params, "w_n") else [])
    return np.split(
        np.concatenate(matrices, axis=1), sum(m.shape[1] for m in matrices) // H, axis=1
    )


def test_recurrent_weights_are_orthogonal_gate_by_gate(key):
    every = drawn_by([make(D, H) for make in GATES], key)
    for params, gates in zip(every, GATES.values(), strict=True):
        blocks = recurrent_blocks(params)
        assert len(blocks) == gates
        for w in blocks:
            np.testing.assert_allclose(w @ w.T, np.eye(H), **close)
        for a in range(gates):  # independent draws
            for b in range(a):
                assert np.max(np.abs(blocks[a] - blocks[b])) > 0.1


@pytest.mark.parametrize(
    ("make", "dtype"),
    [
        (GRUResetBefore, jnp.bfloat16),
        (Elman, jnp.float16),
        exhaustive(LSTM, jnp.bfloat16),
        exhaustive(MinLSTM, jnp.float16),
    ],
)
def test_half_precision_params_and_steps(make, dtype, key):
    cell, wide = make(D, H, dtype=dtype), make(D, H, dtype=jnp.float32)

    @jax.jit
    def draw_and_step(key, x):
        params, carry = cell.init(key), cell.initial_carry((2,))
        return params, carry, cell(params, carry, x), wide.init(key)

    params, *rest, of_wide = jax.tree.map(np.asarray, draw_and_step(key, np.ones((2, D), dtype)))
    assert {leaf.dtype for leaf in jax.tree.leaves((params, rest))} == {jnp.dtype(dtype)}
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(rest))
    if hasattr(params, "w_h"):  # a Gaussian's Q, rounded: the float32 draw
        for half, single in zip(recurrent_blocks(params), recurrent_blocks(of_wide), strict=True):
            np.testing.assert_array_equal(half, single.astype(dtype))
            np.testing.assert_allclose(
                half.astype(float) @ half.astype(float).T, np.eye(H), atol=2 * jnp.finfo(dtype).eps
            )


def test_gain_and_identity(key):
    (w,) = drawn(Elman(D, H, gain=1.7), key, "w_h")
    np.testing.assert_allclose(w @ w.T, 1.7**2 * np.eye(H), **close)
    (w,) = drawn(
        Elman(D, H, activation=jax.nn.relu, recurrent_init=initializers.identity, gain=0.5),
        key,
        "w_h",
    )
    np.testing.assert_array_equal(w, 0.5 * np.eye(H))


def test_input_weights_follow_glorot_gate_by_gate(key):
    every = drawn_by([make(200, 100) for make in GATES], key, "w_x")
    limit = math.sqrt(6 / (200 + 100))  # of one gate: D + H, not D + gates * H
    for (w_x,), gates in zip(every, GATES.values(), strict=True):
        assert w_x.shape == (200, gates * 100)
        for w in np.split(w_x, gates, axis=1):
            assert 0.99 * limit < np.max(np.abs(w)) <= limit


def test_initial_biases(key):
    zero = [make(D, H) for make in (Elman, GRU, GRUResetBefore, DiagonalLinear)]
    *of_zero, (b,), (b_25,) = drawn_by([*zero, LSTM(D, H), LSTM(D, H, forget_bias=2.5)], key, "b")
    assert len(of_zero) == 4 and not any(np.any(of) for (of,) in of_zero)
    assert not np.any(drawn(GRU(D, H), key, "b_n")[0])
    np.testing.assert_array_equal(b, np.repeat([0, 1, 0, 0], H))
    np.testing.assert_array_equal(b_25, np.repeat([0, 2.5, 0, 0], H))


def test_chrono_spreads_the_time_scales(key):
    lag = 50
    (b,), *of_grus = drawn_by(
        [make(D, 500, longest_lag=lag) for make in (LSTM, GRU, GRUResetBefore)], key, "b"
    )
    b_i, b_f, b_g, b_o = np.split(b, 4)
    assert 0 <= b_f.min() < math.log(1.5) and b_f.max() <= math.log(lag - 1)  # u from 1 on
    np.testing.assert_array_equal(b_i, -b_f)
    assert not np.any(b_g) and not np.any(b_o)
    biases = [b_f]
    for (b,) in of_grus:
        b_r, b_z, b_n = np.split(b, 3)
        assert not np.any(b_r) and not np.any(b_n)
        biases.append(b_z)
    for bias in biases:
        quartiles = np.quantile(np.exp(bias), [0.25, 0.5, 0.75])  # u ~ U(1, lag - 1)
        np.testing.assert_allclose(
            quartiles, 1 + np.array([0.25, 0.5, 0.75]) * (lag - 2), atol=0.1 * lag
        )


def test_diagonal_linear_draws_decays_between_its_bounds(key):
    (a,) = drawn(DiagonalLinear(D, 500, a_min=0.2, a_max=0.6), key, "a")
    assert 0.2 <= a.min() < 0.21 and 0.59 < a.max() < 0.6


def test_diagonal_linear_closed_forms(key):
    cell, t = DiagonalLinear(D, H), 17
    params, xs = drawn(cell, key), np.zeros((t, D))

    def h_t(params: DiagonalLinearParams, h: jax.Array) -> jax.Array:
        return unroll(cell, params, DiagonalLinearCarry(h), xs)[0].h

    h_0 = np.linspace(-1.0, 1.0, H)
    by_params, by_h = jax.jit(jax.jacrev(h_t, argnums=(0, 1)))(params, h_0)
    a = params.a
    np.testing.assert_allclose(by_h, np.diag(a**t), **close)
    np.testing.assert_allclose(by_params.b, np.diag((1 - a**t) / (1 - a)), **close)
    # xs = 0, b = 0: h_t = a^t h_0.
    np.testing.assert_allclose(by_params.a, np.diag(t * a ** (t - 1) * h_0), **close)


@pytest.mark.parametrize(("make", "flax_cell"), [(LSTM, nn.OptimizedLSTMCell), (GRU, nn.GRUCell)])
def test_gates_are_those_of_flax(make, flax_cell, key):
    """Compare with the cell of flax for the same weights, gate by gate."""
    cell, theirs = make(D, H), flax_cell(H, param_dtype=jnp.float64, dtype=jnp.float64)
    shapes = jax.eval_shape(cell.init, key)
    params = jax.tree.map(
        lambda p: 0.5 * np.random.default_rng(p.size).normal(size=p.shape), shapes
    )
    h, c, x = normal(H, H, D)
    gates = "ifgo" if make is LSTM else "rzn"
    w_x, w_h, b = (np.split(leaf, len(gates), axis=-1) for leaf in params[:3])
    variables = {f"i{g}": {"kernel": w} for g, w in zip(gates, w_x, strict=True)}
    variables |= {f"h{g}": {"kernel": w} for g, w in zip(gates, w_h, strict=True)}
    for g, value in zip(gates, b, strict=True):
        variables[("h" if make is LSTM else "i") + g]["bias"] = value
    if make is GRU:
        variables["hn"]["bias"] = params.b_n
        new, y = jax.jit(cell)(params, GRUCarry(h), x)
        want = jax.jit(theirs.apply)({"params": variables}, h, x)[1]
    else:
        new, y = jax.jit(cell)(params, LSTMCarry(h=h, c=c), x)
        (want_c, _), want = jax.jit(theirs.apply)({"params": variables}, (c, h), x)
        np.testing.assert_allclose(new.c, want_c, **close)
    np.testing.assert_allclose(y, want, **close)
    np.testing.assert_array_equal(new.h, y)


def test_reset_before_is_its_equation():
    cell = GRUResetBefore(1, 1)
    w_x, w_h, w_n = normal((1, 3), (1, 2), (1, 1))
    params = GRUResetBeforeParams(w_x=w_x, w_h=w_h, w_n=w_n, b=np.array([0.3, -0.2, 0.1]))
    (w_r, w_z, w_n), (u_r, u_z) = params.w_x[0].tolist(), params.w_h[0].tolist()
    u_n = float(params.w_n[0, 0])
    h, x, sigmoid = 0.7, -1.3, lambda a: 1 / (1 + math.exp(-a))
    r, z = sigmoid(x * w_r + h * u_r + 0.3), sigmoid(x * w_z + h * u_z - 0.2)
    want = (1 - z) * math.tanh(x * w_n + r * h * u_n + 0.1) + z * h
    got, _ = jax.jit(cell)(params, GRUCarry(np.array([h])), np.array([x]))
    np.testing.assert_allclose(got.h, [want], **close)


@each_maker
def test_equal_cells_share_one_trace(make, key):
    chex.clear_trace_counter()
    cell, again = make(D, H), make(D, H)
    assert cell == again and hash(cell) == hash(again) and cell != make(D, H + 1)
    assert isinstance(cell, Cell) and isinstance(cell, SplitCell)
    step = jax.jit(
        chex.assert_max_traces(lambda cell, p, c, x: cell(p, c, x), n=1), static_argnums=0
    )
    shapes = jax.eval_shape(lambda: (cell.init(key), cell.initial_carry()))
    given = jax.tree.map(lambda a: np.ones(a.shape, a.dtype), shapes)
    for one in (cell, again, Stack((cell,)).cells[0]):
        step(one, *given, np.ones(D))
    assert hash(Stack((cell,))) == hash(Stack((again,)))


@each_maker
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, None])
def test_dtype_is_that_of_params_and_carry(make, dtype, key):
    cell = make(D, H, dtype=dtype)

    def init_and_step(key, x):
        params, carry = cell.init(key), cell.initial_carry((2,))
        return params, carry, cell(params, carry, x)

    shapes = jax.eval_shape(init_and_step, key, jax.ShapeDtypeStruct((2, D), dtype or float))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(dtype or jnp.float64)}


@each_maker
@pytest.mark.parametrize("size", [0, -1, True])
def test_sizes_are_at_least_one(make, size):
    for name in ("input_dim", "hidden_dim"):
        with pytest.raises(
            ValueError, match=rf"{make.__name__}\.{name} must be a Python int of at least 1; got"
        ):
            make(**({"input_dim": D, "hidden_dim": H} | {name: size}))


@pytest.mark.parametrize(
    "size", [2.0, np.int64(3), "3", None]
)  # checked without a cell, which jaxtyping checks first
def test_sizes_are_python_ints(size):
    class Sized(types.SimpleNamespace):
        pass

    with pytest.raises(
        ValueError, match=r"Sized\.hidden_dim must be a Python int of at least 1; got"
    ):
        initializers.check_sizes(Sized(input_dim=D, hidden_dim=size))


def test_stack_sizes_must_fit():
    with pytest.raises(
        ValueError, match=r"cells\[1\] has hidden_dim=5, but cells\[2\] has input_dim=4"
    ):
        Stack((Elman(D, 4), GRU(4, 5), LSTM(4, H)))
    with pytest.raises(ValueError, match="non-empty tuple of cells"):
        Stack(())
    stack = Stack((Elman(D, 4), GRU(4, H)))
    assert (stack.input_dim, stack.hidden_dim) == (D, H)


def test_longest_lag_is_at_least_three():
    with pytest.raises(ValueError, match=r"LSTM.longest_lag must be at least 3 steps.*got 2"):
        LSTM(D, H, longest_lag=2)
    with pytest.raises(ValueError, match=r"GRU.longest_lag must be at least 3 steps.*got 2"):
        GRU(D, H, longest_lag=2)
    LSTM(D, H, longest_lag=3)


@pytest.mark.parametrize("shape", [(), (4, 3)])
@pytest.mark.parametrize("D", [exhaustive(1), FEW_INPUTS, FEW_INPUTS + 1])
def test_input_projection_with_few_and_many_inputs(D, shape):
    xs, w_x, b = normal((*shape, D), (D, 7), 7)
    np.testing.assert_allclose(
        jax.jit(project_inputs, static_argnums=3)(xs, w_x, b, None), xs @ w_x + b, **close
    )
    # A matrix product is used for many inputs only.
    assert (
        "dot_general" in str(jax.make_jaxpr(project_inputs, static_argnums=3)(xs, w_x, b, None))
    ) == (D > FEW_INPUTS)


@pytest.mark.parametrize("shape", [(), (4, 3)])
def test_bias_gradient_is_computed_with_the_weight_gradient(shape):
    a, d = normal((*shape, 6), (*shape, 7))
    rows = a.reshape(-1, 6), d.reshape(-1, 7)
    (weights, bias), rounded = jax.jit(
        lambda a, d: (outer_and_sum(a, d, None), outer_and_sum(a, d, jnp.bfloat16))
    )(a, d)
    np.testing.assert_allclose(weights, rows[0].T @ rows[1], **close)
    np.testing.assert_allclose(bias, rows[1].sum(0), **close)
    weights, bias = rounded
    np.testing.assert_allclose(weights, rows[0].T @ rows[1], rtol=0.1, atol=0.1)
    np.testing.assert_allclose(bias, rows[1].sum(0), **close)  # not rounded


def test_a_stack_may_be_given_as_a_list():
    layers = [GRU(2, 3), GRU(3, 4)]
    assert Stack(layers) == Stack(tuple(layers)) and hash(Stack(layers))
