"""`fit` equals the loop of its docstring, returns the best parameters, and resumes exactly."""

import json
import os
import signal
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import tbptt
from tbptt.data import RecordingStream, forecast_batches, open_source
from tbptt.fit import loop, stream_of
from tbptt.fit.loop import Update
from tbptt.optim import RunFractionState, adam_with_decay, scale_by_run_fraction, set_run_fraction
from tests.support.sequences import sequence_params, zero_carry

CELL, READOUT = tbptt.Elman(1, 3), nn.Dense(1, param_dtype=float)
LOSS_FN = tbptt.sequence_loss(CELL, READOUT, tbptt.squared_error)
ESTIMATOR = tbptt.truncated_bptt(LOSS_FN, 5, 10)
OPTIMIZER = optax.adam(0.05)
PARAMS, CARRY = sequence_params(CELL, READOUT), zero_carry(CELL, (2,))


def data(T: int, seed: int = 0) -> tbptt.Batch:
    noise = np.random.default_rng(seed).normal(size=(T + 1, 2, 1)).cumsum(axis=0)
    waves = np.sin(np.arange(T + 1) / 3)[:, None, None] + 0.1 * noise
    return tbptt.Batch(waves[:-1], waves[1:])


TRAIN, VALID = data(40), data(20, 1)
STEP = tbptt.make_train_step(ESTIMATOR, OPTIMIZER)


def looped(chunks, passes, rewind_before):
    """Return the params after every pass of the plain loop."""
    state = tbptt.init_state(ESTIMATOR, OPTIMIZER, PARAMS, CARRY, chunks[0])
    params, losses = [], []
    for _ in range(passes):
        for i, chunk in enumerate(chunks):
            if i in rewind_before:
                state = tbptt.rewind(ESTIMATOR, state, CARRY, chunk)
            state, metrics = STEP(state, chunk)
            losses.append(float(metrics.loss))
        params.append(jax.device_get(state.params))
    return params, np.reshape(losses, (passes, -1))


def cut(batch: tbptt.Batch, start: int, stop: int) -> tbptt.Batch:
    return jax.tree.map(lambda leaf: leaf[start:stop], batch)


def fit(batches=TRAIN, **more):
    more = {"chunk": 10, "passes": 3, "progress": False} | more
    optimizer = more.pop("optimizer", OPTIMIZER)
    return tbptt.fit(ESTIMATOR, optimizer, PARAMS, CARRY, batches, **more)


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    assert all(np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


def test_fit_equals_the_plain_loop():
    want, losses = looped([cut(TRAIN, i, i + 10) for i in range(0, 40, 10)], 3, {0})
    fitted = fit()
    assert_equal(jax.device_get(fitted.params), want[-1])
    assert (fitted.updates, fitted.ended, int(fitted.state.step)) == (12, "updates", 12)
    assert [row["pass"] for row in fitted.history] == [1, 2, 3]
    np.testing.assert_allclose([row["loss"] for row in fitted.history], losses.mean(axis=1))


class Loader:
    """An iterable with a length, and without random access."""

    def __init__(self, batches):
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)


@pytest.mark.parametrize("independent", [False, True])
@pytest.mark.parametrize("kind", [list, Loader])
def test_several_batches_continue_or_start_anew(independent, kind):
    batches = [data(20, seed) for seed in range(3)]
    chunks = [cut(batch, i, i + 10) for batch in batches for i in (0, 10)]
    want, _ = looped(chunks, 2, {0, 2, 4} if independent else {0})
    fitted = fit(kind(batches), independent=independent, passes=2)
    assert_equal(jax.device_get(fitted.params), want[-1])


def test_a_recording_stream_brings_its_own_resets(tmp_path):
    rows = np.asarray(data(120).inputs[:, 0])
    np.save(tmp_path / "rows.npy", rows)
    source = open_source([tmp_path / "rows.npy"])
    stream = RecordingStream(source, 2, 10, forecast_batches("0", (1,)))
    state = tbptt.init_state(ESTIMATOR, OPTIMIZER, PARAMS, CARRY, stream.chunk(0).batch)
    for i in range(2 * len(stream)):
        state, _ = STEP(state, stream.chunk(i).batch)
    assert_equal(
        jax.device_get(fit(stream, chunk=None, passes=2).params), jax.device_get(state.params)
    )


