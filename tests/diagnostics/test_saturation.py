"""Gates equal those of the cells, and saturation statistics equal explicit counts."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.nn import sigmoid

from tbptt.cells import (
    GRU,
    LSTM,
    ClippedCell,
    DiagonalLinear,
    Elman,
    ElmanCarry,
    GRUResetBefore,
    Stack,
)
from tbptt.diagnostics import Gate, gates, saturation
from tbptt.unroll import unroll
from tests.support.sequences import cell_params, zero_carry

T, B, D, H = 7, 3, 2, 4


def drawn(cell, batch=(B,), steps=T, scale=3.0):
    params = jax.tree.map(lambda p: scale * (p + 0.2), cell_params(cell))
    return (
        params,
        zero_carry(cell, batch),
        np.random.default_rng(0).normal(size=(steps, *batch, cell.input_dim)),
    )


def from_elman(cell, found, carry):
    return found["h"]


def from_gru(cell, found, carry):
    return (1 - found["z"]) * found["n"] + found["z"] * carry.h


def from_lstm(cell, found, carry):
    c = found["f"] * carry.c + found["i"] * found["g"]
    np.testing.assert_allclose(found["c"], np.tanh(c), rtol=1e-13)
    return found["o"] * found["c"]


CELLS = {
    "sigmoid elman": (Elman(D, H, activation=sigmoid), from_elman),
    "gru": (GRU(D, H), from_gru),
    "reset before": (GRUResetBefore(D, H), from_gru),
    "lstm": (LSTM(D, H), from_lstm),
}
each_cell = pytest.mark.parametrize(("cell", "rebuild"), CELLS.values(), ids=CELLS)


@functools.partial(jax.jit, static_argnums=0)
def step_with_gates(cell, params, carry, x):
    """Return the new carry, gate values, gate inputs, and the input projection of one step."""
    found = gates(cell, params, carry, x)
    values = {name: gate.activation(gate.pre) for name, gate in found.items()}
    return (
        cell(params, carry, x)[0],
        values,
        {name: gate.pre for name, gate in found.items()},
        cell.inputs(params, x),
    )


def steps(cell, params, carry, xs):
    for x in xs:
        new, *found = jax.tree.map(np.asarray, step_with_gates(cell, params, carry, x))
        yield carry, new, *found
        carry = new


_saturated = jax.jit(saturation, static_argnums=0, static_argnames="flat")


def saturated(*args, **given):
    return jax.tree.map(np.asarray, _saturated(*args, **given))


@each_cell
def test_the_step_is_a_function_of_the_gates(cell, rebuild):
    for carry, new, values, _, _ in steps(cell, *drawn(cell)):
        np.testing.assert_allclose(rebuild(cell, values, carry), new.h, rtol=1e-13)


@pytest.mark.parametrize("cell", [GRU(D, H), GRUResetBefore(D, H)])
def test_the_reset_gate_equals_the_cells_reset_gate(cell):
    params, carry, xs = drawn(cell)
    carry = carry._replace(h=carry.h + 0.5)
    _, values, _, inputs = jax.tree.map(np.asarray, step_with_gates(cell, params, carry, xs[0]))
    r, x_n = values["r"], inputs[..., 2 * H :]
    if isinstance(cell, GRU):
        n = np.tanh(x_n + r * (carry.h @ params.w_h[:, 2 * H :] + params.b_n))
    else:
        n = np.tanh(x_n + (r * carry.h) @ params.w_n)
    np.testing.assert_allclose(values["n"], n, rtol=1e-13)


@each_cell
def test_fractions_and_slopes_equal_explicit_counts(cell, rebuild):
    params, carry, xs = drawn(cell)
    pre = [found for *_, found, _ in steps(cell, params, carry, xs)]
    got = saturated(cell, params, carry, xs, flat=0.3)
    assert sorted(got) == sorted(pre[0])
    for name, found in got.items():
        a = np.stack([p[name] for p in pre])
        is_sigmoid = name in "ifozr" or getattr(cell, "activation", None) is sigmoid
        s = 1 / (1 + np.exp(-a))
        slope, value, top = (
            (s * (1 - s), s, 0.25) if is_sigmoid else (1 - np.tanh(a) ** 2, np.tanh(a), 1.0)
        )
        flat = slope < 0.3 * top
        want = (flat.mean(), flat.all(axis=(0, 1)).mean(), slope.mean(), value.mean())
        np.testing.assert_allclose(found, want, rtol=1e-10)
    assert 0 < np.mean([s.flat for s in got.values()]) < 1


@pytest.mark.exhaustive
def test_a_stack_has_the_gates_of_its_layers():
    stack = Stack((LSTM(D, H), DiagonalLinear(H, 5), GRU(5, 3)))

    @jax.jit
    def both(params, carry, xs):
        layer, alone = xs, {}
        for n, cell in enumerate(stack.cells):
            alone |= {
                f"{n}.{name}": s for name, s in saturation(cell, params[n], carry[n], layer).items()
            }
            _, layer = unroll(cell, params[n], carry[n], layer)
        return saturation(stack, params, carry, xs), alone

    found, alone = jax.tree.map(np.asarray, both(*drawn(stack)))
    assert sorted(found) == sorted(["0.i", "0.f", "0.g", "0.o", "0.c", "2.r", "2.z", "2.n"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), found, alone)


def test_closed_form_values():
    cell = Elman(1, 4, activation=jax.nn.relu)
    carry, ones = zero_carry(cell), np.ones((2, 1))
    params = cell_params(cell)._replace(
        w_h=np.zeros((4, 4)),
        w_x=np.array([[1.0, -1.0, 1.0, 1.0]]),
        b=np.array([0.0, 0.0, -10.0, 10.0]),
    )
    found = saturated(cell, params, carry, np.array([[1.0], [-2.0]]))["h"]
    assert found == (
        0.5,
        0.25,
        0.5,
        (1 + 0 + 0 + 11 + 0 + 2 + 0 + 8) / 8,
    )  # one unit is 0 at every step
    linear = dataclasses.replace(cell, activation=_same)
    assert saturated(linear, params, carry, ones)["h"][:3] == (0, 0, 1)
    tanh = dataclasses.replace(cell, activation=jnp.tanh)
    edge = np.arctanh(np.sqrt(0.95))  # 1 - tanh^2 = 0.05
    params = params._replace(
        w_x=np.zeros((1, 4)), b=edge * np.array([0.999, -0.999, 1.001, -1.001])
    )
    assert saturated(tanh, params, carry, ones)["h"].flat == 0.5


def _same(a):
    return a


def test_masked_steps_do_not_count_and_resets_apply():
    cell = Elman(D, H)
    params, carry, xs = drawn(cell)
    mask, resets, none = np.ones((T, B), bool), np.zeros((T, B), bool), np.zeros((T, B), bool)
    mask[4:], resets[3] = False, True
    padded, both = (
        saturated(cell, params, carry, inputs, mask=m, resets=r, flat=0.99)
        for inputs, m, r in (
            (np.where(mask[..., None], xs, np.nan), mask, none),
            (xs, ~none, resets),
        )
    )
    short = saturated(cell, params, carry, xs[:4], flat=0.99)
    assert max(s.stuck for s in short.values()) > 0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), padded, short)
    one, two = (saturated(cell, params, carry, part, flat=0.99) for part in (xs[:3], xs[3:]))
    for name in both:
        np.testing.assert_allclose(
            both[name].slope, (3 * one[name].slope + 4 * two[name].slope) / T, rtol=1e-12
        )


def test_without_steps_all_statistics_are_nan():
    cell = Elman(D, H)
    params, carry, xs = drawn(cell)
    mask = np.zeros((T, B), bool)
    lost = saturated(cell, params, carry, xs, mask=mask)
    for found in (*lost.values(), *saturated(cell, params, carry, xs[:0]).values()):
        assert np.isnan(np.asarray(found)).all()
    mask[2, 1] = True
    one = saturated(cell, params, carry, xs, mask=mask)
    assert all(np.isfinite(np.asarray(found)).all() for found in one.values())


@pytest.mark.exhaustive
def test_a_clipped_cell_has_the_gates_of_the_cell_inside():
    plain = Stack((LSTM(D, H), GRU(H, 3)))
    clipped = ClippedCell(plain, 0.1), Stack((ClippedCell(plain.cells[0], 0.1), plain.cells[1]))
    all_of = jax.jit(lambda *given: [saturation(cell, *given) for cell in (plain, *clipped)])
    want, *found = all_of(*drawn(plain))
    for got in found:
        jax.tree.map(np.testing.assert_array_equal, got, want)


def test_one_step_and_nan_parameters():
    cell = Elman(D, H)
    params, carry, xs = drawn(cell, steps=1)
    assert all(np.isfinite(leaf) for leaf in jax.tree.leaves(saturated(cell, params, carry, xs)))
    found = saturated(cell, params._replace(b=params.b * np.nan), carry, xs)
    assert all(
        s.flat == s.stuck == 1 and np.isnan(s.slope) and np.isnan(s.value) for s in found.values()
    )


@dataclasses.dataclass(frozen=True)
class UserCell:
    """A user-defined cell with an integer leaf in its carry."""

    input_dim: int = D
    hidden_dim: int = H

    def init(self, key):
        return Elman(D, H).init(key)

    def initial_carry(self, batch_shape=()):
        return Elman(D, H).initial_carry(batch_shape).h, jnp.zeros(batch_shape, int)

    def __call__(self, params, carry, x):
        new, y = Elman(D, H)(params, ElmanCarry(carry[0]), x)
        return (new.h, carry[1] + 1), y


class WithGates(UserCell):
    def gates(self, params, carry, x):
        return {"h": Gate(carry[0] @ params.w_h + x @ params.w_x + params.b, jnp.tanh)}


def test_an_unsupported_cell_is_an_error_unless_it_has_a_gates_method():
    params, carry, xs = drawn(UserCell())
    message = (
        "one of DiagonalLinear, Elman, GRU, GRUResetBefore, LSTM or Stack; "
        r"got UserCell.*gates\(params"
    )
    with pytest.raises(TypeError, match=message):
        jax.eval_shape(functools.partial(saturation, UserCell()), params, carry, xs)
    want = saturated(Elman(D, H), params, zero_carry(Elman(D, H), (B,)), xs)
    got = saturated(WithGates(), params, carry, xs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-13), got, want)
    assert saturated(DiagonalLinear(D, H), *drawn(DiagonalLinear(D, H))) == {}
