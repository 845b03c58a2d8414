"""Cells against PyTorch on the same weights (golden/make_torch.py), and conventions of the GRU."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import tbptt
from tbptt.cells import (
    ElmanCarry,
    ElmanParams,
    GRUCarry,
    GRUParams,
    GRUResetBeforeParams,
    LSTMCarry,
    LSTMParams,
)

T, B, D, H = 6, 2, 3, 4
TOLERANCE = dict(rtol=1e-12, atol=1e-12)


@pytest.fixture(scope="module")
def golden():
    with np.load(Path(__file__).parents[1] / "support" / "golden" / "torch_cells.npz") as arrays:
        return dict(arrays)


def of(golden, kind):
    return {
        name.removeprefix(f"{kind}_"): a
        for name, a in golden.items()
        if name.startswith(f"{kind}_")
    }


def one_bias(t, prefix=""):
    """Sum the two biases of PyTorch's RNN and LSTM; the gradient of the sum is that of either."""
    b = t["b_ih"] + t["b_hh"] if not prefix else t[f"{prefix}b_ih"]
    return t[f"{prefix}w_ih"].T, t[f"{prefix}w_hh"].T, b


def elman_params(t, prefix=""):
    w_x, w_h, b = one_bias(t, prefix)
    return ElmanParams(w_h=w_h, w_x=w_x, b=b)


def lstm_params(t, prefix=""):
    w_x, w_h, b = one_bias(t, prefix)
    return LSTMParams(w_x=w_x, w_h=w_h, b=b)


def gru_params(t, prefix=""):
    """Add b_hr and b_hz to b_ir and b_iz; b_hn is inside the reset product and stays separate."""
    w_x, w_h, b_ih, b_hh = (t[f"{prefix}{name}"] for name in ("w_ih", "w_hh", "b_ih", "b_hh"))
    b = b_ih if prefix else b_ih + np.concatenate([b_hh[: 2 * H], np.zeros(H)])
    return GRUParams(w_x=w_x.T, w_h=w_h.T, b=b, b_n=b_hh[2 * H :])


CASES = {
    "rnn": (tbptt.Elman(D, H), elman_params, lambda t, p, s: ElmanCarry(t[f"{p}h{s}"])),
    "gru": (tbptt.GRU(D, H), gru_params, lambda t, p, s: GRUCarry(t[f"{p}h{s}"])),
    "lstm": (
        tbptt.LSTM(D, H),
        lstm_params,
        lambda t, p, s: LSTMCarry(h=t[f"{p}h{s}"], c=t[f"{p}c{s}"]),
    ),
}


def assert_close(got, wanted):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **TOLERANCE), got, wanted)


@pytest.mark.parametrize("kind", CASES)
def test_outputs_carry_and_gradients_equal_pytorch(golden, kind):
    cell, params_of, carry_of = CASES[kind]
    t = of(golden, kind)
    assert t["xs"].shape == (T, B, D) and t["ys"].dtype == np.float64
    params, carry = params_of(t), carry_of(t, "", "_0")

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1, 2), has_aux=True)
    def slopes(params, carry, xs):
        final, ys = tbptt.unroll(cell, params, carry, xs)
        return jnp.sum(ys * t["cotangent"]), (final, ys)

    grads, (final, ys) = slopes(params, carry, t["xs"])
    assert_close(ys, t["ys"])
    assert_close(final, carry_of(t, "", "_T"))
    assert_close(grads[0], params_of(t, "grad_"))
    assert_close(grads[1], carry_of(t, "grad_", "_0"))
    assert_close(grads[2], t["grad_xs"])


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def reset_before_reference(params, h, xs):
    """The published GRU as a plain numpy loop, one gate at a time."""
    ys = []
    for x in xs:
        a = [
            x @ params.w_x[:, k * H : (k + 1) * H] + params.b[k * H : (k + 1) * H] for k in range(3)
        ]
        r, z = (sigmoid(a[k] + h @ params.w_h[:, k * H : (k + 1) * H]) for k in range(2))
        h = (1 - z) * np.tanh(a[2] + (r * h) @ params.w_n) + z * h
        ys.append(h)
    return np.stack(ys)