def test_the_params_with_the_lowest_score_are_returned_and_patience_ends():
    want, _ = looped([cut(TRAIN, i, i + 10) for i in range(0, 40, 10)], 4, {0})
    scores, seen = iter([0.5, 0.2, 0.3, 0.4, 0.1]), []
    fitted = fit(
        passes=5, patience=2, validate=lambda params: {"mse": next(scores), "other": 9.0},
        callbacks=[seen.append],
    )  # fmt: skip
    assert fitted.ended == "patience" and fitted.updates == 16
    assert_equal(jax.device_get(fitted.params), want[1])
    assert [row["valid_mse"] for row in fitted.history] == [0.5, 0.2, 0.3, 0.4]
    assert all(p.loss > 0 for p in seen)
    assert [(p.position, p.metric) for p in seen] == [(4, 0.5), (8, 0.2), (12, 0.3), (16, 0.4)]


def test_a_run_that_patience_ended_is_not_continued_by_the_same_call(tmp_path):
    scores = iter([0.2, 0.3, 0.4, 0.5])
    calls = [
        fit(passes=9, patience=2, folder=tmp_path, validate=lambda params: next(scores))
        for _ in range(2)
    ]
    assert [(fitted.ended, fitted.updates) for fitted in calls] == [("patience", 12)] * 2
    assert_equal(calls[0].params, calls[1].params)


def test_a_callback_ends_the_run():
    fitted = fit(passes=5, callbacks=[lambda progress: progress.position == 8])
    assert (fitted.ended, fitted.updates) == ("callback", 8)


def test_a_callback_ends_a_run_of_several_processes(monkeypatch):
    """It returns True after update 8; the processes exchange their flags after update 20."""
    both = lambda flags: np.stack([flags, flags])  # noqa: E731
    monkeypatch.setattr(loop.jax, "process_count", lambda: 2)
    monkeypatch.setattr(loop.multihost_utils, "process_allgather", both)
    fitted = fit(passes=10, callbacks=[lambda progress: progress.position == 8])
    assert (fitted.ended, fitted.updates) == ("callback", 20)


def test_a_stopped_run_resumes_with_equal_results(tmp_path):
    evaluate = tbptt.make_evaluate(LOSS_FN, CARRY, VALID)
    whole = fit(optimizer=adam_with_decay(0.05), validate=evaluate, passes=3)

    def part(**more):
        return fit(
            optimizer=adam_with_decay(0.05), validate=evaluate, passes=3, folder=tmp_path, **more
        )

    def interrupt(progress):
        if progress.position == 4:
            os.kill(os.getpid(), signal.SIGINT)

    first = part(callbacks=[interrupt])
    assert (first.ended, first.updates) == ("stopped", 4)
    second = part()
    assert (second.ended, second.updates) == ("updates", 12)
    assert_equal(second.state._replace(key=None), whole.state._replace(key=None))
    assert_equal(second.params, whole.params)
    timeless = [
        [{k: v for k, v in row.items() if k != "seconds"} for row in f.history]
        for f in (second, whole)
    ]
    assert timeless[0] == timeless[1]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in lines if row["kind"] == "valid"] == [4, 8, 12]
    with pytest.raises(ValueError, match="chunk"):  # another run
        fit(optimizer=adam_with_decay(0.05), folder=tmp_path, chunk=20, passes=9)


def test_seconds_end_a_run_and_the_rate_falls_with_them():
    ends = []
    fitted = fit(
        optimizer=adam_with_decay(0.05), passes=None, seconds=0.3,
        callbacks=[lambda p: ends.append(p.state.opt_state)],
    )  # fmt: skip
    # The last line is written just before the limit is looked at.
    assert fitted.ended == "seconds" and fitted.history[-1]["seconds"] > 0
    assert 0.5 < _run_fraction(fitted.state.opt_state) <= 1.0


def test_a_killed_run_limited_by_seconds_resumes_with_equal_results(tmp_path, monkeypatch):
    """By a clock on which every update takes 0.25 s, and the first of a session 100 s more."""
    now, made, killed = [0.0], [0], []

    def step(state, batch):
        if made == [9] and killed:
            raise KeyboardInterrupt  # after the checkpoint of update 8
        now[0] += 0.25 if made[0] else 100.25
        made[0] += 1
        return real(state, batch)

    def timed(**more):
        made[0] = 0
        return fit(optimizer=adam_with_decay(0.05), passes=None, seconds=4.0, **more)

    real = tbptt.make_train_step(ESTIMATOR, adam_with_decay(0.05))
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr(sys.modules["tbptt.fit"], "make_train_step", lambda *args: step)
    whole = timed()
    killed.append(True)
    with pytest.raises(KeyboardInterrupt):
        timed(folder=tmp_path)
    now[0] += 500.0
    killed.clear()
    second = timed(folder=tmp_path)
    assert (second.ended, second.updates) == (whole.ended, whole.updates) == ("seconds", 17)
    assert [row["seconds"] for row in second.history] == [0.75, 1.75, 2.75, 3.75, 4.0]
    assert second.history == whole.history
    assert_equal(second.state._replace(key=None), whole.state._replace(key=None))


