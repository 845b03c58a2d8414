"""One lane on two threads is the same loop, whenever a helper comes and however often it is let go."""

from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tbptt.cells import GRU, LSTM, Elman
from tbptt.cores import usable_cores
from tbptt.native import choice, pairs, sizes
from tbptt.native.frame import buffers, compiled, registered, words
from tbptt.native.system import BYTES, add, call, give_way, load, this_thread
from tbptt.unroll import unroll
from tests.support.compiled import callable_here
from tests.support.problems import assert_same, plain_answer, problem, with_gradients

D, T = 3, 40
exhaustive = pytest.mark.exhaustive
# Compiling a loop takes seconds: in the first tier only the Elman cell's, which tests.native.test_native compiles too.
CELLS = [Elman, *(pytest.param(make, marks=exhaustive) for make in (GRU, LSTM))]
each_cell = pytest.mark.parametrize("make", CELLS, ids=["Elman", "GRU", "LSTM"])


@pytest.fixture
def halves(monkeypatch):
    """Two halves of any one lane, in float64 too."""
    monkeypatch.setattr(choice, "DTYPES", (jnp.float32, jnp.float64))
    monkeypatch.setattr(sizes, "cores_of_a_device", lambda: 2)
    monkeypatch.setattr(sizes, "HALVED", 1)
    monkeypatch.setattr(sizes, "LEAST_HALVED", 1)


@each_cell
@pytest.mark.parametrize("H", [7, *(pytest.param(H, marks=exhaustive) for H in (2, 64))])
def test_halves_are_the_plain_scan(make, H, halves):
    # With a batch axis and without, forward and in reverse, in turns: any two of cell, units, batch and direction meet.
    turn = len(make.__name__) + [2, 7, 64].index(H)
    batch_shape, reverse = ((1,), ())[turn % 2], turn % 3 == 1
    cell = make(D, H)
    params, carry, xs, given = problem(cell, batch_shape, T)
    ours = with_gradients(lambda *a: unroll(cell, *a, **given, reverse=reverse))
    for _ in range(5):  # with a helper from other turns on, or none
        assert_same(ours(params, carry, xs), plain_answer(cell, batch_shape, T, reverse=reverse))
    assert ours.lower(params, carry, xs).as_text().count("parts = 2 : i64") == 2  # there and back


@exhaustive
@each_cell
def test_many_calls_at_once_agree_exactly(make, halves):
    """More callers than cores: helpers come late, are waited for, and are let go; the numbers are the same ones."""
    cell = make(D, 36)  # halves of 18 units, while products take four rows at a time
    params, carry, xs, given = problem(cell, (1,), 200)

    def gradient(params, scale):
        return jax.grad(lambda p: jnp.sum(jnp.sin(scale * unroll(cell, p, carry, xs, **given)[1])))(params)

    in_halves, scales = jax.jit(gradient), np.linspace(0.5, 2, 20)
    want = [jax.block_until_ready(in_halves(params, scale)) for scale in scales]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda scale: jax.block_until_ready(in_halves(params, scale)), np.tile(scales, 30)))
    for i, each in enumerate(got):
        jax.tree.map(np.testing.assert_array_equal, each, want[i % len(want)])


def test_when_in_halves(monkeypatch):
    monkeypatch.setattr(sizes, "cores_of_a_device", lambda: 2)
    least, steps = sizes.HALVED, sizes.LEAST_HALVED // sizes.HALVED + 1
    assert sizes.halves_of(1, steps, least) == 2
    assert sizes.halves_of(1, steps, least - 1) == sizes.halves_of(2, steps, least) == sizes.halves_of(1, 2, least) == 1
    monkeypatch.setattr(sizes, "cores_of_a_device", lambda: 1)
    assert sizes.halves_of(1, steps, least) == 1


TURNS, UNITS, LATE = 400, 5, 390


@compiled
def _wait_for_help(place):
    """Waits, not for ever, until the helper has joined, if one was asked for: it owns the shared memory too."""
    waited = 0
    while load(place[2] + pairs.OWNERS * BYTES) == 2 and load(place[2] + pairs.JOINED * BYTES) == 0 and waited < 1_000_000:
        give_way()
        waited += 1