def reset_before_case():
    rng = np.random.default_rng(1)
    shapes = GRUResetBeforeParams(w_x=(D, 3 * H), w_h=(H, 2 * H), w_n=(H, H), b=(3 * H,))
    params = GRUResetBeforeParams(*(rng.uniform(-1, 1, shape) for shape in shapes))
    return params, rng.normal(size=(B, H)), rng.normal(size=(T, B, D)), rng.normal(size=(T, B, H))


@functools.partial(jax.jit, static_argnums=0)
def run(cell, params, h, xs):
    return tbptt.unroll(cell, params, GRUCarry(h), xs)[1]


def test_gru_reset_before_equals_a_numpy_loop():
    params, h, xs, _ = reset_before_case()
    assert_close(
        run(tbptt.cells.GRUResetBefore(D, H), params, h, xs), reset_before_reference(params, h, xs)
    )


def test_gru_reset_before_gradient_equals_finite_differences():
    params, h, xs, cotangent = reset_before_case()
    cell = tbptt.cells.GRUResetBefore(D, H)
    got = jax.jit(jax.grad(lambda p: jnp.sum(run(cell, p, h, xs) * cotangent)))(params)
    for name in params._fields:
        weight, wanted = getattr(params, name), np.zeros_like(getattr(params, name))
        for index in np.ndindex(weight.shape):
            step = np.zeros_like(weight)
            step[index] = 1e-4
            up, down, up2, down2 = (
                np.sum(
                    reset_before_reference(params._replace(**{name: weight + k * step}), h, xs)
                    * cotangent
                )
                for k in (1, -1, 2, -2)
            )
            # Error O(step^4), about 1e-12 here.
            wanted[index] = (8 * (up - down) - (up2 - down2)) / 12e-4
        np.testing.assert_allclose(getattr(got, name), wanted, rtol=0, atol=1e-9, err_msg=name)


def as_reset_after(params):
    """Return the same numbers as parameters of the other convention."""
    return GRUParams(
        params.w_x, np.concatenate([params.w_h, params.w_n], axis=1), params.b, np.zeros(H)
    )


def test_the_two_gru_conventions_differ():
    params, h, xs, _ = reset_before_case()
    before = np.asarray(run(tbptt.cells.GRUResetBefore(D, H), params, h, xs))
    after = np.asarray(run(tbptt.GRU(D, H), as_reset_after(params), h, xs))
    assert np.max(np.abs(before[0] - after[0])) > 1e-2


def test_the_two_gru_conventions_agree_where_the_reset_gate_is_open():
    params, h, xs, _ = reset_before_case()
    params = params._replace(b=params.b + 100.0 * (np.arange(3 * H) < H))  # r = 1 to rounding
    before = run(tbptt.cells.GRUResetBefore(D, H), params, h, xs)
    assert_close(before, run(tbptt.GRU(D, H), as_reset_after(params), h, xs))


@pytest.mark.parametrize(
    "cell",
    [tbptt.GRU(D, H), tbptt.cells.GRUResetBefore(D, H)],
    ids=lambda cell: type(cell).__name__,
)
def test_z_of_one_keeps_the_old_h(cell):
    params, h, xs, _ = reset_before_case()
    # z = 1.
    params = params._replace(
        b=params.b + 100.0 * ((np.arange(3 * H) >= H) & (np.arange(3 * H) < 2 * H))
    )
    ys = run(
        cell,
        params if isinstance(cell, tbptt.cells.GRUResetBefore) else as_reset_after(params),
        h,
        xs,
    )
    assert_close(ys, np.broadcast_to(h, (T, B, H)))