def _run_fraction(opt_state) -> float:
    nodes = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, RunFractionState))
    (node,) = [node for node in nodes if isinstance(node, RunFractionState)]
    return float(node.fraction)


def test_a_schedule_of_the_fraction_equals_one_of_the_updates():
    by_updates = optax.sgd(optax.linear_schedule(0.1, 0.0, 12))
    by_fraction = scale_by_run_fraction(optax.linear_schedule(0.1, 0.0, 1))
    fitted = [fit(optimizer=optimizer) for optimizer in (by_updates, by_fraction)]
    for a, b in zip(*(jax.tree.leaves(f.params) for f in fitted), strict=True):
        np.testing.assert_allclose(a, b, rtol=5e-3)  # the fraction is rounded to 1/500
    assert _run_fraction(fitted[1].state.opt_state) == pytest.approx(11 / 12, abs=1e-3)
    seeds = set_run_fraction(jax.vmap(by_fraction.init)(jnp.ones((3, 2))), 0.25)
    assert seeds.fraction.tolist() == [0.25] * 3


def test_the_generator_yields_every_update():
    stream = stream_of(TRAIN, 10)
    state = tbptt.init_state(ESTIMATOR, OPTIMIZER, PARAMS, CARRY, stream.chunk(0).batch)
    found = []
    for update in tbptt.training_updates(STEP, state, stream, end=6):
        assert isinstance(update, Update)
        found.append((update.position, int(update.state.step)))
    assert found == [(i, i) for i in range(1, 7)]


@pytest.mark.parametrize(
    ("more", "error", "words"),
    [
        ({"chunk": 7}, ValueError, "T must be a positive multiple of chunk; got T=40, chunk=7"),
        ({"passes": 0}, ValueError, "passes must be at least 1 pass; got passes=0"),
        ({"batches": (TRAIN.inputs, TRAIN.targets)}, TypeError, "batch 0 is of type ndarray"),
        ({"batches": TRAIN.inputs}, TypeError, r"hold Batches; got an array \(40, 2, 1\). Write"),
        ({"batches": jax.tree.map(lambda a: a.swapaxes(0, 1), TRAIN)}, ValueError, "time first"),
        ({"seconds": 0.0}, ValueError, "seconds must be above 0; got 0.0"),
        ({"patience": 3}, ValueError, "validate is None.*make_evaluate"),
        ({"batches": [TRAIN, TRAIN]}, ValueError, "independent must be given"),
        ({"batches": []}, ValueError, "at least one Batch"),
        ({"batches": iter([TRAIN])}, TypeError, "read again in every pass.*Make a list"),
        ({"batches": [(1, 2)]}, TypeError, r"batch 0 is of type tuple.*Batch\(inputs"),
        (
            {"batches": [TRAIN, data(30)], "independent": True},
            ValueError,
            "batch 1 has T=30, the first one T=40",
        ),
        ({"validate": lambda params: params}, TypeError, "validate must return a number"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(more, error, words):
    with pytest.raises(error, match=words):
        fit(**more)


def test_hardly_any_updates_are_a_warning():
    with pytest.warns(UserWarning, match="only 3 updates: 1 per pass, each of 10 steps"):
        fit(cut(TRAIN, 0, 10), chunk=None)


def test_the_plot_marks_the_best_pass(tmp_path):
    scores = iter([0.5, 0.2, 0.3])
    figure = fit(validate=lambda params: next(scores)).plot(tmp_path / "losses.png")
    (axis,) = figure.axes
    training, valid, best = axis.get_lines()
    assert axis.get_yscale() == "log" and valid.get_ydata().tolist() == [0.5, 0.2, 0.3]
    assert (best.get_xdata()[0], best.get_ydata()[0]) == (2, 0.2)
    assert (tmp_path / "losses.png").stat().st_size > 5000
