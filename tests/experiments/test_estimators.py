"""Tests of the experiments on estimators."""

import functools
import threading

import jax
import numpy as np
import pytest

from experiments import adaptive_copy, estimator_frontier, influence_balancing, staleness
from experiments.support.common import jobs
from experiments.support.estimators import (
    copy_training,
    frontier_figure,
    influence,
    published_copy,
    required_window,
    theorem,
)
from tbptt import Batch


@pytest.mark.exhaustive
@pytest.mark.parametrize(("theta", "verdict"), [
    (-1 / 6 + 1e-3, "converged"), (0.0, "right_way"), (0.6, "wrong_way"),
    (-0.9, "wrong_way"), (11.0, "diverged"),
    (float("nan"), "diverged"), (float("-inf"), "diverged"),
])  # fmt: skip
def test_the_verdict_on_a_run(theta, verdict):
    assert influence.verdict(theta, 5e-3) == verdict


def test_the_derivative_of_influence_balancing_is_the_closed_form():
    rows, D = influence.derivatives([(1, 41), (1, 40), (10, 46), (10, 100), (100, 100), (3, 2)])
    measured = [row["measured"] for row in rows]
    assert measured[0] < 0 < measured[1]
    assert [row["closed_form"] for row in rows[2:5]] == pytest.approx(
        [-0.377, -6.0, 0.58], abs=1e-3
    )
    assert rows[0]["closed_form"] == pytest.approx(-0.219, abs=1e-3)
    assert max(abs(row["measured"] - row["closed_form"]) for row in rows) < 1e-9
    # K2 < k1: the oldest of three losses has no gradient.
    assert rows[5]["closed_form"] == pytest.approx((D[0] + D[1]) / 3)
    assert D[0] == 1 and D[9] == pytest.approx(10) and max(D) == pytest.approx(D[18])


@pytest.mark.exhaustive
def test_online_training_follows_the_sign():
    with jax.enable_x64(True):
        right = influence_balancing.train(
            influence_balancing.truncated(10, 100, 1e-3), 6000, seed=0
        )
        wrong = influence_balancing.train(
            influence_balancing.truncated(100, 100, 1e-3), 6000, seed=0
        )
    assert len(right) == influence_balancing.POINTS + 1 and right[0] == influence.START
    assert abs(right[-1] - influence.STAR) < 1e-4 and wrong[-1] > 0.55


@pytest.mark.exhaustive
def test_replay_is_stable_where_stale_states_are_not():
    rates = np.asarray([2e-4, 1e-3, 4e-2, 8e-2])
    with jax.enable_x64(True):
        estimators = {
            name: staleness.make_estimator(name, 10)
            for name in (staleness.REPLAYED, staleness.STALE)
        }
        found = {name: staleness.final_thetas(e, 10, rates, 800) for name, e in estimators.items()}
    error = {name: np.abs(thetas - influence.STAR) for name, thetas in found.items()}
    assert np.all(error[staleness.REPLAYED][1:3] < 1e-3) and not error[staleness.REPLAYED][3] < 1
    assert error[staleness.STALE][1] < 1e-3 and not error[staleness.STALE][2] < 1


@pytest.mark.exhaustive
def test_the_bias_equals_the_closed_form_and_is_below_its_bound():
    rows = theorem.bound_rows(
        influence.first_state, np.asarray(0.5), np.ones(influence.N), influence.steps(120), (10, 60)
    )
    D = influence.closed_form(120)
    for row, k2 in zip(rows, (10, 60), strict=True):
        want = abs(D[k2 - 1] - D[-theorem.LOSSES :].mean()) / abs(D[-theorem.LOSSES :].mean())
        assert row["bias"] == pytest.approx(want, rel=1e-9) and row["k2"] == k2
        assert row["slack"] == pytest.approx(row["bound"] / row["bias"]) and row["slack"] >= 1


@pytest.mark.exhaustive
def test_the_frontier_is_drawn_from_rows(tmp_path):
    row = {
        "bias_error": 0.0,
        "cosine": 1.0,
        "sign_agreement": 1.0,
        "variance": 0.0,
        "bytes": 1,
        "frontier": True,
    }
    rows = [
        row | {"task": task, "estimator": name, "bias": bias, "seconds_per_step": seconds}
        for task in estimator_frontier.TASKS
        for name, bias, seconds in (("short", 0.5, 1e-6), ("long", 0.0, 1e-5))
    ]
    frontier_figure.draw({"rounding": 1e-5, "results": {"rows": rows}}, tmp_path)
    assert (tmp_path / "estimator_frontier.png").stat().st_size > 10_000


@pytest.mark.exhaustive
def test_a_pass_of_the_copy_task_trains(tmp_path):
    config = adaptive_copy.Config(updates=48, batch=2, hidden=3, seeds=2)
    row, curve = adaptive_copy.one_row(
        config, "K = 40", 40, lambda f: adaptive_copy.tbptt.full_bptt(f), {"k": 40}
    )
    assert len(curve["perplexity"]) == 1 and 1 < row["perplexity"] < 8 and row["chosen_k"] == 79
    assert (
        row["perplexity"] == pytest.approx(np.mean(row["perplexities"]))
        and len(set(row["perplexities"])) == 2
    )
    assert (
        row["perplexity"] != row["perplexity_without_repeats"] > 1
        and 1.5 < row["memoryless"] < 1.87
    )


