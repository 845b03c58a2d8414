"""shrink_non_finite replaces non-finite and huge gradients only."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tbptt.cells import DiagonalLinear, Elman, GRUResetBefore
from tbptt.optim import clip_by_global_norm, leaves_named, shrink_non_finite
from tests.support.bad_numbers import (
    LEAVES,
    VALUES,
    assert_equal,
    cast,
    finite,
    jitted,
    one_dtype,
    started,
    with_value,
)


@one_dtype
def test_shrink_at_every_value_in_every_leaf(dtype):
    params, shrink = cast(dtype), shrink_non_finite()
    update, state, replaced = jax.jit(shrink.update), started(shrink, params), 0
    pascanu = jax.tree.map(np.zeros_like, params)
    shrunk = (np.asarray(0.02, dtype) * params.cell.w_h).astype(dtype)
    pascanu = pascanu._replace(cell=pascanu.cell._replace(w_h=shrunk))
    for leaf in range(len(LEAVES)):
        for value, entries in VALUES:
            g = with_value(params, leaf, value, entries)
            new, state = update(g, state, params)
            should = not finite(g) or value > 1e10
            replaced += should
            assert (bool(state.shrunk), int(state.shrink_count)) == (should, replaced)
            assert_equal(new, pascanu if should else g)
    assert replaced == 5 * len(LEAVES)


def test_only_the_recurrent_weights_shrink():
    params = cast(jnp.float32)
    optimizer = optax.chain(
        shrink_non_finite(0.1, jnp.inf), clip_by_global_norm(100.0), optax.sgd(0.5)
    )
    step, state = jitted(optimizer), started(optimizer, params)
    new, _ = step(params, state, with_value(params, 0, np.inf))
    np.testing.assert_allclose(new.cell.w_h, 0.95 * params.cell.w_h, rtol=1e-6)
    assert_equal(new._replace(cell=new.cell._replace(w_h=params.cell.w_h)), params)
    _, large = step(params, state, with_value(params, 0, 3e38))
    assert not bool(large[0].shrunk)  # max_norm = inf: only what is not finite
    # parameters that are NaN themselves remain NaN
    broken = with_value(params, 1, np.nan)
    assert np.isnan(step(broken, state, broken)[0].cell.w_h).any()


def test_leaves_are_chosen_by_name():
    def chosen(params, mask):
        pairs = zip(
            jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(mask(params)), strict=True
        )
        return {jax.tree_util.keystr(path) for (path, _), yes in pairs if yes}

    default = inspect.signature(shrink_non_finite).parameters["mask"].default
    drawn = [
        jax.eval_shape(cell.init, jax.random.key(0))
        for cell in (Elman(1, 2), GRUResetBefore(1, 2), DiagonalLinear(1, 2))
    ]
    assert [chosen(params, default) for params in drawn] == [{".w_h"}, {".w_h", ".w_n"}, {".a"}]
    assert chosen(
        {"l": {"kernel": np.ones(1)}, "kernel": (np.ones(1),)}, leaves_named("kernel")
    ) == {"['l']['kernel']"}
    with pytest.raises(
        ValueError, match=r"selects none of the leaves \[\"\['w'\]\"\]; pass mask=leaves_named"
    ):
        shrink_non_finite().init({"w": np.ones(1)})
    shrink = shrink_non_finite(mask=leaves_named("w"))
    with pytest.raises(ValueError, match="needs the parameters"):
        shrink.update({"w": np.ones(1)}, shrink.init({"w": np.ones(1)}))
    for wrong in ((0.0, 1.0), (1.0, 0.0), (1.0, -1.0), (float("nan"), 1.0)):
        with pytest.raises(ValueError, match="fraction and max_norm must be positive"):
            shrink_non_finite(*wrong)
    shrink_non_finite(0.5, 0.5)
