"""Saturation: the gates are the cell's own, the shares are counted as said, and an unknown cell is told so."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.nn import sigmoid

from tbptt.cells import GRU, LSTM, DiagonalLinear, Elman, ElmanCarry, GRUResetBefore, Stack
from tbptt.clipping import ClippedCell
from tbptt.diagnostics import Gate, gates, saturation
from tbptt.unroll import unroll

T, B, D, H = 7, 3, 2, 4


def drawn(cell, key, batch=(B,), steps=T, scale=3.0):
    params = jax.tree.map(lambda p: scale * (p + 0.2), cell.init(key))
    return params, cell.initial_carry(batch), jax.random.normal(key, (steps, *batch, cell.input_dim))


def from_elman(cell, found, carry):
    return found["h"]


def from_gru(cell, found, carry):
    return (1 - found["z"]) * found["n"] + found["z"] * carry.h


def from_lstm(cell, found, carry):
    c = found["f"] * carry.c + found["i"] * found["g"]
    np.testing.assert_allclose(found["c"], jnp.tanh(c), rtol=1e-13)
    return found["o"] * found["c"]


CELLS = {
    "elman": (Elman(D, H), from_elman),
    "sigmoid elman": (Elman(D, H, activation=sigmoid), from_elman),
    "gru": (GRU(D, H), from_gru),
    "reset before": (GRUResetBefore(D, H), from_gru),
    "lstm": (LSTM(D, H), from_lstm),
    "lstm of one unit": (LSTM(1, 1), from_lstm),
}
each_cell = pytest.mark.parametrize(("cell", "rebuild"), CELLS.values(), ids=CELLS)


def values(cell, params, carry, x):
    return {name: gate.activation(gate.pre) for name, gate in gates(cell, params, carry, x).items()}


@each_cell
def test_the_gates_rebuild_the_cells_own_step(cell, rebuild, key):
    params, carry, xs = drawn(cell, key)
    for x in xs:
        new, _ = cell(params, carry, x)
        np.testing.assert_allclose(rebuild(cell, values(cell, params, carry, x), carry), new.h, rtol=1e-13)
        carry = new


@pytest.mark.parametrize("cell", [GRU(D, H), GRUResetBefore(D, H)])
def test_the_reset_gate_is_the_cells_own(cell, key):
    params, carry, xs = drawn(cell, key)
    carry = carry._replace(h=carry.h + 0.5)
    r = values(cell, params, carry, xs[0])["r"]
    x_n = cell.inputs(params, xs[0])[..., 2 * H :]
    if isinstance(cell, GRU):
        n = jnp.tanh(x_n + r * (carry.h @ params.w_h[:, 2 * H :] + params.b_n))
    else:
        n = jnp.tanh(x_n + (r * carry.h) @ params.w_n)
    np.testing.assert_allclose(values(cell, params, carry, xs[0])["n"], n, rtol=1e-13)


def test_a_stack_names_its_layers_and_feeds_them(key):
    stack = Stack((LSTM(D, H), DiagonalLinear(H, 5), GRU(5, 3)))
    params, carry, xs = drawn(stack, key)
    seen = saturation(stack, params, carry, xs)
    assert sorted(seen) == sorted(["0.i", "0.f", "0.g", "0.o", "0.c", "2.r", "2.z", "2.n"])
    layer, alone = xs, {}
    for n, cell in enumerate(stack.cells):
        alone |= {f"{n}.{name}": s for name, s in saturation(cell, params[n], carry[n], layer).items()}
        _, layer = unroll(cell, params[n], carry[n], layer)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), seen, alone)


@each_cell
def test_shares_and_slopes_are_counted_one_by_one(cell, rebuild, key):
    params, carry, xs = drawn(cell, key)
    pre = []
    for x in xs:
        found = gates(cell, params, carry, x)
        pre.append({name: gate.pre for name, gate in found.items()})
        carry, _ = cell(params, carry, x)
    got = jax.jit(lambda p, c, xs: saturation(cell, p, c, xs, flat=0.3))(params, cell.initial_carry((B,)), xs)
    assert sorted(got) == sorted(pre[0])
    for name, seen in got.items():
        a = np.stack([p[name] for p in pre])
        is_sigmoid = name in "ifozr" or getattr(cell, "activation", None) is sigmoid
        s = 1 / (1 + np.exp(-a))
        slope, value, top = (s * (1 - s), s, 0.25) if is_sigmoid else (1 - np.tanh(a) ** 2, np.tanh(a), 1.0)
        flat = slope < 0.3 * top
        want = (flat.mean(), flat.all(axis=(0, 1)).mean(), slope.mean(), value.mean())
        np.testing.assert_allclose(seen, want, rtol=1e-10)
    assert 0 < np.mean([s.flat for s in got.values()]) < 1


def test_known_numbers():
    cell = Elman(1, 4, activation=jax.nn.relu)
    params = cell.init(jax.random.key(0))._replace(w_h=jnp.zeros((4, 4)), w_x=jnp.array([[1.0, -1.0, 1.0, 1.0]]))
    params = params._replace(b=jnp.array([0.0, 0.0, -10.0, 10.0]))
    seen = saturation(cell, params, cell.initial_carry(), jnp.array([[1.0], [-2.0]]))["h"]
    assert seen == (0.5, 0.25, 0.5, (1 + 0 + 0 + 11 + 0 + 2 + 0 + 8) / 8)  # one unit is dead at every step
    linear = dataclasses.replace(cell, activation=lambda a: a)
    assert saturation(linear, params, cell.initial_carry(), jnp.ones((1, 1)))["h"][:3] == (0, 0, 1)
    tanh = dataclasses.replace(cell, activation=jnp.tanh)
    edge = np.arctanh(np.sqrt(0.95))  # 1 - tanh^2 = 0.05
    params = params._replace(w_x=jnp.zeros((1, 4)), b=edge * jnp.array([0.999, -0.999, 1.001, -1.001]))
    assert saturation(tanh, params, cell.initial_carry(), jnp.ones((1, 1)))["h"].flat == 0.5


def test_masked_steps_do_not_count_and_resets_are_followed(key):
    cell = LSTM(D, H)
    params, carry, xs = drawn(cell, key)
    mask = jnp.ones((T, B), bool).at[4:].set(False)
    padded = saturation(cell, params, carry, xs.at[4:].set(jnp.nan), mask=mask)
    short = saturation(cell, params, carry, xs[:4])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), padded, short)
    resets = jnp.zeros((T, B), bool).at[3].set(True)
    one, two = (saturation(cell, params, carry, part) for part in (xs[:3], xs[3:]))
    both = saturation(cell, params, carry, xs, resets=resets)
    for name in both:
        np.testing.assert_allclose(both[name].slope, (3 * one[name].slope + 4 * two[name].slope) / T, rtol=1e-12)


def test_of_no_steps_nothing_is_known(key):
    cell = GRU(D, H)
    params, carry, xs = drawn(cell, key)
    lost = saturation(cell, params, carry, xs, mask=jnp.zeros((T, B), bool))
    for seen in (*lost.values(), *saturation(cell, params, carry, xs[:0]).values()):
        assert np.isnan(np.asarray(seen)).all()
    one = saturation(cell, params, carry, xs, mask=jnp.zeros((T, B), bool).at[2, 1].set(True))
    assert all(np.isfinite(np.asarray(seen)).all() for seen in one.values())


def test_a_clipped_cell_has_the_gates_of_the_cell_inside(key):
    plain = Stack((LSTM(D, H), GRU(H, 3)))
    params, carry, xs = drawn(plain, key)
    want = saturation(plain, params, carry, xs)
    for cell in (ClippedCell(plain, 0.1), Stack((ClippedCell(plain.cells[0], 0.1), plain.cells[1]))):
        jax.tree.map(np.testing.assert_array_equal, saturation(cell, params, carry, xs), want)


def test_one_step_and_nan_parameters(key):
    cell = GRU(D, H)
    params, carry, xs = drawn(cell, key, steps=1)
    assert all(np.isfinite(leaf) for leaf in jax.tree.leaves(saturation(cell, params, carry, xs)))
    seen = saturation(cell, params._replace(b=params.b * jnp.nan), carry, xs)
    assert all(s.flat == s.stuck == 1 and np.isnan(s.slope) and np.isnan(s.value) for s in seen.values())


@dataclasses.dataclass(frozen=True)
class Foreign:
    """A cell with an integer leaf in its carry."""

    input_dim: int = D
    hidden_dim: int = H

    def init(self, key):
        return Elman(D, H).init(key)

    def initial_carry(self, batch_shape=()):
        return Elman(D, H).initial_carry(batch_shape).h, jnp.zeros(batch_shape, int)

    def __call__(self, params, carry, x):
        new, y = Elman(D, H)(params, ElmanCarry(carry[0]), x)
        return (new.h, carry[1] + 1), y


class WithGates(Foreign):
    def gates(self, params, carry, x):
        return {"h": Gate(carry[0] @ params.w_h + x @ params.w_x + params.b, jnp.tanh)}


def test_an_unknown_cell_is_told_what_is_known_and_may_answer_for_itself(key):
    params, carry, xs = drawn(Foreign(), key)
    message = r"known for DiagonalLinear, Elman, GRU, GRUResetBefore, LSTM and Stack; got Foreign.*gates\(params"
    with pytest.raises(TypeError, match=message):
        saturation(Foreign(), params, carry, xs)
    want = saturation(Elman(D, H), params, Elman(D, H).initial_carry((B,)), xs)
    got = saturation(WithGates(), params, carry, xs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-13), got, want)
    assert saturation(DiagonalLinear(D, H), *drawn(DiagonalLinear(D, H), key)) == {}
