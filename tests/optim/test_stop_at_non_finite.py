"""stop_at_non_finite records the leaf, the update and the stage; nothing is raised inside jit."""

import jax
import numpy as np
import optax
import pytest

from tbptt.estimators import full_bptt
from tbptt.optim import (
    StopState,
    clip_by_global_norm,
    raise_if_non_finite,
    stop_at_non_finite,
    with_clip_stats,
)
from tbptt.training import init_state, make_train_epoch
from tbptt.types import Batch
from tests.support.bad_numbers import (
    ADAM,
    LEAVES,
    PARAMS,
    assert_equal,
    cast,
    jitted,
    linear_loss,
    one_dtype,
    started,
    updating,
    with_value,
)
from tests.support.sequences import steps_of


@one_dtype
def test_stop_names_every_leaf_and_the_update(dtype):
    params, optimizer = cast(dtype), optax.chain(clip_by_global_norm(1.0), stop_at_non_finite(ADAM))
    step, g, first = jitted(optimizer), cast(dtype, 1 / 100), started(optimizer, params)
    for leaf, name in enumerate(LEAVES):
        for value in (np.nan, np.inf):
            now, state = step(params, first, g)
            raise_if_non_finite(state, now)
            assert (int(state[1].seen), int(state[1].bad_update), int(state[1].first_bad_leaf)) == (
                1,
                -1,
                -1,
            )
            bad = with_value(with_value(g, len(LEAVES) - 1, value), leaf, value)
            later, stopped = now, state
            for again in (
                bad,
                g,
                with_value(g, 0, np.nan),
            ):  # it remains stopped, and records the first
                later, stopped = step(later, stopped, again)
                assert_equal((later, stopped[1].inner), (now, state[1].inner))
                got = [
                    stopped[1].seen,
                    stopped[1].bad_update,
                    stopped[1].first_bad_leaf,
                    stopped[1].bad_stage,
                ]
                assert list(map(int, got)) == [1, 1, leaf, 0]
            with pytest.raises(FloatingPointError) as caught:
                raise_if_non_finite(stopped, later)
            assert f"the gradient of {name} is not finite at update 1 (counted from 0)" in str(
                caught.value
            )
    assert LEAVES[1] == ".cell.w_h"


def test_stop_names_the_stage_and_needs_a_stop():
    p = {"a": np.ones(2, np.float32), "b": np.ones(2, np.float32)}
    huge = p | {"b": np.full(2, 1e30, np.float32)}
    for optimizer, message in (
        (
            optax.sgd(1e20),
            r"the update of \['b'\] \(its gradient was finite\) is not finite at update 0",
        ),
        (optax.adam(1e-3), "the optimizer's state is not finite at update 0"),
        (optax.sgd(1.0), None),
    ):
        init, update = updating(stop_at_non_finite(optimizer))
        updates, state = update(huge, init(p), p)
        if message is None:
            raise_if_non_finite(state, p)
            continue
        assert not np.any(updates["a"])
        with pytest.raises(FloatingPointError, match=message):
            raise_if_non_finite((state,), p)
    # a transformation inside that spreads the NaN: the gradient's leaf is named, not the spread
    init, update = updating(
        stop_at_non_finite(
            optax.chain(with_clip_stats(optax.clip_by_global_norm(1.0)), optax.sgd(1.0))
        )
    )
    _, state = update(with_value(p, 1, np.nan), init(p), p)
    with pytest.raises(FloatingPointError, match=r"the gradient of \['b'\]"):
        raise_if_non_finite(state, p)
    with pytest.raises(ValueError, match="must be wrapped in stop_at_non_finite"):
        raise_if_non_finite(jax.eval_shape(optax.adam(1.0).init, p), p)


def test_stop_within_a_compiled_epoch():
    batch = Batch(np.random.default_rng(1).normal(size=(12, 2, 2)), np.ones((12, 2, 1)))
    targets = batch.targets.copy()
    targets[5] = np.nan  # in the second of three chunks
    estimator = full_bptt(linear_loss)
    optimizer = optax.chain(clip_by_global_norm(1e-2), stop_at_non_finite(ADAM))
    epoch = make_train_epoch(estimator, optimizer, 4)
    start = jax.jit(lambda: init_state(estimator, optimizer, PARAMS, (), batch))
    first, _ = epoch(start(), steps_of(batch, 0, 4))
    state, metrics = epoch(start(), batch._replace(targets=targets))
    assert metrics.non_finite.tolist() == [False, True, False] and metrics.clipped.tolist() == [
        True,
        False,
        True,
    ]
    assert_equal((state.params, state.opt_state[1].inner), (first.params, first.opt_state[1].inner))
    assert isinstance(state.opt_state[1], StopState)
    with pytest.raises(
        FloatingPointError, match=r"the gradient of \.cell\.w_x is not finite at update 1 "
    ):
        raise_if_non_finite(state.opt_state, state.params)
    raise_if_non_finite(first.opt_state, first.params)
