"""Windows of time: reshapes that keep every step, sums of weights, and errors with a remedy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tbptt.types import Batch
from tbptt.windows import (
    check_positive_int,
    count_windows,
    length,
    mean,
    means,
    split,
    split_windows,
    step_shape,
    total_weight,
)

T, B, D = 12, 2, 3
INPUTS = np.arange(T * B * D, dtype=float).reshape(T, B, D)
BATCH = Batch(
    INPUTS, (INPUTS[..., 0], np.arange(T)), weights=INPUTS[..., 1], mask=INPUTS[..., 2] > 9
)


@pytest.mark.parametrize("k1", [1, 3, 12])
def test_split_windows_keeps_the_order_of_time(k1):
    windows = split_windows(BATCH, k1)
    assert windows.resets is None and windows.inputs.shape == (T // k1, k1, B, D)
    for j in range(T // k1):
        want = jax.tree.map(lambda a, j=j: a[j * k1 : (j + 1) * k1], BATCH)
        jax.tree.map(
            np.testing.assert_array_equal, jax.tree.map(lambda a, j=j: a[j], windows), want
        )


def test_split_then_concatenate_is_the_identity():
    for points in ((), (5,), (0, 4, 4, T)):
        segments = split(BATCH, *points)
        assert [length(segment) for segment in segments] == np.diff([0, *points, T]).tolist()
        jax.tree.map(
            np.testing.assert_array_equal,
            jax.tree.map(lambda *a: np.concatenate(a), *segments),
            BATCH,
        )


def test_length_and_its_errors():
    assert length(BATCH) == T and length(jnp.zeros((0, 2))) == 0
    with pytest.raises(ValueError, match=r"without leaves"):
        length(Batch(None, None))
    with pytest.raises(ValueError, match=r"batch\.weights needs a leading time axis.*scalar"):
        length(BATCH._replace(weights=jnp.float64(1.0)))
    with pytest.raises(ValueError, match=r"batch\.inputs has T=12.*batch\.targets has T=11"):
        length(Batch(INPUTS, INPUTS[1:]))


def test_count_and_its_errors():
    assert (count_windows(12, 4), count_windows(12, 12), count_windows(7, 1)) == (3, 1, 7)
    with pytest.raises(
        ValueError, match=r"multiple of k1; got T=10, k1=4\. Pad the batch to T=12 with weights=0"
    ):
        count_windows(10, 4)
    with pytest.raises(ValueError, match=r"got T=3, k1=4\. Pad the batch to T=4"):
        count_windows(3, 4)
    with pytest.raises(
        ValueError, match=r"got T=0, chunk=5\. Pad the batch to T=5.*choose another chunk"
    ):
        count_windows(0, 5, name="chunk")
    with pytest.raises(ValueError, match=r"got T=12, chunk=5"):
        split_windows(BATCH, 5, name="chunk")


def test_windows_are_static_ints():
    for value in (3, np.int32(3)):
        assert check_positive_int("k2", value) == 3 and type(check_positive_int("k2", value)) is int
    for value in (True, 3.0, "3", None, jnp.asarray(3)):
        with pytest.raises(TypeError, match=r"k2 must be a Python int .*got"):
            check_positive_int("k2", value)
    for value in (0, -4):
        with pytest.raises(ValueError, match=rf"k2 must be at least 1 step; got k2={value}"):
            check_positive_int("k2", value)


def test_step_shape():
    assert step_shape(Batch(INPUTS, None)) == (T, B)
    assert step_shape(Batch(jnp.zeros((T, B), int), None)) == (T, B)  # integers are symbols
    assert step_shape(Batch(INPUTS[..., 0], None, weights=jnp.ones((T, B)))) == (
        T,
        B,
    )  # given flags determine it
    assert step_shape(Batch(INPUTS, None, resets=jnp.zeros((T,), bool))) == (T,)
    with pytest.raises(
        ValueError, match=r"must all have the shape.*weights \(12, 2\), mask \(12,\)"
    ):
        step_shape(Batch(INPUTS, None, weights=jnp.ones((T, B)), mask=jnp.ones((T,), bool)))
    with pytest.raises(
        ValueError, match=r"batch.inputs must be.*got shape \(12,\)\. Add a feature axis"
    ):
        step_shape(Batch(jnp.ones((T,)), None))


def test_total_weight_counts_steps_that_exist():
    weights, mask = np.asarray(BATCH.weights), np.asarray(BATCH.mask)
    assert 0 < mask.sum() < mask.size
    assert float(total_weight(BATCH)) == (weights * mask).sum()
    assert float(total_weight(BATCH._replace(weights=None))) == mask.sum()
    assert float(total_weight(BATCH._replace(mask=None))) == weights.sum()
    assert float(total_weight(Batch(INPUTS, None))) == T * B
    assert (
        total_weight(Batch(INPUTS, None, weights=jnp.ones((T, B), jnp.float32))).dtype
        == jnp.float32
    )
    holes = jnp.where(mask, weights, jnp.nan)  # weights of masked steps are ignored
    assert float(total_weight(BATCH._replace(weights=holes))) == (weights * mask).sum()


def test_mean_of_nothing_is_zero():
    total, weight = jnp.array([6.0, 5.0, -1.0]), jnp.array([4.0, 0.0, 0.5])
    np.testing.assert_array_equal(mean(total, weight), [1.5, 0.0, -2.0])
    slope = jax.grad(lambda t: jnp.sum(mean(t, weight)))(total)
    np.testing.assert_array_equal(slope, [0.25, 0.0, 2.0])
    assert mean(jnp.float32(3.0), jnp.float64(2.0)).dtype == jnp.float32
    unweighted = Batch(np.zeros((1, 1, 1)), None)
    loss, grads = means(
        jnp.float64(6.0), {"w": jnp.array([8.0, 2.0])}, jnp.float64(4.0), unweighted
    )
    assert float(loss) == 1.5 and grads["w"].tolist() == [2.0, 0.5]
    loss, grads = means(
        jnp.float64(0.0), {"w": jnp.zeros(2, jnp.float32)}, jnp.float64(0.0), unweighted
    )
    assert (
        float(loss) == 0.0 and grads["w"].tolist() == [0.0, 0.0] and grads["w"].dtype == jnp.float32
    )
