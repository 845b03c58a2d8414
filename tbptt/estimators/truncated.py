"""Truncated back-propagation through time, TBPTT(k1, k2)."""

import jax
import jax.numpy as jnp

from tbptt.estimators.overlapping import Past, init_past, overlapping_window
from tbptt.estimators.side_by_side import at_once, disjoint_side_by_side, overlapping_side_by_side
from tbptt.estimators.sums import Sums, checked, divided, one_after_another
from tbptt.types import Batch, Carry, Estimator, Gradient, LossFn, Memory, Params, PRNGKey
from tbptt.windows import check_window, cut, length, split


def truncated_bptt(loss_fn: LossFn, k1: int, k2: int, *, group: int | None = None) -> Estimator:
    """Cuts time into windows of k1 new steps and differentiates each through the last k2 steps of its past.

        g = (1 / W) sum_j d/dparams sum_{j k1 <= t < (j+1) k1} w_t L_t,
            with the carry that enters step (j+1) k1 - k2 held constant,    W = sum_t w_t

        for j in range(T // k1):                                    # as a plain loop
            start, end = max(0, (j + 1) * k1 - k2), (j + 1) * k1    # the window; carries[start] is its constant carry
            def loss(params):
                _, carry = loss_fn(params, stop_gradient(carries[start]), batch[start : j * k1])     # replayed
                return loss_fn(params, carry, batch[j * k1 : end])[0]                                # counted
            g += grad(loss)(params) / W

    k2 = k1: disjoint windows. k2 > k1: overlapping ones, whose older k2 - k1 steps are replayed from the remembered carry
    under the CURRENT parameters (Williams and Peng's BPTT(h; h') with h = k2, h' = k1). k2 < k1: of each window the first
    k1 - k2 steps run forward only; they add to the reported loss and not to the gradient. k2 >= T: full BPTT, to rounding.

    One call on T = n k1 steps gives the mean over its n windows at fixed parameters; a call on k1 steps is one step of
    online training. Many windows in one call can be differentiated side by side, `group` at a time: one forward pass gives
    the constant carries, and then they do not wait for each other. Memory of the backward pass depends on k2 and group,
    never on T. Exact with any additive `LossFn`, for a stream in pieces of any multiple of k1 steps, beginning included.

    Args:
      loss_fn: any `LossFn`.
      k1: stride, steps between windows; static int >= 1; must divide T.
      k2: window, steps that the gradient flows back; static int >= 1.
      group: windows differentiated as one batch; static int >= 1. 1 = one after another; None = 1 on a CPU,
        where that measured faster, else so many that lanes times windows make about 256 rows. A group needs the memory
        of its windows together.

    Returns:
      An `Estimator`; its info is a `WindowInfo` of the n windows. Memory is the carry (k2 <= k1) or an `overlapping.Past`.

    Raises:
      TypeError, ValueError: k1 or k2 is no static int >= 1; at `estimate`: T is not a multiple of k1.

    References: Williams and Peng, *An efficient gradient-based algorithm for on-line training of recurrent network
    trajectories*, Neural Computation 2, 1990. Sutskever, *Training recurrent neural networks*, thesis, 2013, section 2.8.6.
    """
    k1, k2 = check_window("k1", k1), check_window("k2", k2)
    group = None if group is None else check_window("group", group)
    loss_fn = checked(loss_fn)
    sums = _overlapping_sums(loss_fn, k1, k2) if k2 > k1 else _disjoint_sums(loss_fn, k1, k2)

    def init(params: Params, carry: Carry, batch: Batch) -> Memory:
        del params
        return init_past(carry, batch, k2 - k1) if k2 > k1 else carry

    def estimate(params: Params, memory: Memory, batch: Batch, key: PRNGKey | None = None) -> Gradient:
        del key
        windows = cut(batch, k1)
        return divided(*sums(params, memory, windows, group or at_once(batch, length(windows))))

    return Estimator(init, estimate)


def _disjoint_sums(loss_fn: LossFn, k1: int, k2: int):
    """k2 <= k1: every window starts where the one before it ended."""
    one = _disjoint_window(loss_fn, k1, k2)

    def sums(params: Params, carry: Carry, windows: Batch, group: int) -> tuple[Carry, Sums]:
        if group == 1:
            return one_after_another(one, params, carry, windows)
        return disjoint_side_by_side(loss_fn, k2, group, params, carry, windows)

    return sums


def _overlapping_sums(loss_fn: LossFn, k1: int, k2: int):
    """k2 > k1: the first windows of a call may find the stream younger than k2, so they go one after another."""
    one = overlapping_window(loss_fn, k1, k2)
    first = -(-(k2 - k1) // k1)

    def sums(params: Params, past: Past, windows: Batch, group: int) -> tuple[Past, Sums]:
        if group == 1 or length(windows) <= first + 1:
            return one_after_another(one, params, past, windows)
        young, rest = split(windows, first)
        past, a = one_after_another(one, params, past, young)
        new = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), rest)
        steps = jax.tree.map(lambda p, q: jnp.concatenate([p, q]), past.batch, new)
        carry, b = overlapping_side_by_side(loss_fn, k1, k2, group, params, past.carry, steps)
        past = past._replace(carry=carry, batch=jax.tree.map(lambda leaf: leaf[length(new) :], steps))
        losses, weights = (jnp.concatenate([getattr(a, name), getattr(b, name)]) for name in ("losses", "weights"))
        return past, Sums(losses, weights, jax.tree.map(jnp.add, a.grads, b.grads))

    return sums


def _disjoint_window(loss_fn: LossFn, k1: int, k2: int):
    """k2 <= k1: run forward through k1 - k2 steps, differentiate the rest. Truncation is structural: the carry is an
    argument that is not differentiated, so nothing before the window is kept for the backward pass."""

    def window(params: Params, carry: Carry, batch: Batch):
        ahead_sum = 0.0
        if k2 < k1:
            ahead, batch = split(batch, k1 - k2)
            ahead_sum, carry = loss_fn(params, carry, ahead)
        (loss_sum, carry), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, carry, batch)
        return ahead_sum + loss_sum, grads, carry

    return window