def test_the_published_stream_equals_its_program_step_by_step(key):
    T, B, memory = 60, 5, 3
    batch, memoryless = published_copy.published_stream(key, T, B, memory)
    inputs, targets = np.argmax(np.asarray(batch.inputs), -1), np.asarray(batch.targets)
    offsets = np.asarray(jax.random.randint(jax.random.split(key)[1], (B,), 0, 2 * memory))
    rows = np.tile(np.arange(T + 2 * memory)[:, None], (1, B))
    for b in range(B):
        for column in range(b + 1):
            moved = rows[offsets[b] : offsets[b] + T, column].copy()
            rows[:T, column] = moved
    position = rows[:T] % (2 * memory)
    np.testing.assert_array_equal(inputs == 1, position == 0)
    np.testing.assert_array_equal(inputs == 0, position >= memory)
    np.testing.assert_array_equal(targets == 0, position < memory)
    np.testing.assert_array_equal(targets == 1, position == memory)
    steps, columns = np.nonzero((position > memory) & (np.arange(T)[:, None] >= memory))
    # No jump between a symbol and its target.
    unbroken = rows[steps - memory, columns] == rows[steps, columns] - memory
    np.testing.assert_array_equal(
        inputs[steps - memory, columns][unbroken], targets[steps, columns][unbroken]
    )
    assert 0 < (~unbroken).sum() + (np.diff(rows[:T], axis=0) != 1).sum()
    assert memoryless == pytest.approx(4 ** np.mean(position > memory))
    with pytest.raises(
        ValueError, match=r"T must be a multiple of 2 memory = 6 steps, the period; got T=61"
    ):
        published_copy.published_stream(key, 61, B, memory)


@pytest.mark.exhaustive
def test_a_smaller_batch_has_evenly_spaced_published_streams_and_the_same_tests():
    few, every = (copy_training.Task(3, batch).data(0) for batch in (16, 64))
    np.testing.assert_array_equal(few[0].targets, every[0].targets[:, ::4])
    np.testing.assert_array_equal(few[0].inputs, every[0].inputs[:, ::4])
    np.testing.assert_array_equal(few[1][0].targets, every[1][0].targets)
    assert few[1][1] == every[1][1]


def test_the_memoryless_perplexity_is_that_of_the_published_plateau():
    memoryless = [
        published_copy.published_stream(jax.random.key(i), 1000, 64, 10)[1] for i in range(4)
    ]
    assert 1.63 < min(memoryless) and max(memoryless) < 1.73  # published for K = 5: 1.646


@pytest.mark.exhaustive
@pytest.mark.parametrize(("a", "delta"), [(0.9, 0.5), (0.9, 0.1), (0.8, 0.5)])
def test_the_required_window_is_that_of_the_closed_form(a, delta):
    # H' = a h + 1, loss h'^2 / 2: the gradient at lag k is proportional to a^k.
    def loss_fn(a, carry, batch):
        def step(h, x):
            h = a * h + x[0]
            return h, h**2 / 2

        carry, losses = jax.lax.scan(step, carry, batch.inputs)
        return losses.sum(), carry

    steps = required_window.WARM_UP + required_window.LAGS + 40
    stream = jax.tree.map(jax.numpy.asarray, Batch(np.ones((steps, 1)), np.zeros(steps)))
    left_out = [
        np.mean([a**n / (1 - a) for n in range(k2 - 9, k2 + 1)]) for k2 in required_window.WINDOWS
    ]
    whole = sum(a**k for k in range(required_window.LAGS))
    want = next(
        k2
        for k2, B in zip(required_window.WINDOWS, left_out, strict=True)
        if B / (whole - B) < delta
    )
    carry = jax.numpy.asarray(1 / (1 - a))
    window_of = required_window.make_required_window(loss_fn, carry, stream, 10, delta, 40)
    assert window_of(jax.numpy.asarray(a)) == want


def test_jobs_run_in_parallel_and_return_in_order(monkeypatch):
    device, used = jax.devices()[0], []
    monkeypatch.setattr(jax, "local_devices", lambda: [device, device])
    begun = threading.Barrier(2)

    def job(i: int) -> int:
        if i < 2:
            begun.wait(timeout=60)  # both must run at the same time
        used.append(jax.config.jax_default_device)
        return i

    assert jobs.on_all_devices([functools.partial(job, i) for i in range(5)]) == list(range(5))
    assert used == [device] * 5 and jax.config.jax_default_device is None

    def fails() -> None:
        raise ValueError("this one")

    with pytest.raises(ValueError, match="this one"):
        jobs.on_all_devices([fails, lambda: None])
