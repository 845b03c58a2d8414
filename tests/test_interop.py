"""Flax's cells as ours give what flax's own RNN gives, and ours as flax's what our unroll gives."""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax import nnx

import tbptt
from tbptt.interop import LinenCell, NnxCell, as_linen
from tbptt.types import Cell

T, B, D, H = 7, 3, 2, 5

LINEN = {
    "LSTMCell": nn.LSTMCell(H, param_dtype=jnp.float64),
    "OptimizedLSTMCell": nn.OptimizedLSTMCell(H, param_dtype=jnp.float64),
    "GRUCell": nn.GRUCell(H, param_dtype=jnp.float64),
    "SimpleCell": nn.SimpleCell(H, param_dtype=jnp.float64),
}


def make_nnx(cell_type, rngs):
    return cell_type(
        D, H, dtype=jnp.float64, param_dtype=jnp.float64, rngs=rngs
    )  # SimpleCell's dtype is float32 if not given


NNX = {
    name: functools.partial(make_nnx, getattr(nnx, name))
    for name in ("LSTMCell", "OptimizedLSTMCell", "GRUCell", "SimpleCell")
}
OURS = [tbptt.Elman(D, H), tbptt.GRU(D, H), tbptt.LSTM(D, H), tbptt.Stack((tbptt.LSTM(D, 4), tbptt.GRU(4, H)))]


@pytest.fixture
def xs(key):
    return jax.random.normal(jax.random.fold_in(key, 1), (T, B, D))


def noisy(params, key):
    """Moves every parameter, biases too, off its starting value."""
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    moved = [a + 0.3 * jax.random.normal(k, a.shape, a.dtype) for a, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(structure, moved)


def assert_close(got, wanted):
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert a.dtype == b.dtype == jnp.float64
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


def through(run, params, xs):
    """Outputs, final carry, and the gradients of something that depends on all of both."""

    def objective(params, xs):
        carry, ys = run(params, xs)
        weights = jax.random.normal(jax.random.key(7), ys.shape)
        return jnp.sum(ys * weights) + sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(carry)), (carry, ys)

    grads, (carry, ys) = jax.jit(jax.grad(objective, argnums=(0, 1), has_aux=True))(params, xs)
    assert all(np.max(np.abs(g)) > 1e-3 for g in jax.tree.leaves(grads))
    return ys, carry, grads


def ours(cell):
    return lambda params, xs: tbptt.unroll(cell, params, cell.initial_carry((xs.shape[1],)), xs)


@pytest.mark.parametrize("name", LINEN)
def test_linen_cell_equals_flaxs_own_rnn(name, xs, key):
    cell = LinenCell(LINEN[name], D)
    params = noisy(cell.init(key), key)
    rnn = nn.RNN(LINEN[name], time_major=True, return_carry=True)
    wanted = through(lambda params, xs: rnn.apply({"params": {"cell": params["params"]}}, xs), params, xs)
    assert_close(through(ours(cell), params, xs), wanted)


@pytest.mark.parametrize("name", NNX)
def test_nnx_cell_equals_flaxs_own_rnn(name, xs, key):
    cell = NnxCell(NNX[name], D)
    params = noisy(cell.init(key), key)

    def flax(params, xs):
        return nnx.RNN(cell.merge(params), time_major=True, return_carry=True)(xs)

    assert_close(through(ours(cell), params, xs), through(flax, params, xs))


@pytest.mark.parametrize("name", LINEN)
def test_linen_params_are_flaxs_own_variables(name, key):
    cell = LinenCell(LINEN[name], D)
    carry = LINEN[name].initialize_carry(key, (B, D))
    wanted = LINEN[name].init(key, carry, jnp.zeros((B, D)))
    jax.tree.map(np.testing.assert_array_equal, cell.init(key), wanted)
    assert jax.tree.structure(cell.initial_carry((B,))) == jax.tree.structure(carry)


@pytest.mark.parametrize("name", NNX)
def test_nnx_params_are_the_modules_and_merge_is_the_way_back(name, key):
    cell = NnxCell(NNX[name], D)
    params = cell.init(key)
    wanted = nnx.state(NNX[name](nnx.Rngs(key)))
    jax.tree.map(np.testing.assert_array_equal, params, wanted)
    module = cell.merge(params)
    jax.tree.map(np.testing.assert_array_equal, nnx.state(module), params)
    before = jax.tree.map(np.asarray, params)
    nnx.update(module, jax.tree.map(jnp.zeros_like, params))
    jax.tree.map(np.testing.assert_array_equal, params, before)


FLAX = [LinenCell(module, D) for module in LINEN.values()] + [NnxCell(make, D) for make in NNX.values()]


