"""Tests of the parts of pixel_digits, pulse_65k and ecg."""

import math
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tbptt
from experiments import ecg, pixel_digits, pulse_65k
from experiments.support.common import equal_time, linear_forecast
from experiments.support.common.baselines import ridge_ar
from experiments.support.common.equal_time import Runner, run_in_turns
from experiments.support.common.forecasting import Model, make_job
from experiments.support.tasks import digit_job, ecg_data
from tbptt.data import Digits, Recording


def test_runners_take_turns_until_their_seconds_are_used(monkeypatch):
    now, order, rates = [0.0], [], []
    monkeypatch.setattr(equal_time, "clock", lambda: now[0])

    def runner(name: str, cost: float) -> Runner:
        def advance(state, rate, turn):
            order.append(name)
            rates.append((name, float(rate), int(turn)))
            now[0] += cost
            return state + 1, jnp.asarray([1.0, 3.0])

        return Runner(name, 0, advance, 7)

    runners = [runner("slow", 2.0), runner("quick", 1.0)]
    slow, quick = run_in_turns(runners, 4.0, [1.0, 0.1], lambda *report: None)
    assert "".join(name[0] for name in order) == "sqsqqq"
    assert (slow.updates, quick.updates, slow.seconds, quick.seconds) == (14, 28, 4.0, 4.0)
    assert slow.state == 2 and slow.curve == [(2.0, 2.0), (4.0, 2.0)]
    # Half a cosine of its time.
    assert [r for n, r, _ in rates if n == "slow"] == pytest.approx([1.0, 0.5])
    assert [r for n, r, _ in rates if n == "quick"] == pytest.approx(
        [0.05 * (1 + math.cos(math.pi * i / 4)) for i in range(4)]
    )
    assert [t for n, _, t in rates if n == "quick"] == [0, 1, 2, 3]


def test_the_keep_function_of_a_runner_is_not_timed(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(equal_time, "clock", lambda: now[0])

    def advance(state, rate, turn):
        now[0] += 1.0
        return state + 1, jnp.asarray(0.0)

    def keep(kept, state):
        now[0] += 100.0
        return [*(kept or []), state]

    runners = [Runner("with", 0, advance, 1, keep), Runner("without", 0, advance, 1)]
    with_keep, without = run_in_turns(runners, 3.0, [1.0, 1.0], lambda *report: None)
    assert (
        with_keep.kept == [1, 2, 3]
        and with_keep.seconds == 3.0
        and without.kept is None
        and without.updates == 3
    )


def test_a_runner_that_diverges_is_named():
    bad = Runner("TBPTT(3, 3), seed 1", 0, lambda state, rate, turn: (state, jnp.nan), 1)
    with pytest.raises(FloatingPointError, match=r"TBPTT\(3, 3\), seed 1: the loss is nan"):
        run_in_turns([bad], 1.0, [0.1], lambda *report: None)


def test_one_column_at_all_lags_equals_ridge_ar():
    x = np.random.default_rng(0).normal(size=(3000, 1)).cumsum(0) % 3
    got = linear_forecast.ridge_forecast(
        x, range(6), (4,), (0.01,), 2000, (2000, 2400), (2400, 3000)
    )
    np.testing.assert_allclose(
        got.test, ridge_ar(x, 0, 6, 4, 2000, 2400, 3000, ridge=0.01), rtol=1e-10
    )
    np.testing.assert_allclose(
        got.valid, ridge_ar(x, 0, 6, 4, 2000, 2000, 2400, ridge=0.01), rtol=1e-10
    )


def test_every_column_is_forecast_from_all_columns_and_lags():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(3000, 2))
    x[5:, 1] = x[:-5, 0]  # column 1 repeats column 0 five steps later
    parts = 2000, (2000, 2400), (2400, 3000)
    mse = linear_forecast.ridge_forecast(x, (0, 3), (2, 5), (1e-9,), *parts).test
    assert mse[0, 1] < 1e-12 and mse[1, 1] < 1e-12, (
        "t + 2 - 5 = t - 3, and t + 5 - 5 = t: both are among the lags"
    )
    assert (
        mse[0, 0] > 0.8
        and linear_forecast.ridge_forecast(x, (0, 2), (2,), (1e-9,), *parts).test[0, 1] > 0.8
    )
    poisoned = x.copy()
    # Between validation and the oldest sample of the test part.
    poisoned[2400 - 3 - 5 - 200 : 2400 - 3] = 1e6
    parts = 2000, (2000, 2100), (2400, 3000)
    args = (0, 3), (2, 5), (1e-9,)
    np.testing.assert_array_equal(
        linear_forecast.ridge_forecast(x, *args, *parts).test,
        linear_forecast.ridge_forecast(poisoned, *args, *parts).test,
    )


