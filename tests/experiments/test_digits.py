"""Tests of the parts of pixel_digits and pulse_65k."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tbptt
from experiments import pixel_digits, pulse_65k
from experiments.support.common.forecasting import Model, make_job
from experiments.support.tasks import digit_job
from tbptt.data import Digits, Recording


def digits(n: int) -> Digits:
    images = np.random.default_rng(0).integers(0, 256, (n, 28, 28)).astype(np.uint8)
    return Digits(images, np.arange(n, dtype=np.int32) % 10)


def test_digits_are_sequences_of_rows_or_pixels():
    some = digits(3)
    rows, pixels, mixed = (
        digit_job.make_task(name, some, some) for name in ("rows", "pixels", "permuted")
    )
    np.testing.assert_array_equal(rows.train[0][5, 2], some.images[2, 5])
    np.testing.assert_array_equal(pixels.test[0][28 * 5 + 7, 2, 0], some.images[2, 5, 7])
    order = np.argsort(mixed.train[0][:, 0, 0], kind="stable")
    assert not np.array_equal(mixed.train[0], pixels.train[0])
    np.testing.assert_array_equal(
        np.sort(mixed.train[0], 0)[:, 0],
        pixels.train[0][:, 0][np.argsort(pixels.train[0][:, 0, 0])],
    )
    assert len(order) == 784
    with pytest.raises(ValueError, match="rows, pixels or permuted; got 'columns'"):
        digit_job.make_task("columns", some, some)


def initial_params(key, net):
    return jax.jit(lambda key: tbptt.init_params(key, net.cell, net.readout))(key)


def test_the_last_step_loss_equals_a_sequence_loss_with_the_same_weights(key):
    net = digit_job.Net("GRU", tbptt.GRU(2, 3))
    params = initial_params(key, net)
    xs = np.random.default_rng(0).integers(0, 256, (6, 4, 2)).astype(np.uint8)
    batch, carry = (
        jax.jit(digit_job.labelled)(xs, np.arange(4)),
        jax.tree.map(jnp.asarray, type(net.cell.initial_carry())(np.zeros((4, 3)))),
    )
    step_loss = digit_job.optax.softmax_cross_entropy_with_integer_labels
    whole, ours = (
        jax.jit(tbptt.full_bptt(loss_fn).estimate)(params, carry, batch)
        for loss_fn in (
            tbptt.sequence_loss(net.cell, net.readout, step_loss),
            digit_job.last_step_loss(net),
        )
    )
    np.testing.assert_allclose(ours.loss, whole.loss, rtol=1e-12)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), ours.grads, whole.grads)
    assert float(batch.inputs.max()) <= 1


@pytest.mark.exhaustive
def test_a_window_of_blank_pixels_gives_the_input_weights_no_gradient(key):
    net = digit_job.Net("LSTM", tbptt.LSTM(1, 3))
    params, carry = (
        initial_params(key, net),
        type(net.cell.initial_carry())(np.zeros((2, 3)), np.zeros((2, 3))),
    )
    xs = np.random.default_rng(0).integers(1, 256, (12, 2, 1)).astype(np.uint8)
    xs[8:] = 0  # the last steps are blank
    batch, loss_fn = jax.jit(digit_job.labelled)(xs, np.arange(2)), digit_job.last_step_loss(net)
    size = {}
    for k2 in (4, 5):
        grads = jax.jit(tbptt.truncated_bptt(loss_fn, 12, k2).estimate)(params, carry, batch).grads
        size[k2] = np.abs(np.asarray(grads.cell.w_x)).max()
    assert size[4] == 0 and size[5] > 0


@pytest.mark.exhaustive
def test_training_on_digits_in_turns():
    with jax.enable_x64(False):  # flax initialises the readout in float32, as in experiments
        check_training(digits(20))


def check_training(some: Digits) -> None:
    task = digit_job.make_task("rows", some, some)
    net = digit_job.Net("MinGRU", tbptt.MinGRU(28, 8), tbptt.parallel_unroll)
    recipe = digit_job.Recipe(B=5, lr=0.02, clip=1.0, updates=4)
    runners, size = digit_job.make_runners("MinGRU", net, task, 28, recipe, (0, 1))
    states = [runner.state for runner in runners]
    for turn in range(40):
        states = [
            r.advance(s, jnp.asarray(0.02), jnp.int32(turn))[0]
            for r, s in zip(runners, states, strict=True)
        ]
    assert [r.name for r in runners] == ["MinGRU, seed 0", "MinGRU, seed 1"] and size > 0
    assert int(states[0].step) == 160
    score = digit_job.test_accuracy(net, task)
    before, after = score(runners[0].state.params), score(states[0].params)
    assert after == 1.0 and before < 0.5, "twenty digits can be memorised"
    assert abs(score(states[0].params) * 20 % 1) < 1e-9
    assert not np.array_equal(*(np.asarray(s.params.cell.w_x) for s in states))


def test_the_targets_of_pixel_digits():
    def row(task: str, cell: str, k2: int, accuracy: list[float]) -> dict:
        return {"task": task, "cell": cell, "k2": k2, "accuracy": accuracy}

    rows = [row("rows", "LSTM", 28, [0.96, 0.97, 0.94]), row("rows", "GRU", 28, [0.90, 0.99, 0.94])]
    rows += [row("rows", "LSTM", 1, [0.82, 0.80, 0.79])]
    assert [r["reached"] for r in pixel_digits.expectations(rows)] == [True, False, True]
    for task in ("pixels", "permuted"):
        rows += [row(task, "LSTM", k2, [a]) for k2, a in ((784, 0.65), (196, 0.70), (28, 0.55))]
    found = pixel_digits.expectations(rows)[3:]
    assert [r["reached"] for r in found] == [True, True, True, True, False]


@pytest.mark.exhaustive
def test_memory_plans_give_the_same_gradient():
    values = np.sin(0.3 * np.arange(500.0))[:, None] + 0.1 * np.random.default_rng(0).normal(
        size=(500, 1)
    )
    job = make_job(Recording(values, ("x",), 1.0, "made"), (2, 4), 1, 256, 300)
    model = Model(tbptt.LSTM(1, 4), nn.Dense(2))
    rows = pulse_65k.plans(model, job, 1)
    assert [row["name"] for row in rows] == list(pulse_65k.PLANS) and rows[0]["difference"] == 0
    assert max(row["difference"] for row in rows) < 1e-6 and rows[2]["bytes"] < rows[0]["bytes"]
    rows[3] |= {"bytes": 0.2 * rows[0]["bytes"], "seconds": 1.2 * rows[0]["seconds"]}
    runs = [
        {"name": "full", "full": True, "test_mse": [0.5, 0.6], "updates": [9]},
        {"name": "cut", "full": False, "test_mse": [0.2, 0.3], "updates": [90]},
    ]
    assert [r["reached"] for r in pulse_65k.expectations(rows, runs, runs[1])] == [
        False,
        True,
        True,
        True,
        True,
    ]
    for errors, reached in (
        ([0.3, 0.4], [True, False]),
        ([0.2, 0.51], [False, False]),
        ([0.1, 0.2, 0.6], [False, True]),
    ):
        # Every run below all of full BPTT; the median below half its median.
        runs[1]["test_mse"] = errors
        assert [r["reached"] for r in pulse_65k.expectations(rows, runs, runs[1])[3:]] == reached
