"""States are restored bit for bit from intact checkpoints of the same run; otherwise errors."""

import functools
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

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
    CheckpointNotWritten,
    Checkpoints,
    FolderInUse,
    finished,
    newest_good,
    restore,
)
from tbptt.checkpoints import format as checkpoint_format
from tests.support.damage import cut, flip

ROOT = Path(tbptt.__file__).parents[1]
CONFIG = {"hidden": 3, "task": {"target": "a", "mean": [0.5, 1.0]}}


@functools.cache
def keys():
    return {
        "key": jax.random.key(7),
        "keys": jax.random.split(jax.random.key(8, impl="rbg"), 2),
        "raw": jax.random.PRNGKey(3),
    }


def state_of(shift=0.0):
    """Return a state with leaves of every kind that estimators and optimizers use."""
    arrays = {
        "params": {
            "w": np.arange(6.0).reshape(2, 3) + shift,
            "half": np.full(3, 1 + shift, jnp.bfloat16),
        },
        "step": np.asarray(5, np.int32),
        "flags": np.array([True, False]),
        "nothing": np.zeros((0, 4)),
        "special": np.array([np.nan, np.inf, -0.0, 1e-310]),
        "absent": None,
    }
    return jax.tree.map(jnp.asarray, arrays) | keys()


def bits(tree):
    """Return every leaf as bytes, so that NaN equals itself, and -0 differs from 0."""
    words = jax.tree.map(
        lambda a: jax.random.key_data(a) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a,
        tree,
    )
    return [(a.dtype.name, a.shape, np.asarray(a).tobytes()) for a in jax.tree.leaves(words)]


def saved(folder, *steps, metrics=None, **options):
    with Checkpoints(folder, CONFIG, **options) as checkpoints:
        for index, step in enumerate(steps):
            checkpoints.save(
                step, state_of(step), 10 * step, None if metrics is None else metrics[index]
            )
    return finished(folder)


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