def test_the_penalty_has_the_lowest_validation_error():
    x = np.random.default_rng(2).normal(size=(400, 3))  # pure noise: the largest penalty is best
    parts = 100, (100, 250), (250, 400)
    found = linear_forecast.ridge_forecast(x, range(8), (1,), (1e-6, 1e6, 1e-3), *parts)
    light = linear_forecast.ridge_forecast(x, range(8), (1,), (1e-6,), *parts)
    assert found.ridge == 1e6 and found.valid.mean() < light.valid.mean()


@pytest.mark.parametrize(("change", "message"), [
    ({"valid": (90, 250)}, "must begin after the training part's 100 steps"),
    ({"test": (250, 401)}, "test part must lie in the 400 steps"),
    ({"test": (250, 253)}, r"longer than the horizon 3; got 250 .. 253"),
    ({"train_end": 9}, "train part"),
    ({"ridges": ()}, "at least one penalty"),
])  # fmt: skip
def test_parts_out_of_range_are_refused(change, message):
    arguments = {
        "ridges": (0.1,),
        "train_end": 100,
        "valid": (100, 250),
        "test": (250, 400),
    } | change
    with pytest.raises(ValueError, match=message):
        linear_forecast.ridge_forecast(
            np.zeros((400, 1)) + np.arange(400)[:, None], range(8), (1, 3), **arguments
        )


def test_lags_are_evenly_spaced():
    assert linear_forecast.even_lags(5, 64) == [0, 1, 2, 3, 4]
    assert linear_forecast.even_lags(250, 3) == [0, 124, 249]
    with pytest.raises(ValueError, match="order=0"):
        linear_forecast.even_lags(0, 3)


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


def test_all_channels_at_all_horizons_are_the_targets():
    scaled = np.arange(59_040.0)[:, None] + np.array([0.0, 0.5])
    # Persistence for the first channel at the first horizon.
    base = np.tile(scaled, (1, 2)) * [1, 0, 0, 0]
    batch = ecg_data.training_batch(scaled, scaled, base, (8, 64), 19)
    assert batch.inputs.shape == (2500, 16, 2) and batch.targets.shape == (2500, 16, 4)
    np.testing.assert_array_equal(batch.targets[..., 0], 8)
    ahead = batch.targets[..., 1:] - batch.inputs[..., :1]
    np.testing.assert_array_equal(ahead, np.broadcast_to([8.5, 64, 64.5], (2500, 16, 3)))
    assert (
        float(batch.weights.sum()) == 40_000 - 64 - 19 and float(batch.weights[-64:, -1].sum()) == 0
    )
    assert float(batch.weights[:19, 0].sum()) == 0


def test_the_inputs_are_the_sample_and_its_standardised_differences():
    x = np.cumsum(np.random.default_rng(0).normal(size=(50_000, 2)), axis=0)
    inputs = ecg_data.with_differences(x, 3)
    assert inputs.shape == (50_000, 8)
    np.testing.assert_allclose(inputs[:40_000].mean(0), 0, atol=1e-10)
    np.testing.assert_allclose(inputs[:40_000].std(0), 1, rtol=1e-10)
    change = x[97] - x[100]  # three steps back, the last two columns
    every = x[np.maximum(np.arange(40_000) - 3, 0)] - x[:40_000]
    np.testing.assert_allclose(
        inputs[100, -2:], (change - every.mean(0)) / every.std(0), rtol=1e-10
    )
    poisoned = x.copy()
    poisoned[101:] = 0.0  # later samples have an effect on the scale only
    later = ecg_data.with_differences(np.vstack([poisoned[:101], poisoned[:101]]), 3)
    assert np.corrcoef(later[4:101, -1], inputs[4:101, -1])[0, 1] > 1 - 1e-9