@pytest.mark.parametrize("cell", FLAX, ids=[f"linen-{n}" for n in LINEN] + [f"nnx-{n}" for n in NNX])
def test_is_a_hashable_cell_and_pure_under_jit_and_vmap(cell, xs, key):
    assert isinstance(cell, Cell)
    assert (cell.input_dim, cell.hidden_dim) == (D, H)
    again = type(cell)(cell.module if isinstance(cell, LinenCell) else cell.make, D)
    assert again == cell and hash(again) == hash(cell)
    params = cell.init(key)
    assert all(leaf.dtype == jnp.float64 for leaf in jax.tree.leaves((params, cell.initial_carry((B,)))))
    wanted, jitted = ours(cell)(params, xs), jax.jit(ours(cell))
    assert_close(jitted(params, xs), wanted)

    @jax.jit
    def vmapped(params, xs):
        one = jax.vmap(lambda xs: tbptt.unroll(cell, params, cell.initial_carry(), xs), in_axes=1, out_axes=(0, 1))
        members = jax.vmap(cell.init)(jax.random.split(key, 4))
        return one(xs), members, jax.vmap(lambda params: ours(cell)(params, xs)[1])(members)

    lanes, members, ys = vmapped(params, xs)
    assert_close(lanes, wanted)
    assert_close(ys[1], jitted(jax.tree.map(lambda a: a[1], members), xs)[1])


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
        assert {leaf.dtype for leaf in jax.tree.leaves((cell.init(key), cell.initial_carry()))} == {jnp.dtype(dtype)}


@pytest.mark.parametrize("cell", OURS, ids=lambda cell: type(cell).__name__)
def test_as_linen_in_flaxs_rnn_equals_our_unroll(cell, xs, key):
    rnn = nn.RNN(as_linen(cell), time_major=True, return_carry=True)
    variables = rnn.init(key, xs)
    params = noisy(variables["params"]["cell"]["weights"], key)
    assert jax.tree.structure(params) == jax.tree.structure(cell.init(key))
    flax = through(lambda params, xs: rnn.apply({"params": {"cell": {"weights": params}}}, xs), params, xs)
    assert_close(flax, through(ours(cell), params, xs))


@pytest.mark.parametrize("cell", OURS, ids=lambda cell: type(cell).__name__)
def test_as_linen_and_back_is_the_same_cell(cell, xs, key):
    back = LinenCell(as_linen(cell), D)
    assert as_linen(cell) == as_linen(cell) and hash(back) == hash(LinenCell(as_linen(cell), D))
    assert back.hidden_dim == cell.hidden_dim
    params = noisy(back.init(key), key)
    ys, carry, grads = through(ours(back), params, xs)
    wanted = through(ours(cell), params["params"]["weights"], xs)
    assert_close((ys, carry, (grads[0]["params"]["weights"], grads[1])), wanted)


def test_as_linen_trains_inside_a_linen_model(xs, key):
    class Model(nn.Module):
        @nn.compact
        def __call__(self, xs):
            return nn.Dense(1, param_dtype=jnp.float64)(nn.RNN(as_linen(tbptt.LSTM(D, 8)), time_major=True)(xs))

    ys, variables = jax.jit(Model().init_with_output)(key, xs)
    assert ys.shape == (T, B, 1)
    grads = jax.jit(jax.grad(lambda v: jnp.sum(Model().apply(v, xs) ** 2)))(variables)
    assert all(np.max(np.abs(g)) > 0 for g in jax.tree.leaves(grads))


@pytest.mark.parametrize("cell", FLAX[:1] + FLAX[2:3] + FLAX[4:5] + FLAX[6:7])
def test_truncated_bptt_takes_a_flax_cell(cell, key):
    readout = nn.Dense(1, param_dtype=jnp.float64)
    params = tbptt.init_params(key, cell, readout)
    inputs = jax.random.normal(key, (16, B, D))
    batch = tbptt.Batch(inputs, jnp.cumsum(inputs, axis=0)[..., :1])
    loss_fn = tbptt.sequence_loss(cell, readout, tbptt.squared_error)
    estimator = tbptt.truncated_bptt(loss_fn, k1=4, k2=8)
    carry = cell.initial_carry((B,))
    got = jax.jit(estimator.estimate)(params, estimator.init(params, carry, batch), batch)

    def window(params, entering, old, new):  # the docstring's: 4 counted steps, 4 older ones replayed, the carry constant
        _, replayed = loss_fn(params, entering, old)
        return loss_fn(params, replayed, new)[0]

    first, later = jax.jit(jax.value_and_grad(loss_fn, has_aux=True)), jax.jit(jax.value_and_grad(window))
    pieces = [jax.tree.map(lambda a, i=i: a[i : i + 4], batch) for i in range(0, 16, 4)]
    (loss, _), grads = first(params, carry, pieces[0])  # nothing to replay
    for old, new in itertools.pairwise(pieces):
        more, by_params = later(params, carry, old, new)
        loss, grads = loss + more, jax.tree.map(jnp.add, grads, by_params)
        carry = first(params, carry, old)[0][1]
    assert_close((got.loss, got.grads), jax.tree.map(lambda a: a / (16 * B), (loss, grads)))


