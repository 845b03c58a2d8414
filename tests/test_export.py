"""Train steps can be exported for every platform, whatever packages are installed."""

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

import tbptt
from tbptt.optim import clip_by_global_norm

PLATFORMS = ("cpu", "cuda", "tpu")
T = 40
ESTIMATORS = {
    "20, 20": lambda loss_fn: tbptt.truncated_bptt(loss_fn, 20, 20),
    "20, 40": lambda loss_fn: tbptt.truncated_bptt(loss_fn, 20, 40),
    "full": tbptt.full_bptt,
}
ESSENTIAL = [(tbptt.GRU, "20, 20", "step")]
ALL = [
    (cell, e, form)
    for cell in (tbptt.LSTM, tbptt.GRU)
    for e in ESTIMATORS
    for form in ("step", "epoch")
]


@pytest.mark.parametrize(
    ("make", "estimator", "form"),
    [
        pytest.param(
            *each,
            marks=() if each in ESSENTIAL else pytest.mark.exhaustive,
            id=f"{each[0].__name__}-{each[1]}-{each[2]}",
        )
        for each in ALL
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