def test_a_network_that_adds_nothing_to_its_ridge_is_not_better():
    best = {"name": "LSTM on ridge AR(20), TBPTT(20, 20)", "test_mse": [0.77, 0.76, 0.78]}
    alone = {"name": "LSTM alone, TBPTT(50, 50)", "test_mse": [0.9]}
    rival = {"order": 20, "test_mse": 0.7}
    for errors, reached in (
        ([0.69, 0.6, 0.65], True),
        ([0.69, 0.6, 0.7], False),
        ([0.6, 0.6, 0.71], False),
    ):
        row = ecg.expectation(best | {"test_mse": errors}, alone, rival)
        assert (
            row["reached"] == reached and "LSTM alone, TBPTT(50, 50), has 0.9000" in row["expected"]
        )


def test_the_parameters_with_the_lowest_validation_error_are_kept(key):
    scaled = np.random.default_rng(0).normal(size=(48_500, 2)) + 1.0
    model, base = Model(tbptt.MinGRU(2, 3), nn.Dense(4)), np.full((48_500, 4), 0.5)
    params = jax.tree.map(jnp.zeros_like, tbptt.init_params(key, model.cell, model.readout))
    keep = ecg_data.make_keep(model, scaled, scaled, base, (8, 64))

    def state(bias: float):
        readout = {"params": {**params.readout["params"], "bias": jnp.full(4, bias)}}
        return SimpleNamespace(params=params._replace(readout=readout))

    kept = None
    for bias in (0.1, 0.5, 0.9):  # 0.5 plus the base is the mean, 1
        kept = keep(kept, state(bias))
    assert kept is not None and float(kept[1].readout["params"]["bias"][0]) == np.float32(0.5)
    valid, _ = ecg_data.make_score(model, scaled, scaled, base, (8, 64))(kept[1])
    assert kept[0] == pytest.approx(valid.mean(), rel=1e-3) == pytest.approx(1.0, abs=0.05)


def test_the_predictions_of_a_ridge_have_its_test_error():
    x = np.random.default_rng(1).normal(size=(3000, 2))
    x[4:, 0] += 0.9 * x[:-4, 1]
    lags, parts = (0, 3), (2000, (2000, 2400), (2400, 3000))
    found = linear_forecast.ridge_forecast(x, lags, (4,), (1e-6,), *parts)
    ahead = linear_forecast.predictions(x, lags, found.weights)
    assert ahead.shape == (3000, 2) and not ahead[:3].any() and ahead[3:].all()
    np.testing.assert_allclose(
        np.mean((x[2404:3000] - ahead[2400:2996]) ** 2, axis=0), found.test[0], rtol=1e-12
    )


def test_network_and_ridge_are_scored_on_the_same_origins(key):
    scaled = np.random.default_rng(0).normal(size=(48_500, 2))
    model = Model(tbptt.MinGRU(2, 3), nn.Dense(4))
    params = tbptt.init_params(key, model.cell, model.readout)
    params = jax.tree.map(jnp.zeros_like, params)  # forecasts 0
    valid, test = ecg_data.make_score(model, scaled, scaled, np.zeros((48_500, 4)), (8, 64))(params)
    ridge = linear_forecast.ridge_forecast(
        scaled, (0,), (8, 64), (1e12,), 40_000, (40_000, 48_000), (48_000, 48_500)
    )
    np.testing.assert_allclose(valid, ridge.valid, rtol=1e-3)
    np.testing.assert_allclose(test, ridge.test, rtol=2e-2)  # the ridge knows the mean
    assert valid.shape == test.shape == (2, 2)