def test_masks_resets_and_reverse_work_on_a_flax_cell(xs, key):
    cell = LinenCell(LINEN["LSTMCell"], D)
    params, carry = cell.init(key), cell.initial_carry((B,))
    resets = jnp.zeros((T, B), bool).at[3].set(True)
    _, ys = tbptt.unroll(cell, params, carry, xs, resets=resets)
    assert_close(ys[3:], tbptt.unroll(cell, params, carry, xs[3:])[1])
    _, ys = tbptt.unroll(cell, params, carry, xs, reverse=True)
    assert_close(ys[::-1], tbptt.unroll(cell, params, carry, xs[::-1])[1])


class Counting(nn.RNNCellBase):
    """A linen cell with a variable that is no parameter."""

    features: int = H

    @nn.compact
    def __call__(self, carry, inputs):
        self.variable("counts", "steps", lambda: jnp.zeros(()))
        return carry, carry

    def initialize_carry(self, rng, input_shape):
        return jnp.zeros((*input_shape[:-1], self.features))

    @property
    def num_feature_axes(self):
        return 1


class NnxCounting(nnx.SimpleCell):
    def __init__(self, rngs):
        super().__init__(D, H, rngs=rngs)
        self.steps = nnx.Variable(jnp.zeros(()))


@pytest.fixture
def without_the_hook():
    """Users have no type checking hook: what they see of a wrong type is our message."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: LinenCell(nn.Dense(3), 2), TypeError, r"LinenCell\.module .*RNNCellBase.*got a Dense"),
        (lambda: LinenCell(nn.LSTMCell, 2), TypeError, r"LinenCell\.module .*got the class LSTMCell"),
        (lambda: LinenCell(nn.RNN(nn.LSTMCell(3)), 2), TypeError, r"got a RNN.*not the nn\.RNN around it"),
        (lambda: LinenCell(NNX["GRUCell"](nnx.Rngs(0)), 2), TypeError, r"got a GRUCell.*NnxCell"),
        (lambda: LinenCell(nn.LSTMCell(3), 0), ValueError, r"LinenCell\.input_dim must be .*at least 1; got 0"),
        (lambda: LinenCell(nn.LSTMCell(3), 2.0), TypeError, r"LinenCell\.input_dim must be a Python int .*got 2\.0"),
        (lambda: LinenCell(nn.ConvLSTMCell(3, (3,)), 2), ValueError, r"ConvLSTMCell with 2 feature axes"),
        (lambda: LinenCell(nn.LSTMCell(3, carry_init=Unhashable()), 2), TypeError, r"must be hashable; got a LSTMCell"),
        (lambda: LinenCell(Counting(), D).init(jax.random.key(0)), ValueError, r"Counting with \['counts'\]"),
        (lambda: NnxCell(NNX["GRUCell"](nnx.Rngs(0)), D), TypeError, r"NnxCell\.make must be a function.*got a GRUCell"),
        (lambda: NnxCell(3, D), TypeError, r"NnxCell\.make must be a function.*got a int"),
        (lambda: NnxCell(lambda rngs: nnx.Linear(D, H, rngs=rngs), D), TypeError, r"must return .*got a Linear"),
        (lambda: NnxCell(lambda rngs: nn.GRUCell(H), D), TypeError, r"must return .*a linen cell goes into LinenCell"),
        (lambda: NnxCell(NNX["GRUCell"], -1), ValueError, r"NnxCell\.input_dim must be .*at least 1; got -1"),
        (lambda: NnxCell(NNX["GRUCell"], D + 1), ValueError, r"input_dim must be the GRUCell's in_features=2; got 3"),
        (lambda: NnxCell(NnxCounting, D), ValueError, r"NnxCounting with \['steps'\]"),
        (lambda: as_linen(nn.LSTMCell(3)), TypeError, r"cell must be an instance of a tbptt Cell.*got a LSTMCell"),
        (lambda: as_linen(tbptt.Stack), TypeError, r"cell must be an instance.*got the class Stack"),
        (
            lambda: nn.RNN(as_linen(tbptt.LSTM(2, 8))).init(jax.random.key(0), jnp.zeros((4, 3))),
            ValueError,
            r"inputs must be \[\.\.\., D\] with D = LSTM\.input_dim = 2; got shape \(3,\)",
        ),
    ],
)
def test_errors_name_what_came_and_what_was_wanted(make, error, message, without_the_hook):
    with pytest.raises(error, match=message):
        make()


class Unhashable:
    __hash__ = None

    def __call__(self, key, shape, dtype):
        return jnp.zeros(shape, dtype)
