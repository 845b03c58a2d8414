"""States are restored bit for bit from intact checkpoints of the same run; otherwise errors."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tbptt
from tbptt.checkpoints import (
    CheckpointDamaged,
    CheckpointMismatch,
    Checkpoints,
    newest_good,
    restore,
)
from tbptt.checkpoints import format as checkpoint_format
from tests.support.saved_states import CONFIG, bits, saved, state_of


def test_a_state_is_restored_bit_for_bit(tmp_path):
    (path,) = saved(tmp_path / "new" / "folder", 4, metrics=[0.25])

    def zeros(a):
        is_key = jnp.issubdtype(a.dtype, jax.dtypes.prng_key)
        return a if is_key else jnp.asarray(np.zeros_like(a))

    like = jax.tree.map(zeros, state_of())
    found = restore(path, like, CONFIG)
    assert bits(found.state) == bits(state_of(4)) != bits(state_of(3))
    assert jax.tree.structure(found.state) == jax.tree.structure(like)
    assert (found.step, found.position, found.metric, found.config) == (4, 40, 0.25, CONFIG)
    np.testing.assert_array_equal(
        jax.random.bits(found.state["keys"][1]), jax.random.bits(state_of()["keys"][1])
    )
    assert not [file for file in path.rglob("*") if file.suffix in (".pkl", ".pickle")]
    part = restore(path, state_of()["params"], prefix="['params']")
    assert bits(part.state) == bits(state_of(4)["params"])


def test_a_relative_path_is_valid(tmp_path, monkeypatch):
    (path,) = saved(tmp_path / "run", 2)
    monkeypatch.chdir(tmp_path)
    assert bits(restore(path.relative_to(tmp_path), state_of(), CONFIG).state) == bits(state_of(2))


def test_a_donated_state_is_saved_with_its_values_at_the_call(tmp_path):
    cell, readout = tbptt.Elman(1, 4), nn.Dense(1, param_dtype=float)
    loss_fn = tbptt.sequence_loss(cell, readout, tbptt.squared_error)
    estimator = tbptt.truncated_bptt(loss_fn, 4, 8)
    optimizer = optax.sgd(0.1, momentum=0.9)
    batch = jax.tree.map(
        jnp.asarray, tbptt.Batch(*(f(np.arange(4.0))[:, None, None] for f in (np.sin, np.cos)))
    )
    step = tbptt.make_train_step(estimator, optimizer)

    @jax.jit
    def begin(key):
        params = tbptt.init_params(jax.random.key(0), cell, readout)
        return tbptt.init_state(estimator, optimizer, params, cell.initial_carry((1,)), batch, key)

    state, like = begin(jax.random.key(1)), begin(jax.random.key(2))
    state, _ = step(state, batch)
    with Checkpoints(tmp_path, {}) as checkpoints:
        before = bits(state)
        checkpoints.save(1, state, 1)
        for _ in range(5):  # each donates the previous state while it is being written
            state, _ = step(state, batch)
        found = checkpoints.newest_good(like)
        assert bits(found.state) == before != bits(state)
        again = found.state
        for _ in range(5):
            again, _ = step(again, batch)
    assert bits(again) == bits(state)


def test_the_newest_and_the_best_are_kept(tmp_path):
    paths = saved(
        tmp_path, 1, 2, 3, 4, 5, 6, metrics=[1.0, 1.0, float("nan"), 2.0, None, 4.0], keep=2
    )
    assert [path.name for path in paths] == ["step_000000002", "step_000000005", "step_000000006"]
    assert {path.name for path in tmp_path.iterdir()} == {"lock", *(path.name for path in paths)}
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        assert (
            checkpoints.best(state_of()).step == 2 and checkpoints.newest_good(state_of()).step == 6
        )
        checkpoints.save(6, state_of(60), 61)  # replaces the checkpoint of step 6
        assert checkpoints.newest_good(state_of()).position == 61
    assert Checkpoints(tmp_path / "empty", {}).newest_good(state_of()) is None


DIFFERENT = {
    "a setting": (
        {**CONFIG, "hidden": 4},
        state_of(),
        r"step_000000001 is of another run: its config.hidden is 3, the current one is 4",
    ),
    "a nested setting": (
        {**CONFIG, "task": {"target": "b", "mean": [0.5, 1.0]}},
        state_of(),
        "config.task.target is a, the current one is b",
    ),
    "a new setting": (
        {**CONFIG, "cell": "gru"},
        state_of(),
        "config.cell is absent, the current one is gru",
    ),
    "a shape": (
        CONFIG,
        {**state_of(), "raw": jnp.zeros(3, jnp.uint32)},
        r"its leaf \['raw'\] is uint32\[2\]; expected uint32\[3\]",
    ),
    "a dtype": (
        CONFIG,
        {**state_of(), "flags": jnp.zeros(2)},
        r"its leaf \['flags'\] is bool\[2\]; expected float64\[2\]",
    ),
    "a key type": (
        CONFIG,
        {**state_of(), "key": jax.random.key(0, impl="rbg")},
        r"leaf \['key'\] is key<fry>",
    ),
    "a missing leaf": (
        CONFIG,
        {**state_of(), "absent": jnp.zeros(1)},
        r"it has no leaf \['absent'\]; expected float64\[1\]",
    ),
    "an additional leaf": (
        CONFIG,
        {**state_of(), "flags": None},
        r"it has an additional leaf \['flags'\] \(bool\[2\]\)",
    ),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_a_mismatch_is_rejected_and_the_difference_reported(what, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "refused"
    if not folder.exists():
        saved(folder, 1)
    config, like, message = DIFFERENT[what]
    with pytest.raises(CheckpointMismatch, match=message):
        newest_good(folder, like, config)


def test_another_version_is_rejected(tmp_path, monkeypatch):
    saved(tmp_path, 1)
    monkeypatch.setattr(checkpoint_format, "library_version", lambda: "9.0")
    message = rf"its tbptt is {tbptt.__version__}, the current one is 9.0. Use that version"
    with pytest.raises(CheckpointMismatch, match=message):
        newest_good(tmp_path, state_of(), CONFIG)
    monkeypatch.undo()
    monkeypatch.setattr(jax, "__version__", "9.1")  # only a warning: rounding may differ
    with pytest.warns(UserWarning, match="the current one is 9.1: rounding may differ"):
        newest_good(tmp_path, state_of(), CONFIG)


def test_bad_arguments(tmp_path):
    with pytest.raises(
        ValueError, match="keep must be the number of checkpoints to keep, an int >= 1; got 0"
    ):
        Checkpoints(tmp_path, {}, keep=0)
    with pytest.raises(TypeError, match="not JSON serializable"):
        Checkpoints(tmp_path, {"a": object()})
    with pytest.raises(CheckpointDamaged, match="there is no such checkpoint"):
        restore(tmp_path / "step_000000001", {})