@compiled
def _sign(w, ins, outs, kind, place):
    """Writes who had which units in every turn, and what the other one then saw of it. The caller waited too long from turn
    LATE on, if it is to, and never else, however busy the machine is."""
    out, waits = words(words(outs[0], 6)[3], TURNS * UNITS), words(words(ins[1], 6)[3], 1)[0]
    seen = words(words(outs[1], 6)[3], TURNS * UNITS)
    if place[0] == 0:
        _wait_for_help(place)
    for turn in range(pairs.first_turn(place), TURNS):
        begin, end = pairs.units_of(place, turn, UNITS)
        if begin == UNITS:
            break
        for unit in range(begin, end):
            out[turn * UNITS + unit] = place[0] + 1
        if end - begin < UNITS:
            pairs.meet(place[2], place[0], turn)
        for unit in range(begin, end):
            seen[turn * UNITS + unit] = out[turn * UNITS + UNITS - 1 - unit]
        if place[0] == 0 and end < UNITS:
            words(place[2], pairs.SIZE)[pairs.WAITED] = 1 if waits == 1 and turn >= LATE else 0


_all_sign = pairs.in_a_pair(_sign, 0)


def _signing(kind, tiled, sources):
    def signing(address):
        if buffers(address)[0].size > 0:
            _all_sign(address, kind)
        return 0 * sources

    return signing


def signed(halves, waits=0, make=_signing):
    """Returns who had which units, and what the other saw."""
    name = registered(make, np.float64, False)
    shape = jax.ShapeDtypeStruct((TURNS, UNITS), int)
    call = jax.ffi.ffi_call(name, (shape, shape))
    who, seen = jax.jit(lambda *a: call(*a, parts=np.int64(halves)))(np.zeros((1, 1)), np.full((1,), waits))
    return np.asarray(who).tolist(), np.asarray(seen).tolist()


two_cores = pytest.mark.skipif(usable_cores() < 2, reason="one core has no second thread")
ALL, HALF = [1, 1, 1, 1, 1], [1, 1, 2, 2, 2]


@exhaustive
@two_cores
def test_a_helper_takes_half_of_the_units_and_is_let_go():
    assert signed(1)[0] == [ALL] * TURNS
    who, seen = signed(2)
    assert who == [HALF] * TURNS  # it had joined before the first turn
    assert seen == [HALF[::-1]] * TURNS  # what the other one wrote before they met
    # It is asked to leave in turn LATE + 1, which it may have begun, and every second time that happens at first, the
    # next operation runs alone; then three, then seven.
    helped = [signed(2, waits=1)[0] for _ in range(9)]
    parted = [HALF] * (LATE + 2) + [ALL] * (TURNS - LATE - 2)
    alone = [ALL] * TURNS
    assert helped == [parted, parted, alone, parted, alone, alone, alone, parted, alone]


@compiled
def _at_once(frame_address, helper, address, who):
    """Does what XLA does when its threads have too much to do: the one who asks is the helper."""
    add(address + pairs.OWNERS * BYTES, 1)
    call(helper, address + who)
    return True


@compiled
def _sign_at_once(w, ins, outs, kind, place):
    _sign(w, ins, outs, kind, place)


_all_sign_at_once = pairs.in_a_pair(_sign_at_once, 0)


def _signing_at_once(kind, tiled, sources):
    def signing_at_once(address):
        if buffers(address)[0].size > 0:
            _all_sign_at_once(address, kind)
        return 0 * sources

    return signing_at_once


def test_a_helper_that_the_caller_has_to_run_itself_leaves(monkeypatch):
    monkeypatch.setattr(pairs, "schedule", _at_once)
    monkeypatch.setattr(pairs, "_ask", compiled(pairs._ask.py_func))  # which is compiled with the other one
    for _ in range(3):
        assert signed(2, make=_signing_at_once)[0] == [ALL] * TURNS


def test_lanes_of_which_no_helper_comes_do_not_ask_for_ever(monkeypatch):
    shared, expected = np.zeros(pairs.SIZE, np.int64), np.zeros(1, np.int64)
    for answer in (True, False):
        monkeypatch.setattr(pairs, "schedule", compiled(lambda frame_address, helper, address, who, answer=answer: answer))
        ask = callable_here(pairs._ask)
        for _ in range(pairs.MOST + 5):
            ask(0, 0, shared.ctypes.data, expected.ctypes.data)
        assert expected.tolist() == [pairs.MOST if answer else 0]
        expected[:] = 0


@pytest.mark.parametrize("first, helps", [(pairs.NEVER, False), (7, True)])
@pytest.mark.parametrize("is_caller", [False, True])
def test_a_helper_joins_another_thread_that_still_runs(is_caller, first, helps):
    shared, expected = np.zeros(pairs.SIZE, np.int64), np.full(1, 3, np.int64)
    caller = callable_here(lambda: this_thread())()
    shared[pairs.EXPECTED], shared[pairs.FIRST] = expected.ctypes.data, first
    shared[pairs.CALLER] = caller if is_caller else caller + 1
    assert callable_here(pairs._join)(shared.ctypes.data) == (helps and not is_caller)
    assert shared[pairs.JOINED] == (not is_caller) and expected.tolist() == [2]
