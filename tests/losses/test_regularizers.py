"""The regularizer Omega: closed forms, error signals, and the gradient of its direct part."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tbptt.cells import GRU, LSTM, Elman, Stack
from tbptt.estimators import full_bptt
from tbptt.losses.regularizers import norm_preserving_loss, regularizer_terms
from tbptt.losses.sequence import sequence_loss, squared_error
from tbptt.types import Batch
from tests.support.sequences import cell_params, sequence_params, steps_of, zero_carry

T, B, D, H = 6, 2, 2, 3
READOUT = nn.Dense(1, param_dtype=jnp.float64)

# Exactly 0 in recent versions of jax; older ones sum in another order and leave 3e-16.
ROUNDING = 0 if tuple(map(int, jax.__version__.split(".")[:2])) >= (0, 10) else 1e-15


def vanishes(tree):
    return all(np.max(np.abs(leaf), initial=0) <= ROUNDING for leaf in jax.tree.leaves(tree))


def linear(a):
    return a


def setting(cell, scale=1.0):
    """Return (params, carry, batch). All flags are given, so that a cell needs one program."""
    random = np.random.default_rng(0)
    xs, ys = random.normal(size=(T, B, cell.input_dim)), random.normal(size=(T, B, 1))
    batch = Batch(xs, ys, np.ones((T, B)), np.zeros((T, B), bool), np.ones((T, B), bool))
    params = jax.tree.map(lambda p: scale * p, sequence_params(cell, READOUT, shift=0.05))
    return params, zero_carry(cell, (B,)), batch


@functools.partial(jax.jit, static_argnums=0, static_argnames="embedding")
def regularizer(cell, params, carry, batch, embedding=None):
    """Return Omega, what norm_preserving_loss adds to the plain loss at strength 1."""
    plain = sequence_loss(cell, READOUT, squared_error, embedding=embedding)
    added = norm_preserving_loss(cell, READOUT, squared_error, 1.0, embedding=embedding)
    return added(params, carry, batch)[0] - plain(params, carry, batch)[0]


with_slopes = jax.jit(
    jax.value_and_grad(regularizer, argnums=(1, 2)), static_argnums=0
)  # by params and carry


ELMAN = Elman(D, H)


def test_a_multiple_of_an_orthogonal_matrix():
    cell = Elman(D, H, activation=linear)  # w_h is orthogonal
    drawn, carry, batch = setting(cell)
    orthogonal = cell_params(cell).w_h
    for c in (1.0, 0.5, 1.3):
        params = drawn._replace(cell=drawn.cell._replace(w_h=c * orthogonal))
        value, (by_params, _) = with_slopes(cell, params, carry, batch)
        np.testing.assert_allclose(value, T * B * (c - 1) ** 2, atol=1e-12)
        # Here the signals do not matter, so Omega is additive over time, and one step is one term.
        for t in range(T):
            only = batch._replace(mask=np.arange(T)[:, None] == np.full((1, B), t))
            step, _ = with_slopes(cell, params, carry, only)
            np.testing.assert_allclose(step, B * (c - 1) ** 2, atol=1e-12)
        # d/dw_h of (|s W^T| / |s| - 1)^2 for c Q: a gradient step moves c towards 1.
        if c != 1:
            assert np.sign(np.sum(np.asarray(by_params.cell.w_h) * params.cell.w_h)) == np.sign(
                c - 1
            )


def test_a_tanh_step_equals_the_formula_of_the_paper():
    # (|dE/dh W^T diag(1 - h^2)| / |dE/dh| - 1)^2, with row vectors h and dE/dh by jax.grad.
    cell, half = ELMAN, T // 2
    params, carry, batch = setting(cell, 1.4)
    batch = steps_of(batch, 0, half)

    @jax.jit
    def by_formula(params, h, batch):
        def after(h, x):
            return jnp.tanh(h @ params.cell.w_h + x @ params.cell.w_x + params.cell.b)

        hs = [h]
        for x in batch.inputs:
            hs.append(after(hs[-1], x))
        want = 0.0
        for t in range(half):

            def rest(h, t=t):  # all losses from the one that reads h_{t+1} on
                total = 0.0
                for s in range(t, half):
                    h = after(h, batch.inputs[s]) if s > t else h
                    total += jnp.sum((READOUT.apply(params.readout, h) - batch.targets[s]) ** 2)
                return total

            s = jax.grad(rest)(hs[t + 1])
            back = (s * (1 - hs[t + 1] ** 2)) @ params.cell.w_h.T
            want += jnp.sum((jnp.linalg.norm(back, axis=-1) / jnp.linalg.norm(s, axis=-1) - 1) ** 2)
        return want

    got, want = with_slopes(cell, params, carry, batch)[0], by_formula(params, carry.h, batch)
    np.testing.assert_allclose(got, want, rtol=1e-11)


def signals_by_perturbation(cell, params, carry, batch):
    """Return (carries, s_{t+1}), by a perturbation of h_{t+1} and of the output read from it."""

    def total(perturbations):
        def step(c, given):
            x, target, perturbation = given
            c = jax.tree.map(jnp.add, cell(params.cell, c, x)[0], perturbation)
            h = (c[-1] if isinstance(cell, Stack) else c).h
            return c, (c, jnp.sum((READOUT.apply(params.readout, h) - target) ** 2))

        _, (after, losses) = jax.lax.scan(step, carry, (batch.inputs, batch.targets, perturbations))
        return jnp.sum(losses), after

    zeros = jax.tree.map(lambda a: jnp.zeros((T, *a.shape)), carry)
    signals, after = jax.grad(total, has_aux=True)(zeros)
    return jax.tree.map(
        lambda first, rest: jnp.concatenate([first[None], rest[:-1]]), carry, after
    ), signals


EACH = [
    pytest.param(LSTM(D, H), id="lstm"),
    pytest.param(Stack((LSTM(D, H), GRU(H, 2))), id="stack", marks=pytest.mark.exhaustive),
    pytest.param(GRU(1, 1), id="1", marks=pytest.mark.exhaustive),
]


@pytest.mark.parametrize("cell", EACH)
def test_any_cell_against_jacobians_and_finite_differences_of_the_direct_part(cell):
    params, carry, batch = setting(cell, 1.5)
    carries, signals = jax.jit(functools.partial(signals_by_perturbation, cell))(
        params, carry, batch
    )

    @jax.jit
    def direct(
        p, carries, signals, inputs
    ):  # signals, carries and inputs constant: the rows s J by forward differentiation, no vjp
        def term(at, s, x):
            pull = jax.jacfwd(
                lambda c: sum(jax.tree.leaves(jax.tree.map(jnp.vdot, s, cell(p, c, x)[0])))
            )(at)
            norms = [
                jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(v))) for v in (pull, s)
            ]
            return (norms[0] / norms[1] - 1) ** 2

        return jnp.sum(jax.vmap(jax.vmap(term))(carries, signals, inputs))

    constant = carries, signals, batch.inputs

    value, (grads, through_the_carry) = with_slopes(cell, params, carry, batch)
    np.testing.assert_allclose(value, direct(params.cell, *constant), rtol=1e-10)
    for part in (grads.readout, grads.embedding):
        assert vanishes(part)
    direction = jax.tree.map(lambda p: np.random.default_rng(7).normal(size=p.shape), params.cell)
    ahead, behind = (
        jax.tree.map(lambda p, d, e=e: p + e * d, params.cell, direction) for e in (1e-5, -1e-5)
    )
    slope = (float(direct(ahead, *constant)) - float(direct(behind, *constant))) / 2e-5
    got = sum(
        np.vdot(g, d)
        for g, d in zip(jax.tree.leaves(grads.cell), jax.tree.leaves(direction), strict=True)
    )
    np.testing.assert_allclose(got, slope, rtol=1e-6)
    assert vanishes(through_the_carry)


def test_masked_and_reset_steps_have_no_term():
    cell, half = ELMAN, T // 2
    params, carry, batch = setting(cell)
    mask, resets = np.ones((T, B), bool), np.zeros((T, B), bool)
    mask[half:], resets[half] = False, True
    holes = np.where(mask, 0, np.nan)[..., None]
    nan = batch._replace(inputs=batch.inputs + holes, targets=batch.targets + holes, mask=mask)
    early, late = steps_of(batch, 0, half), steps_of(batch, half, T)
    (masked, (masked_grads, _)), (value, (grads, _)) = (
        with_slopes(cell, params, carry, b) for b in (nan, early)
    )
    np.testing.assert_allclose(masked, value, rtol=1e-11)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-14), masked_grads, grads
    )
    batches = late, late._replace(resets=resets[half:]), batch._replace(resets=resets)
    fresh, first, whole = (float(with_slopes(cell, params, carry, b)[0]) for b in batches)
    np.testing.assert_allclose(whole, float(value) + first, rtol=1e-11)
    assert first < fresh - 1e-3  # there is no term for the reset step


def test_no_error_signal_no_term():
    cell, half = ELMAN, T // 2
    params, carry, batch = setting(cell)
    weights = np.ones((T, B))
    weights[half:] = 0
    early, two = batch._replace(weights=weights), steps_of(batch, 0, half)
    value, want = (with_slopes(cell, params, carry, b)[0] for b in (early, two))
    np.testing.assert_allclose(value, want, rtol=1e-11)
    silent = params._replace(
        readout=jax.tree.map(np.zeros_like, params.readout)
    )  # the loss ignores the carry
    value, (grads, _) = with_slopes(cell, silent, carry, batch)
    assert value == 0 and vanishes(grads)


def test_tiny_signals_in_float32_keep_their_direction():
    cell = Elman(1, 2, activation=linear, dtype=jnp.float32)
    params = cell_params(cell)._replace(w_h=0.5 * np.eye(2, dtype=np.float32))
    zeros = jax.tree.map(lambda a: np.zeros((3, *a.shape), a.dtype), zero_carry(cell, (1,)))

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=0)
    def terms_of(params, zeros, xs, signals):
        return jnp.sum(regularizer_terms(cell, params, zeros, xs, signals))

    for size in (1e-30, 1.0, 1e30):
        signals = jax.tree.map(lambda a, s=size: a + np.float32(s), zeros)
        terms, grads = terms_of(params, zeros, np.zeros((3, 1, 1), np.float32), signals)
        np.testing.assert_allclose(terms, 3 * 0.25, rtol=1e-6)
        assert np.all(np.isfinite(grads.w_h)) and np.any(grads.w_h)


def test_carries_inputs_and_signals_are_constants():
    cell = GRU(D, H)
    params, carry, batch = setting(cell)
    carries = jax.tree.map(lambda a: np.ones((T, *a.shape)), carry)
    args = (carries, batch.inputs, carries)
    grads = jax.jit(jax.grad(lambda a, p: jnp.sum(regularizer_terms(cell, p, *a))))(
        args, params.cell
    )
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(grads))


@pytest.mark.exhaustive
def test_it_works_with_full_bptt():
    cell = LSTM(D, H)
    params, carry, batch = setting(cell)
    loss, plain = (
        norm_preserving_loss(cell, READOUT, squared_error, 0.7),
        sequence_loss(cell, READOUT, squared_error),
    )

    @jax.jit
    def both(params, carry, batch):
        return [full_bptt(of).estimate(params, carry, batch).grads for of in (loss, plain)]

    share, added = 0.7 / (T * B), with_slopes(cell, params, carry, batch)[1][0]
    jax.tree.map(
        lambda a, b, c: np.testing.assert_allclose(
            a, np.asarray(b) + share * np.asarray(c), rtol=1e-9, atol=1e-14
        ),
        *both(params, carry, batch),
        added,
    )


@pytest.mark.exhaustive
def test_it_works_with_an_embedding():
    cell, embedding = GRU(D, H), nn.Embed(5, D, param_dtype=jnp.float64)
    _, carry, batch = setting(cell)
    params = sequence_params(cell, READOUT, embedding)
    symbols = np.random.default_rng(1).integers(0, 5, (T, B))
    embedded = params.embedding["params"]["embedding"][symbols]
    got = regularizer(cell, params, carry, batch._replace(inputs=symbols), embedding=embedding)
    bare = Batch(embedded, batch.targets)  # no flags are as flags without effect
    np.testing.assert_allclose(got, regularizer(cell, params, carry, bare), rtol=1e-11)


def test_one_step_nan_and_integers():
    cell = ELMAN
    params, carry, batch = setting(cell)
    loss = norm_preserving_loss(cell, READOUT, squared_error, 1.0)

    @jax.jit
    def both(params, carry, batch):
        return regularizer(cell, params, carry, batch), loss(params, carry, batch)[0]

    one = steps_of(batch, 0, 1)
    assert float(both(params, carry, one)[0]) > 0
    broken = params._replace(cell=params.cell._replace(b=params.cell.b * np.nan))
    assert np.isnan(both(broken, carry, one)[1])

    class Counting(GRU):
        backprop = None

        def initial_carry(self, batch_shape=()):
            return super().initial_carry(batch_shape), jnp.zeros(batch_shape, int)

        def __call__(self, params, carry, x):
            new, y = super().__call__(params, carry[0], x)
            return (new, carry[1] + 1), y

    counting = Counting(D, H)
    with pytest.raises(TypeError, match=r"carry\[1\] is int"):
        jax.eval_shape(
            norm_preserving_loss(counting, READOUT, squared_error, 1.0),
            sequence_params(counting, READOUT),
            zero_carry(counting, (B,)),
            batch,
        )
