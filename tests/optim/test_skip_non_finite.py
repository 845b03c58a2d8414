"""skip_non_finite ignores non-finite updates, also where optax.apply_if_finite accepts them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tbptt.optim import clip_by_global_norm, skip_non_finite
from tests.support.bad_numbers import (
    ADAM,
    LEAVES,
    VALUES,
    assert_equal,
    cast,
    finite,
    jitted,
    one_dtype,
    started,
    updating,
    with_value,
)


@one_dtype
def test_clip_then_skip_at_every_value_in_every_leaf(dtype):
    optimizer = optax.chain(clip_by_global_norm(1.0), skip_non_finite(ADAM))
    step, params = jitted(optimizer), cast(dtype)
    state = started(optimizer, params)
    small, skips, row = cast(dtype, 1 / 100), 0, 0
    for leaf in range(len(LEAVES)):
        for n, (value, entries) in enumerate(VALUES, start=leaf * len(VALUES) + 1):
            g = with_value(small, leaf, value, entries)
            before, inner = params, state[1].inner
            params, state = step(params, state, g)
            bad = not finite(g)
            skips, row = skips + bad, (row + 1) * bad
            counts = [
                state[1].skipped,
                state[1].skipped_in_a_row,
                state[1].skip_count,
                state[0].non_finite_count,
            ]
            assert (
                list(map(int, counts)) == [bad, row, skips, skips]
                and int(state[0].update_count) == n
            )
            assert bool(state[0].clipped) == (not bad and value > 1)
            if bad:
                assert_equal((params, state[1].inner), (before, inner))
            else:
                assert int(state[1].inner[0].count) == n - skips
                assert any(
                    np.any(np.asarray(a) != np.asarray(b))
                    for a, b in zip(*map(jax.tree.leaves, (params, before)), strict=True)
                )
            assert finite(params)
    assert skips == len(LEAVES) * (5 if dtype == jnp.float16 else 3)


def test_skipping_equals_training_without_the_bad_gradients():
    g, plain = cast(jnp.float32), optax.adamw(1e-2)
    optimizer = skip_non_finite(plain)
    steps = jitted(optimizer), jitted(plain)
    ours, theirs = (g, started(optimizer, g)), (g, started(plain, g))
    for value in (0.3, np.nan, np.inf, 0.1, np.nan, -0.2):
        ours = steps[0](*ours, with_value(g, 2, value))
        theirs = steps[1](*theirs, with_value(g, 2, value)) if np.isfinite(value) else theirs
    assert_equal((ours[0], ours[1].inner), theirs)
    assert (int(ours[1].skip_count), int(ours[1].skipped_in_a_row), bool(ours[1].skipped)) == (
        3,
        0,
        False,
    )


def test_what_apply_if_finite_accepts():
    """The reason for skip_non_finite; this test fails if optax changes."""
    p, nan, huge = (np.full(2, value, np.float32) for value in (1, np.nan, 1e30))
    (init, update), (our_init, our_update) = (
        updating(wrap(optax.sgd(1.0)))
        for wrap in (lambda o: optax.apply_if_finite(o, max_consecutive_errors=2), skip_non_finite)
    )
    state, our_state, finites = init(p), our_init(p), []
    for _ in range(4):
        updates, state = update(nan, state, p)
        our_updates, our_state = our_update(nan, our_state, p)
        finites.append((finite(updates), finite(our_updates)))
    assert finites == [(True, True), (True, True), (False, True), (False, True)]
    assert int(our_state.skipped_in_a_row) == 4

    half = p.astype(jnp.bfloat16)
    (init, update), (our_init, our_update) = (
        updating(wrap(optax.adam(1e-3)))
        for wrap in (lambda o: optax.apply_if_finite(o, 2), skip_non_finite)
    )
    first, ours = init(p), our_init(p)
    with pytest.raises(TypeError, match="cond"):
        update(half, first, p)
    assert jax.eval_shape(our_update, half, ours, p)[0].dtype == jnp.float32

    _, state = update(
        huge, first, p
    )  # finite; the second moment of Adam is not, and the parameters never change again
    assert bool(state.last_finite) and np.all(np.isinf(state.inner_state[0].nu))
    assert not np.any(update(p, state, p)[0])
    updates, state = our_update(huge, ours, p)
    assert not np.any(updates) and bool(state.skipped) and finite(state.inner)
    assert np.all(np.asarray(our_update(p, state, p)[0]) < 0)


def test_skip_an_update_that_overflows_and_states_of_any_kind():
    p = np.ones(2, np.float32)
    init, update = updating(skip_non_finite(optax.sgd(1e20)))
    updates, state = update(p * np.float32(1e30), init(p), p)
    assert not np.any(updates) and bool(state.skipped)
    # inf in the initial state (the best value of reduce_on_plateau) is allowed; keys are ignored
    still = optax.GradientTransformation(
        lambda p: jnp.array(jnp.inf), lambda g, state, p=None: (g, state)
    )
    noise = optax.add_noise(0.1, 0.5, key=jax.random.key(1))
    init, update = updating(
        skip_non_finite(optax.chain(still, noise, optax.contrib.reduce_on_plateau()))
    )
    updates, state = update(p, init(p), p, value=np.array(1.0))
    assert np.any(updates) and not bool(state.skipped)
    updates, state = update(p * np.float32(np.nan), state, p, value=np.array(1.0))
    assert not np.any(updates) and bool(state.skipped)


def test_adam_in_float16_needs_an_eps_above_0_in_float16():
    params, g = np.ones(2, np.float16), np.array([0.0, 0.5], np.float16)
    for eps, skips in ((1e-8, 3), (1e-4, 0)):
        optimizer = optax.chain(
            clip_by_global_norm(1.0), skip_non_finite(optax.adam(1e-3, eps=eps))
        )
        step, new, state = jitted(optimizer), params, started(optimizer, params)
        for _ in range(3):
            new, state = step(new, state, g)
        new = np.asarray(new)
        assert (
            int(state[1].skip_count) == skips and bool(new[1] < 1) == (skips == 0) and new[0] == 1
        )
    wide, optimizer = (
        params.astype(np.float32),
        skip_non_finite(optax.adam(1e-3)),
    )  # float16 gradients of float32 parameters work
    new, state = jitted(optimizer)(wide, started(optimizer, wide), g)
    assert int(state.skip_count) == 0 and np.asarray(new)[1] < 1
