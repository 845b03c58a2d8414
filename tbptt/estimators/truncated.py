"""Truncated back-propagation through time, TBPTT(k1, k2), with disjoint or overlapping windows."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from tbptt.estimators._common import Sums, accumulate, checked_loss, weighted_mean
from tbptt.estimators.window_batch import disjoint_batch, overlapping_batch
from tbptt.types import Batch, Carry, Estimator, Gradient, LossFn, Memory, Params, PRNGKey
from tbptt.windows import check_positive_int, length, split, split_windows, without_masked_values


def truncated_bptt(loss_fn: LossFn, k1: int, k2: int, *, group: int = 1) -> Estimator:
    """Estimate the gradient by truncated back-propagation through time, TBPTT(k1, k2).

    L_t is the loss of step t and w_t its weight, summed over the batch; carries[t] enters t:

        g = (1 / W) sum_j d/dparams sum_{j k1 <= t < (j+1) k1} w_t L_t,    W = sum_t w_t,
            with the carry that enters step (j+1) k1 - k2 held constant

        for j in range(T // k1):                                      # as a plain loop, k2 >= k1
            start, end = max(0, (j + 1) * k1 - k2), (j + 1) * k1      # window j
            def loss(params):                                         # carries[start] is constant
                carry = stop_gradient(carries[start])
                _, carry = loss_fn(params, carry, batch[start : j * k1])       # replayed steps
                return loss_fn(params, carry, batch[j * k1 : end])[0]          # k1 new steps
            g += grad(loss)(params) / W

    - k2 = k1: disjoint windows.
    - k2 > k1: overlapping windows. The older k2 - k1 steps are replayed from a stored carry under
      the CURRENT parameters: Williams and Peng's BPTT(h; h') with h = k2, h' = k1.
    - k2 < k1: the sum over t begins at (j+1) k1 - k2. The first k1 - k2 steps of each window run
      forward only; they count in the reported loss and in W.
    - k2 >= T: full BPTT, to rounding.

    A call on T = n k1 steps returns the mean over its n windows at fixed parameters. A call on k1
    steps is one step of online training. The bytes that the backward pass needs depend on k2 and
    `group`, not on T. The equation holds for any additive `LossFn`. It also holds for a stream in
    several calls of any multiple of k1 steps: windows reach back into the steps of earlier calls.

    Args (all static):
      loss_fn: any `LossFn`.
      k1: stride, in steps: the number of new steps per window, at least 1; must divide T.
      k2: window, in steps: the number of steps through which the gradient flows back, at least 1.
      group: number of windows of one call that are differentiated as one batch; 1 for one after
        another. A forward pass computes their constant carries first, so the windows are
        independent. A group stores the residuals of all of its windows at once. On an accelerator
        choose a group of about 256 / B windows; on a CPU 1 is fastest for most sizes.

    Returns:
      An `Estimator`. Its info is a `WindowInfo` of the n windows, fields `[n]`. Its memory is the
      carry `[*batch, ...]` (k2 <= k1) or a `Past` (k2 > k1).

    Raises:
      TypeError, ValueError: k1, k2 or group is not an int >= 1; at `estimate`: T is not a multiple
        of k1, or loss_fn does not return a floating scalar and a carry like the one that it takes.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp, tbptt
      >>> cell, readout = tbptt.LSTM(2, 8), nn.Dense(1)
      >>> params = tbptt.init_params(jax.random.key(0), cell, readout)
      >>> batch = tbptt.Batch(jnp.ones((20, 4, 2)), jnp.zeros((20, 4, 1)))
      >>> loss_fn = tbptt.sequence_loss(cell, readout, tbptt.squared_error)
      >>> estimator = tbptt.truncated_bptt(loss_fn, k1=5, k2=10)
      >>> memory = estimator.init(params, cell.initial_carry((4,)), batch)
      >>> gradient = estimator.estimate(params, memory, batch)
      >>> gradient.info.losses.shape
      (4,)

    References: Williams and Peng, *An efficient gradient-based algorithm for on-line training of
    recurrent network trajectories*, Neural Computation 2, 1990. Sutskever, *Training recurrent
    neural networks*, thesis, 2013, section 2.8.6.
    """
    k1, k2 = check_positive_int("k1", k1), check_positive_int("k2", k2)
    group = check_positive_int("group", group)
    make = _overlapping if k2 > k1 else _disjoint
    init, window_gradient, grouped_gradients = make(checked_loss(loss_fn), k1, k2)

    def estimate(
        params: Params, memory: Memory, batch: Batch, key: PRNGKey | None = None
    ) -> Gradient:
        del key
        windows = split_windows(batch, k1)
        if group == 1:
            memory, sums = accumulate(window_gradient, params, memory, windows)
        else:
            memory, sums = grouped_gradients(params, memory, windows, group)
        return weighted_mean(params, memory, sums, batch)

    return Estimator(init, estimate)


def _disjoint(loss_fn: LossFn, k1: int, k2: int) -> tuple[Callable, Callable, Callable]:
    """Return (init, window_gradient, grouped_gradients) for k2 <= k1.

        init(params, carry, batch) -> memory
        window_gradient(params, memory, k1 steps) -> (loss_sum, grads, memory)
        grouped_gradients(params, memory, windows, group) -> (memory, Sums)

    Each window starts where the previous one ends, so the memory is the carry.
    """

    def init(params: Params, carry: Carry, batch: Batch) -> Carry:
        del params, batch
        return carry

    def window_gradient(params: Params, carry: Carry, batch: Batch):
        # The carry is not differentiated, so earlier windows need no residuals.
        forward_sum = 0.0
        if k2 < k1:
            forward_only, batch = split(batch, k1 - k2)
            forward_sum, carry = loss_fn(params, carry, forward_only)
        (loss_sum, carry), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, carry, batch)
        return forward_sum + loss_sum, grads, carry

    def grouped_gradients(
        params: Params, carry: Carry, windows: Batch, group: int
    ) -> tuple[Carry, Sums]:
        return disjoint_batch(loss_fn, k2, group, params, carry, windows)

    return init, window_gradient, grouped_gradients


class Past(NamedTuple):
    """Memory of overlapping windows: the steps to replay.

    carry:   the carry that enters the oldest valid step
    batch:   `[k2 - k1, *batch, ...]`, the last steps, oldest first; only the last `n_valid` are
      valid
    n_valid: scalar, the number of valid steps: min(steps of the stream so far, k2 - k1)
    """

    carry: Carry
    batch: Batch
    n_valid: Int[Array, ""]


def init_past(carry: Carry, batch: Batch, steps: int) -> Past:
    """Return the empty past of a stream that starts from `carry`.

    Args:
      carry: the carry that enters the first step of the stream.
      batch: an example, or its `jax.eval_shape`; only its shapes are used.
      steps: the number of steps to store.

    Returns:
      A `Past` without valid steps.
    """
    length(batch)  # raises an error if the leaves differ in T
    empty = jax.tree.map(
        lambda leaf: jnp.zeros((steps, *np.shape(leaf)[1:]), jnp.result_type(leaf)), batch
    )
    return Past(carry, empty, jnp.zeros((), jnp.int32))


def _check_same_batch(stored: Batch, new: Batch) -> None:
    """Raise a ValueError if a batch differs from the stored steps in structure or batch size."""
    if jax.tree.structure(stored) != jax.tree.structure(new):
        raise ValueError(
            "every batch of a stream must have the same fields and structure as the example that "
            f"init was given, {jax.tree.structure(stored)}; got {jax.tree.structure(new)}. Give "
            "weights, resets and mask in every batch or in none, or start again with rewind"
        )
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(stored), jax.tree.leaves(new), strict=True
    ):
        if np.shape(a)[1:] != np.shape(b)[1:]:
            raise ValueError(
                f"batch{jax.tree_util.keystr(path)} must be [T, ...] with the trailing shape "
                f"{np.shape(a)[1:]} of the stored steps; got {np.shape(b)[1:]}. A stream has one "
                "batch size: start another one with init or rewind"
            )


def _overlapping(loss_fn: LossFn, k1: int, k2: int) -> tuple[Callable, Callable, Callable]:
    """Return (init, window_gradient, grouped_gradients) for k2 > k1, as in `_disjoint`.

    The memory is a `Past`: the last k2 - k1 steps, which are replayed before the k1 new ones. Drawn
    for k2 > 2 k1:

        array position   0 ........ k1 ........ k2-k1 ......... k2
                         | dropped  |           |   new steps   |
                         |    stored before     |
                                    |       stored after        |

    `carry` enters position 0, and the next window starts from the carry at position k1. Stored and
    new steps are separate calls of the loss function, because only the loss of new steps counts.
    """
    n_stored = k2 - k1
    full = functools.partial(_full_window, loss_fn, k1, n_stored)
    partial = functools.partial(_partial_window, loss_fn, k1, n_stored)

    def init(params: Params, carry: Carry, batch: Batch) -> Past:
        del params
        return init_past(carry, batch, n_stored)

    def window_gradient(params: Params, past: Past, new: Batch):
        new = without_masked_values(new)
        _check_same_batch(past.batch, new)
        steps = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), past.batch, new)
        # Inside of the gradient, the cond would save the residuals of both branches.
        loss_sum, grads, carry = jax.lax.cond(
            past.n_valid == n_stored, full, partial, params, past.carry, steps, past.n_valid
        )
        n_valid = jnp.minimum(past.n_valid + k1, n_stored)
        return loss_sum, grads, Past(carry, jax.tree.map(lambda a: a[k1:], steps), n_valid)

    def grouped_gradients(
        params: Params, past: Past, windows: Batch, group: int
    ) -> tuple[Past, Sums]:
        # The first windows of a stream may have fewer than k2 steps; they are computed one by one.
        first = -(-n_stored // k1)
        if length(windows) <= first + 1:
            return accumulate(window_gradient, params, past, windows)
        partial_windows, rest = split(windows, first)
        past, a = accumulate(window_gradient, params, past, partial_windows)
        new = jax.tree.map(lambda leaf: leaf.reshape(length(rest) * k1, *leaf.shape[2:]), rest)
        new = without_masked_values(new)
        steps = jax.tree.map(lambda p, q: jnp.concatenate([p, q]), past.batch, new)
        carry, b = overlapping_batch(loss_fn, k1, k2, group, params, past.carry, steps)
        past = past._replace(
            carry=carry, batch=jax.tree.map(lambda leaf: leaf[length(new) :], steps)
        )
        return past, Sums(
            loss_sums=jnp.concatenate([a.loss_sums, b.loss_sums]),
            weights=jnp.concatenate([a.weights, b.weights]),
            grads=jax.tree.map(jnp.add, a.grads, b.grads),
        )

    return init, window_gradient, grouped_gradients


def _full_window(
    loss_fn: LossFn,
    k1: int,
    n_stored: int,
    params: Params,
    carry: Carry,
    steps: Batch,
    n_valid: Int[Array, ""],
):
    """Differentiate a window of k2 valid steps.

    The steps are split where the next window starts, and where the loss counts.
    """
    del n_valid
    edges = sorted({k1, n_stored})
    starts = [0, *edges]

    def loss(params: Params) -> tuple[Array, Carry]:
        loss_sums, entering, next_start = [], carry, carry
        for start, segment in zip(starts, split(steps, *edges), strict=True):
            if start == k1:
                next_start = entering
            loss_sum, entering = loss_fn(params, entering, segment)
            if start >= n_stored:
                loss_sums.append(loss_sum)
        return functools.reduce(jnp.add, loss_sums), next_start

    (loss_sum, next_start), grads = jax.value_and_grad(loss, has_aux=True)(params)
    return loss_sum, grads, next_start


def _partial_window(
    loss_fn: LossFn,
    k1: int,
    n_stored: int,
    params: Params,
    carry: Carry,
    steps: Batch,
    n_valid: Int[Array, ""],
):
    """Differentiate a window near the start of a stream, where fewer than k2 steps are valid.

    n_valid is a multiple of k1, so the stored steps are split into segments of k1 steps, each of
    which is valid or invalid as a whole. Invalid segments leave the carry unchanged.
    """
    n, first = n_stored // k1, n_stored % k1
    segments = jax.tree.map(lambda a: a[first:n_stored].reshape(n, k1, *a.shape[1:]), steps)
    is_valid = (n - jnp.arange(n)) * k1 <= n_valid
    new = split(steps, n_stored)[1]

    def loss(params: Params) -> Array:
        def replay(carry: Carry, now: tuple[Batch, Array]) -> tuple[Carry, None]:
            segment, valid = now

            def run(carry: Carry) -> Carry:
                return loss_fn(params, carry, segment)[1]

            return jax.lax.cond(valid, run, lambda c: c, carry), None

        entering, _ = jax.lax.scan(replay, carry, (segments, is_valid))
        return loss_fn(params, entering, new)[0]

    def advance() -> Carry:
        return loss_fn(params, carry, split(steps, first, k1)[1])[1]

    loss_sum, grads = jax.value_and_grad(loss)(params)
    # Valid steps that are dropped start at position `first`, because n_valid is a multiple of k1.
    return loss_sum, grads, jax.lax.cond(n_valid + k1 > n_stored, advance, lambda: carry)
