"""Train steps can be exported for every platform, whatever packages are installed."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tbptt
from tbptt.optim import clip_by_global_norm
from tests.support.sequences import sequence_params, zero_carry

PLATFORMS = ("cpu", "cuda", "tpu")
T = 40
ESTIMATORS = {
    "20, 20": lambda loss_fn: tbptt.truncated_bptt(loss_fn, 20, 20),
    "20, 40": lambda loss_fn: tbptt.truncated_bptt(loss_fn, 20, 40),
    "full": tbptt.full_bptt,
}
exhaustive = pytest.mark.exhaustive


@pytest.mark.parametrize(
    ("make", "estimator", "form"),
    [
        pytest.param(tbptt.GRU, "20, 20", "step", id="GRU"),
        pytest.param(tbptt.LSTM, "20, 40", "epoch", marks=exhaustive, id="LSTM, overlapping"),
        pytest.param(tbptt.GRU, "full", "step", marks=exhaustive, id="GRU, full"),
    ],
)
def test_training_is_exported_for_every_platform(make, estimator, form):
    with jax.enable_x64(False):
        cell, readout = make(3, 8), nn.Dense(1)
        optimizer = optax.chain(clip_by_global_norm(1.0), optax.adam(1e-3))
        made = ESTIMATORS[estimator](tbptt.sequence_loss(cell, readout, tbptt.squared_error))
        batch = tbptt.Batch(np.ones((T, 4, 3), np.float32), np.ones((T, 4, 1), np.float32))

        def begin(batch):
            params = tbptt.init_params(jax.random.key(0), cell, readout)
            return tbptt.init_state(made, optimizer, params, cell.initial_carry((4,)), batch), batch

        leaves, tree = jax.tree.flatten(jax.eval_shape(begin, batch))
        train = tbptt.make_train_step(made, optimizer)
        if form == "epoch":
            train = tbptt.make_train_epoch(made, optimizer, T if estimator == "full" else 20)

        def run(*leaves):  # jax.export serialises no NamedTuple that it does not know
            return jax.tree.leaves(train(*jax.tree.unflatten(tree, leaves)))

        exported = jax.export.export(jax.jit(run), platforms=PLATFORMS)(*leaves)
        assert exported.platforms == PLATFORMS
        again = jax.export.deserialize(exported.serialize())
        assert [out.shape for out in again.out_avals] == [out.shape for out in exported.out_avals]


def test_a_served_step_equals_one_prediction_of_the_whole_sequence():
    cell, readout = tbptt.LSTM(3, 4), nn.Dense(2, param_dtype=float)
    params = jax.tree.map(jnp.asarray, sequence_params(cell, readout))
    xs = np.random.default_rng(0).normal(size=(7, 2, 3))
    carry = zero_carry(cell, (2,))
    _, tree = jax.tree.flatten(carry)

    def step_fn(leaves, x):
        batch = tbptt.Batch(x[None], None)
        carry, outputs = tbptt.predict(cell, readout, params, tree.unflatten(leaves), batch)
        return jax.tree.leaves(carry), outputs[0]

    leaves = jax.tree.leaves(carry)
    exported = jax.export.export(jax.jit(step_fn), platforms=PLATFORMS)(leaves, xs[0])
    served, outputs = jax.export.deserialize(exported.serialize()).call, []
    for x in xs:
        leaves, output = served(leaves, x)
        outputs.append(output)
    end, want = jax.jit(functools.partial(tbptt.predict, cell, readout))(
        params, carry, tbptt.Batch(xs, None)
    )
    np.testing.assert_allclose(outputs, want, rtol=1e-12)
    jax.tree.map(np.testing.assert_allclose, leaves, jax.tree.leaves(end))
