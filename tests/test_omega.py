"""Pascanu's Omega: closed forms, error signals by independent differentiation, and the gradient of its direct part."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tbptt.cells import GRU, LSTM, Elman, Stack
from tbptt.estimators import full_bptt, truncated_bptt
from tbptt.objectives import init_params, sequence_loss, squared_error
from tbptt.omega import norm_preserving, omega_terms
from tbptt.types import Batch
from tbptt.windows import split

T, B, D, H = 6, 2, 2, 3
READOUT = nn.Dense(1, param_dtype=jnp.float64)


def linear(a):
    return a


def setting(cell, key, scale=1.0):
    k_x, k_y, k_p = jax.random.split(key, 3)
    xs, ys = jax.random.normal(k_x, (T, B, cell.input_dim)), jax.random.normal(k_y, (T, B, 1))
    return jax.tree.map(lambda p: scale * p, init_params(k_p, cell, READOUT)), cell.initial_carry((B,)), Batch(xs, ys)


@functools.partial(jax.jit, static_argnums=0, static_argnames="embedding")
def omega(cell, params, carry, batch, embedding=None):
    """Omega alone: what norm_preserving adds to the plain loss at strength 1."""
    plain = sequence_loss(cell, READOUT, squared_error, embedding=embedding)
    added = norm_preserving(cell, READOUT, squared_error, 1.0, embedding=embedding)
    return added(params, carry, batch)[0] - plain(params, carry, batch)[0]


with_slopes = jax.jit(jax.value_and_grad(omega, argnums=(1, 2)), static_argnums=0)  # by params and carry


@pytest.mark.parametrize("c", [1.0, 0.5, 1.3])
def test_a_multiple_of_an_orthogonal_matrix(c, key):
    cell = Elman(D, H, activation=linear, gain=c)
    params, carry, batch = setting(cell, key)
    value, (by_params, _) = with_slopes(cell, params, carry, batch)
    np.testing.assert_allclose(value, T * B * (c - 1) ** 2, atol=1e-12)
    # There the signals do not matter, so it is additive over time; and one step of it is one term.
    pieces = 0.0
    for piece in split(batch, 1, 4):
        pieces += omega(cell, params, carry, piece)
    np.testing.assert_allclose(pieces, T * B * (c - 1) ** 2, atol=1e-12)
    # d/dw_h of (|s W^T| / |s| - 1)^2 for c Q: the step down the gradient brings c towards 1.
    if c != 1:
        g = by_params.cell.w_h
        assert np.sign(jnp.sum(g * params.cell.w_h)) == np.sign(c - 1)


def test_a_tanh_step_by_the_papers_formula(key):
    # (|dE/dh W^T diag(1 - h^2)| / |dE/dh| - 1)^2, with h row vectors and dE/dh by differentiating the rest of the run.
    cell = Elman(D, H, gain=1.4)
    params, carry, batch = setting(cell, key)
    hs = [carry.h]
    for x in batch.inputs:
        hs.append(jnp.tanh(hs[-1] @ params.cell.w_h + x @ params.cell.w_x + params.cell.b))
    want = 0.0
    for t in range(T):

        def rest(h, t=t):  # all losses from the one that reads h_{t+1} on
            total = 0.0
            for s in range(t, T):
                if s > t:
                    h = jnp.tanh(h @ params.cell.w_h + batch.inputs[s] @ params.cell.w_x + params.cell.b)
                total += jnp.sum((READOUT.apply(params.readout, h) - batch.targets[s]) ** 2)
            return total

        s = jax.grad(rest)(hs[t + 1])
        back = (s * (1 - hs[t + 1] ** 2)) @ params.cell.w_h.T
        want += jnp.sum((jnp.linalg.norm(back, axis=-1) / jnp.linalg.norm(s, axis=-1) - 1) ** 2)
    np.testing.assert_allclose(omega(cell, params, carry, batch), want, rtol=1e-11)


CELLS = {
    "elman": Elman(D, H),
    "gru": GRU(D, H),
    "lstm": LSTM(D, H),
    "stack": Stack((LSTM(D, H), GRU(H, 2))),
    "1": GRU(1, 1),
}


def signals_by_nudging(cell, params, carry, batch):
    """(carries, s_{t+1}): h_{t+1} moved by itself, in the run and in the output that is read from it."""

    def total(nudges):
        c, loss = carry, 0.0
        for t in range(T):
            c, _ = cell(params.cell, c, batch.inputs[t])
            c = jax.tree.map(lambda a, n, t=t: a + n[t], c, nudges)
            h = (c[-1] if isinstance(cell, Stack) else c).h
            loss += jnp.sum((READOUT.apply(params.readout, h) - batch.targets[t]) ** 2)
        return loss

    carries, c = [], carry
    for x in batch.inputs:
        carries.append(c)
        c, _ = cell(params.cell, c, x)
    zeros = jax.tree.map(lambda a: jnp.zeros((T, *a.shape)), carry)
    return jax.tree.map(lambda *a: jnp.stack(a), *carries), jax.grad(total)(zeros)


@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)
def test_any_cell_against_jacobians_and_finite_differences_of_the_direct_part(cell, key):
    params, carry, batch = setting(cell, key, 1.5)
    carries, signals = jax.jit(functools.partial(signals_by_nudging, cell))(params, carry, batch)

    @jax.jit
    def direct(p):  # signals, carries and inputs constant: the rows s J by forward differentiation, no vjp
        def term(at, s, x):
            pull = jax.jacfwd(lambda c: sum(jax.tree.leaves(jax.tree.map(jnp.vdot, s, cell(p, c, x)[0]))))(at)
            norms = [jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(v))) for v in (pull, s)]
            return (norms[0] / norms[1] - 1) ** 2

        return jnp.sum(jax.vmap(jax.vmap(term))(carries, signals, batch.inputs))

    value, (grads, through_the_carry) = with_slopes(cell, params, carry, batch)
    np.testing.assert_allclose(value, direct(params.cell), rtol=1e-10)
    for part in (grads.readout, grads.embedding):
        assert all(not np.any(leaf) for leaf in jax.tree.leaves(part))
    direction = jax.tree.map(lambda p: jax.random.normal(jax.random.key(7), p.shape), params.cell)
    ahead, behind = (jax.tree.map(lambda p, d, e=e: p + e * d, params.cell, direction) for e in (1e-5, -1e-5))
    slope = (direct(ahead) - direct(behind)) / 2e-5
    got = sum(jnp.vdot(g, d) for g, d in zip(jax.tree.leaves(grads.cell), jax.tree.leaves(direction), strict=True))
    np.testing.assert_allclose(got, slope, rtol=1e-6)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(through_the_carry))


def test_masked_and_reset_steps_are_left_out(key):
    cell = LSTM(D, H)
    params, carry, batch = setting(cell, key)
    mask = jnp.ones((T, B), bool).at[4:].set(False)
    nan = batch._replace(inputs=batch.inputs.at[4:].set(jnp.nan), targets=batch.targets.at[4:].set(jnp.nan), mask=mask)
    short = jax.tree.map(lambda a: a[:4], batch)
    (masked, (masked_grads, _)), (value, (grads, _)) = (with_slopes(cell, params, carry, b) for b in (nan, short))
    np.testing.assert_allclose(masked, value, rtol=1e-11)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-14), masked_grads, grads)
    resets = jnp.zeros((T, B), bool).at[3].set(True)
    ends = [jax.tree.map(lambda a, s=s: a[s], batch) for s in (slice(0, 3), slice(3, T))]
    fresh = [omega(cell, params, carry, end) for end in ends]
    first = omega(cell, params, carry, jax.tree.map(lambda a: a[3:], batch)._replace(resets=resets[3:]))
    whole = omega(cell, params, carry, batch._replace(resets=resets))
    np.testing.assert_allclose(whole, fresh[0] + first, rtol=1e-11)
    assert float(first) < float(fresh[1]) - 1e-3  # the term of the reset step itself is gone


def test_no_error_signal_no_term(key):
    cell = Elman(D, H, gain=0.5)
    params, carry, batch = setting(cell, key)
    early = batch._replace(weights=jnp.ones((T, B)).at[2:].set(0))
    two = jax.tree.map(lambda a: a[:2], batch)
    np.testing.assert_allclose(omega(cell, params, carry, early), omega(cell, params, carry, two), rtol=1e-11)
    silent = params._replace(readout=jax.tree.map(jnp.zeros_like, params.readout))  # the loss ignores the carry
    value, (grads, _) = with_slopes(cell, silent, carry, batch)
    assert value == 0 and all(np.all(leaf == 0) for leaf in jax.tree.leaves(grads))


def test_tiny_signals_in_float32_keep_their_direction():
    cell = Elman(1, 2, activation=linear, dtype=jnp.float32)
    params = cell.init(jax.random.key(0))._replace(w_h=0.5 * jnp.eye(2, dtype=jnp.float32))
    zeros = jax.tree.map(lambda a: jnp.zeros((3, *a.shape), a.dtype), cell.initial_carry((1,)))
    for size in (1e-30, 1.0, 1e30):
        signals = jax.tree.map(lambda a, s=size: a + jnp.float32(s), zeros)
        terms, grads = jax.value_and_grad(
            lambda p, s=signals: jnp.sum(omega_terms(cell, p, zeros, jnp.zeros((3, 1, 1), jnp.float32), s))
        )(params)
        np.testing.assert_allclose(terms, 3 * 0.25, rtol=1e-6)
        assert np.all(np.isfinite(grads.w_h)) and np.any(grads.w_h)


def test_carries_inputs_and_signals_are_constants(key):
    cell = GRU(D, H)
    params, carry, batch = setting(cell, key)
    carries = jax.tree.map(lambda a: jnp.ones((T, *a.shape)), carry)
    args = (carries, batch.inputs, carries)
    grads = jax.grad(lambda a: jnp.sum(omega_terms(cell, params.cell, *a)))(args)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(grads))


def test_estimators_take_it_and_embeddings_too(key):
    cell = GRU(D, H)
    params, carry, batch = setting(cell, key)
    loss = norm_preserving(cell, READOUT, squared_error, 0.7)
    whole = jax.jit(full_bptt(loss).estimate)(params, carry, batch)
    plain = jax.jit(full_bptt(sequence_loss(cell, READOUT, squared_error)).estimate)(params, carry, batch)
    add = with_slopes(cell, params, carry, batch)[1][0]
    share = 0.7 / (T * B)
    jax.tree.map(
        lambda a, b, c: np.testing.assert_allclose(a, b + share * c, rtol=1e-9, atol=1e-14), whole.grads, plain.grads, add
    )
    cut = jax.jit(truncated_bptt(loss, 2, 4).estimate)
    memory = truncated_bptt(loss, 2, 4).init(params, carry, batch)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(cut(params, memory, batch).grads))
    embedding = nn.Embed(5, D, param_dtype=jnp.float64)
    params = init_params(key, cell, READOUT, embedding)
    symbols = jax.random.randint(key, (T, B), 0, 5)
    embedded = embedding.apply(params.embedding, symbols)
    got = omega(cell, params, carry, batch._replace(inputs=symbols), embedding=embedding)
    np.testing.assert_allclose(got, omega(cell, params, carry, batch._replace(inputs=embedded)), rtol=1e-11)


def test_one_step_nan_and_integers(key):
    cell = GRU(D, H)
    params, carry, batch = setting(cell, key)
    one = jax.tree.map(lambda a: a[:1], batch)
    assert float(omega(cell, params, carry, one)) > 0
    broken = params._replace(cell=params.cell._replace(b=params.cell.b * jnp.nan))
    assert np.isnan(norm_preserving(cell, READOUT, squared_error, 1.0)(broken, carry, batch)[0])

    class Counting(GRU):
        def initial_carry(self, batch_shape=()):
            return super().initial_carry(batch_shape), jnp.zeros(batch_shape, int)

        def __call__(self, params, carry, x):
            new, y = super().__call__(params, carry[0], x)
            return (new, carry[1] + 1), y

    counting = Counting(D, H)
    with pytest.raises(TypeError, match=r"carry\[1\] is int"):
        norm_preserving(counting, READOUT, squared_error, 1.0)(params, counting.initial_carry((B,)), batch)
