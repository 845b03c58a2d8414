"""Flax cells in `unroll` against `nn.RNN`, and `tbptt` cells in `nn.RNN` against `unroll`."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import tbptt
from tbptt.cells.flax_interop import LinenCell, NnxCell, as_linen
from tbptt.types import Cell
from tests.support import oracle

T, B, D, H = 7, 3, 2, 5


def linen(cell_type):
    return cell_type(H, param_dtype=jnp.float64)


def make_nnx(cell_type, rngs):
    # SimpleCell's dtype is float32 if not given.
    return cell_type(D, H, dtype=jnp.float64, param_dtype=jnp.float64, rngs=rngs)


LINEN, NNX = linen(nn.SimpleCell), functools.partial(make_nnx, nnx.SimpleCell)
FLAX = {"linen": LinenCell(LINEN, D), "nnx": NnxCell(NNX, D)}
STACK = tbptt.Stack((tbptt.LSTM(D, 4), tbptt.GRU(4, H)))
exhaustive = functools.partial(pytest.param, marks=pytest.mark.exhaustive)


@pytest.fixture
def xs():
    return np.random.default_rng(1).normal(size=(T, B, D))


def drawn(init, *args):
    """Parameters with the shapes of `init`, none of them 0."""
    random = np.random.default_rng(0)
    return jax.tree.map(
        lambda a: 0.5 * random.normal(size=a.shape).astype(a.dtype), jax.eval_shape(init, *args)
    )


def assert_close(got, wanted):
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert a.dtype == b.dtype == jnp.float64
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def through(run, params, xs):
    """Return outputs, final carry, and the gradients of a function of all of both."""

    def objective(params, xs):
        carry, ys = run(params, xs)
        weights = np.random.default_rng(7).normal(size=ys.shape)
        return jnp.sum(ys * weights) + sum(
            jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(carry)
        ), (carry, ys)

    grads, (carry, ys) = jax.jit(jax.grad(objective, argnums=(0, 1), has_aux=True))(params, xs)
    assert all(np.max(np.abs(g)) > 1e-3 for g in jax.tree.leaves(grads))
    return ys, carry, grads


def run_unroll(cell):
    return lambda params, xs: tbptt.unroll(cell, params, cell.initial_carry((xs.shape[1],)), xs)


def test_linen_cell_equals_flax_rnn(xs, key):
    module = linen(nn.OptimizedLSTMCell)
    cell = LinenCell(module, D)
    params = drawn(cell.init, key)
    rnn = nn.RNN(module, time_major=True, return_carry=True)
    wanted = through(
        lambda params, xs: rnn.apply({"params": {"cell": params["params"]}}, xs), params, xs
    )
    assert_close(through(run_unroll(cell), params, xs), wanted)


def test_nnx_cell_equals_flax_rnn(xs, key):
    cell = NnxCell(functools.partial(make_nnx, nnx.GRUCell), D)
    params = drawn(cell.init, key)

    def flax(params, xs):
        return nnx.RNN(cell.merge(params), time_major=True, return_carry=True)(xs)

    assert_close(through(run_unroll(cell), params, xs), through(flax, params, xs))


def test_linen_params_are_flax_variables(key):
    cell = FLAX["linen"]

    @jax.jit
    def both(key):
        carry = LINEN.initialize_carry(key, (B, D))
        return (cell.init(key), cell.initial_carry((B,))), (
            LINEN.init(key, carry, jnp.zeros((B, D))),
            carry,
        )

    jax.tree.map(np.testing.assert_array_equal, *both(key))


def test_nnx_params_are_module_state_and_merge_inverts_it(key):
    cell = FLAX["nnx"]
    params, wanted = jax.jit(lambda key: (cell.init(key), nnx.state(NNX(nnx.Rngs(key)))))(key)
    jax.tree.map(np.testing.assert_array_equal, params, wanted)
    module = cell.merge(params)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(module), params)
    before = jax.tree.map(np.asarray, params)
    nnx.update(module, jax.tree.map(np.zeros_like, before))
    jax.tree.map(np.testing.assert_array_equal, params, before)


@pytest.mark.parametrize("cell", FLAX.values(), ids=FLAX)
def test_is_a_hashable_cell_and_pure_under_jit_and_vmap(cell, xs, key):
    assert isinstance(cell, Cell)
    assert (cell.input_dim, cell.hidden_dim) == (D, H)
    again = type(cell)(cell.module if isinstance(cell, LinenCell) else cell.make, D)
    assert again == cell and hash(again) == hash(cell)
    made = jax.eval_shape(lambda: (cell.init(key), cell.initial_carry((B,))))
    assert all(leaf.dtype == jnp.float64 for leaf in jax.tree.leaves(made))
    jitted = jax.jit(run_unroll(cell))

    @jax.jit
    def vmapped(params, xs, keys):
        one = jax.vmap(
            lambda xs: tbptt.unroll(cell, params, cell.initial_carry(), xs),
            in_axes=1,
            out_axes=(0, 1),
        )
        members = jax.vmap(cell.init)(keys)
        return one(xs), members, jax.vmap(lambda params: run_unroll(cell)(params, xs)[1])(members)

    params = drawn(cell.init, key)
    rows, members, ys = vmapped(params, xs, jax.random.split(key, 4))
    assert_close(rows, jitted(params, xs))
    assert_close(
        np.asarray(ys)[1],
        np.asarray(jitted(jax.tree.map(lambda a: np.asarray(a)[1], members), xs)[1]),
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda dtype: LinenCell(nn.GRUCell(H, param_dtype=dtype), D),
        lambda dtype: NnxCell(lambda rngs: nnx.GRUCell(D, H, param_dtype=dtype, rngs=rngs), D),
    ],
)
def test_params_and_carry_have_the_modules_param_dtype(make, key):
    for dtype in (jnp.float32, jnp.float64):
        cell = make(dtype)
        made = jax.eval_shape(lambda key, cell=cell: (cell.init(key), cell.initial_carry()), key)
        assert {leaf.dtype for leaf in jax.tree.leaves(made)} == {jnp.dtype(dtype)}


@pytest.mark.exhaustive
def test_as_linen_in_flax_rnn_equals_unroll(xs, key):
    cell = STACK
    rnn = nn.RNN(as_linen(cell), time_major=True, return_carry=True)
    params = drawn(rnn.init, key, xs)["params"]["cell"]["weights"]
    assert jax.tree.structure(params) == jax.tree.structure(jax.eval_shape(cell.init, key))
    flax = through(
        lambda params, xs: rnn.apply({"params": {"cell": {"weights": params}}}, xs), params, xs
    )
    assert_close(flax, through(run_unroll(cell), params, xs))


@pytest.mark.parametrize("cell", [tbptt.Elman(D, H), exhaustive(STACK)], ids=["Elman", "Stack"])
def test_as_linen_and_back_is_the_same_cell(cell, xs, key):
    back = LinenCell(as_linen(cell), D)
    assert as_linen(cell) == as_linen(cell) and hash(back) == hash(LinenCell(as_linen(cell), D))
    assert back.hidden_dim == cell.hidden_dim
    params = drawn(back.init, key)
    ys, carry, grads = through(run_unroll(back), params, xs)
    wanted = through(run_unroll(cell), params["params"]["weights"], xs)
    assert_close((ys, carry, (grads[0]["params"]["weights"], grads[1])), wanted)


@pytest.mark.exhaustive
def test_as_linen_trains_inside_a_linen_model(xs, key):
    class Model(nn.Module):
        @nn.compact
        def __call__(self, xs):
            return nn.Dense(1, param_dtype=jnp.float64)(
                nn.RNN(as_linen(tbptt.Elman(D, 4)), time_major=True)(xs)
            )

    @jax.jit
    def draw_and_differentiate(key):
        ys, variables = Model().init_with_output(key, xs)
        return ys, jax.grad(lambda v: jnp.sum(Model().apply(v, xs) ** 2))(variables)

    ys, grads = draw_and_differentiate(key)
    assert ys.shape == (T, B, 1)
    assert all(np.max(np.abs(g)) > 0 for g in jax.tree.leaves(grads))


@pytest.mark.exhaustive
def test_truncated_bptt_takes_a_flax_cell(key):
    cell, readout = FLAX["linen"], nn.Dense(1, param_dtype=jnp.float64)
    params = drawn(lambda key: tbptt.init_params(key, cell, readout), key)
    inputs = np.random.default_rng(2).normal(size=(8, B, D))
    batch = tbptt.Batch(inputs, np.cumsum(inputs, axis=0)[..., :1])
    loss_fn = tbptt.sequence_loss(cell, readout, tbptt.squared_error)
    estimator = tbptt.truncated_bptt(loss_fn, k1=2, k2=4)
    carry = jax.tree.map(
        lambda a: np.zeros(a.shape, a.dtype), jax.eval_shape(lambda: cell.initial_carry((B,)))
    )
    got = jax.jit(
        lambda params: estimator.estimate(params, estimator.init(params, carry, batch), batch)
    )(params)
    loss, grads = oracle.truncated(loss_fn, params, carry, batch, 2, 4)
    assert_close((got.loss, got.grads), (np.asarray(loss), grads))
    assert all(np.max(np.abs(g)) > 1e-3 for g in jax.tree.leaves(grads))


def test_masks_resets_and_reverse_work_on_a_flax_cell(xs, key):
    cell = FLAX["linen"]
    params = drawn(cell.init, key)
    resets, mask = np.zeros((T, B), bool), np.ones((T, B), bool)
    resets[3], mask[5] = True, False
    kept = np.array([3, 4, 6])

    @jax.jit
    def run(params, xs):
        unroll = functools.partial(tbptt.unroll, cell, params, cell.initial_carry((B,)))
        runs = (
            unroll(xs, resets=resets, mask=mask),
            unroll(xs[kept]),
            unroll(xs, reverse=True),
            unroll(xs[::-1]),
        )
        return [ys for _, ys in runs]

    flagged, after, backwards, flipped = map(
        np.asarray, run(params, np.where(mask[..., None], xs, 9.0))
    )
    assert_close(flagged[kept], after)
    assert not np.any(flagged[5]) and np.all(flagged[:3] != 0)
    assert_close(backwards[::-1], flipped)


def test_a_model_of_ones_own_in_nnx_is_differentiated_by_every_window():
    """nnx checks where its variables were made: inside of a scan and a cond, they are made anew."""

    class Model(nnx.Module):
        def __init__(self, rngs):
            cell = nnx.SimpleCell(2, 4, rngs=rngs, param_dtype=float, dtype=float)
            self.rnn = nnx.RNN(cell, time_major=True, return_carry=True)
            self.readout = nnx.Linear(4, 1, rngs=rngs, param_dtype=float)

        def __call__(self, carry, xs):
            carry, ys = self.rnn(xs, initial_carry=carry)
            return carry, self.readout(ys)

    graphdef, params, rest = nnx.split(Model(nnx.Rngs(0)), nnx.Param, ...)

    def loss_fn(params, carry, batch):
        carry, outputs = nnx.merge(graphdef, params, rest)(carry, batch.inputs)
        return jnp.sum((outputs - batch.targets) ** 2), carry

    draw = np.random.default_rng(0).normal
    batch = tbptt.Batch(draw(size=(8, 3, 2)), draw(size=(8, 3, 1)))
    carry = np.zeros((3, 4))

    @jax.jit
    def gradients(params):
        estimators = tbptt.full_bptt(loss_fn), tbptt.truncated_bptt(loss_fn, 2, 8)
        outs = [e.estimate(params, e.init(params, carry, batch), batch) for e in estimators]
        return [jax.tree.leaves(out.grads) for out in outs]

    want, got = gradients(params)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