@pytest.mark.parametrize(
    "make",
    [
        lambda loss_fn: tbptt.truncated_bptt(loss_fn, 4, 8),
        pytest.param(
            lambda loss_fn: tbptt.adaptive_bptt(loss_fn, 4, [4, 8], 0.5, lags=4),
            marks=pytest.mark.exhaustive,
        ),
    ],
    ids=["truncated", "adaptive"],
)
def test_a_donated_state_is_saved_with_its_values_at_the_call(make, tmp_path):
    cell, readout = tbptt.Elman(1, 4), nn.Dense(1, param_dtype=float)
    estimator = tbptt.optim.reset_on_non_finite(
        make(tbptt.sequence_loss(cell, readout, tbptt.squared_error))
    )
    optimizer = optax.chain(
        tbptt.optim.with_clip_stats(optax.clip_by_global_norm(1.0)),
        tbptt.optim.skip_non_finite(optax.adam(0.1)),
    )
    batch = jax.tree.map(
        jnp.asarray, tbptt.Batch(*(f(np.arange(8.0))[:, None, None] for f in (np.sin, np.cos)))
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


DAMAGES = {
    "cut": (cut, "has .* bytes"),
    "flipped": (flip, "other bytes"),
    "missing": (os.unlink, "is missing"),
}


def test_damage_to_any_file_is_detected_and_the_previous_checkpoint_is_used(tmp_path):
    old, new = saved(tmp_path, 1, 2)
    files = sorted(file for file in new.rglob("*") if file.is_file())
    assert {"metadata.json", "digests.json"} < {file.name for file in files} and len(files) >= 5
    for file in files:
        for damage, why in DAMAGES.values():
            whole = file.read_bytes()
            if not whole and damage is not os.unlink:
                continue
            damage(file)
            with pytest.warns(UserWarning, match="damaged") as seen:
                assert newest_good(tmp_path, state_of(), CONFIG).step == 1
            assert (
                len(seen) == 1
                and str(new) in str(seen[0].message)
                and file.name in str(seen[0].message)
            )
            if file.name != "digests.json":
                assert re.search(why, str(seen[0].message))
            file.write_bytes(whole)
    assert newest_good(tmp_path, state_of(), CONFIG).step == 2
    (new / "more").write_text("x")
    with pytest.warns(UserWarning, match="more is not part of the checkpoint"):
        assert newest_good(tmp_path, state_of(), CONFIG).step == 1
    flip(old / "metadata.json")
    with (
        pytest.warns(UserWarning, match="skipping a damaged checkpoint"),
        pytest.raises(CheckpointDamaged, match="none of the 2 checkpoints .* is intact"),
    ):
        newest_good(tmp_path, state_of(), CONFIG)


def test_best_skips_a_damaged_checkpoint(tmp_path):
    best = saved(tmp_path, 1, 2, 3, metrics=[1.0, 2.0, 3.0])[0]
    cut(
        next(file for file in (best / "state").rglob("*") if file.is_file() and file.stat().st_size)
    )
    with Checkpoints(tmp_path, CONFIG) as checkpoints, pytest.warns(UserWarning, match=best.name):
        assert checkpoints.best(state_of()).step == 2


def test_a_full_disk_is_an_error_and_earlier_checkpoints_are_unchanged(tmp_path):
    saved(tmp_path, 1)
    with Checkpoints(tmp_path, CONFIG) as checkpoints:
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        # Writes beyond the limit fail, as on a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (64, limit[1]))
        try:
            with pytest.raises(CheckpointNotWritten) as error:
                checkpoints.save(2, state_of(2), 2)
                checkpoints.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        message = str(error.value)
        assert f"step 2 in {tmp_path}" in message and "space" in message
        assert "unchanged: step_000000001." in message
        assert checkpoints.newest_good(state_of()).step == 1
        checkpoints.save(3, state_of(3), 3)  # saving works again when there is space
    assert [path.name for path in finished(tmp_path)] == ["step_000000001", "step_000000003"]
    assert not list(tmp_path.glob("unfinished*"))


def test_a_failure_in_the_background_is_raised_by_the_next_call(tmp_path, monkeypatch):
    def full_disk(folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint_format, "write_digests", full_disk)
    checkpoints = Checkpoints(tmp_path, CONFIG)
    checkpoints.save(1, state_of(), 1)
    with pytest.raises(
        CheckpointNotWritten, match="No space left on device. There is no earlier checkpoint"
    ):
        checkpoints.save(2, state_of(), 2)
    checkpoints.close()
    assert finished(tmp_path) == [] and [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_an_unwritable_folder_is_reported_at_the_start(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        CheckpointNotWritten,
        match=f"cannot write in the folder {tmp_path}/file/runs: .*Choose another",
    ):
        Checkpoints(tmp_path / "file" / "runs", {})


def test_the_remains_of_a_killed_process_are_cleared(tmp_path):
    program = (  # skips the slow imports of tbptt, such as jax
        "import sys, time, types; from pathlib import Path\n"
        "for name in ('tbptt', 'tbptt.checkpoints'):\n"
        "    sys.modules[name] = types.ModuleType(name)\n"
        f"    sys.modules[name].__path__ = [str(Path({str(ROOT)!r}, *name.split('.')))]\n"
        "from tbptt.checkpoints.manager import FolderLock\n"
        f"lock = FolderLock(Path({str(tmp_path)!r})); print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(
            FolderInUse, match=f"{tmp_path} is in use by another run: process {other.pid} on "
        ):
            Checkpoints(tmp_path, CONFIG)
        other.send_signal(signal.SIGKILL)
        other.wait()
    # An unfinished save, and an unfinished replacement.
    for name in ("unfinished_step_000000009", "replaced_step_000000008"):
        (tmp_path / name).mkdir()
    saved(tmp_path, 1, 2)
    assert {path.name for path in tmp_path.iterdir()} == {
        "lock",
        "step_000000001",
        "step_000000002",
        "step_000000008",
    }


def test_bad_arguments(tmp_path):
    with pytest.raises(
        ValueError, match="keep must be the number of checkpoints to keep, an int >= 1; got 0"
    ):
        Checkpoints(tmp_path, {}, keep=0)
    with pytest.raises(TypeError, match="not JSON serializable"):
        Checkpoints(tmp_path, {"a": object()})
    with pytest.raises(CheckpointDamaged, match="there is no such checkpoint"):
        restore(tmp_path / "step_000000001", {})
