"""Sharded loops equal unsharded ones, for any timing of the threads."""

import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tbptt.backends.numba_cpu import threads, unroll
from tbptt.backends.numba_cpu.threads import add, yield_thread
from tbptt.backends.numba_cpu.xla_ffi import buffers, compiled, registered, words
from tbptt.cells import GRU, LSTM
from tests.support.problems import assert_same, plain_reference, problem, with_gradients

D, H, T = 3, 6, 12


@pytest.fixture
def three_shards(monkeypatch):
    """Use three shards for any three batch rows."""
    monkeypatch.setattr(threads, "cores_per_device", lambda: 3)
    monkeypatch.setattr(threads, "ROWS_PER_THREAD", 1)
    monkeypatch.setattr(threads, "PRODUCTS_PER_THREAD", 1)


@pytest.mark.parametrize(
    ("make", "rows"),
    [
        (LSTM, 7),
        pytest.param(LSTM, 2, marks=pytest.mark.exhaustive),
        pytest.param(GRU, 26, marks=pytest.mark.exhaustive),
    ],
)
def test_shards_equal_plain_unroll(make, rows, three_shards):
    cell = make(D, H)
    params, carry, xs, given = problem(cell, (rows,), T)

    ours = with_gradients(lambda *a: unroll(cell, *a, **given))
    assert_same(ours(params, carry, xs), plain_reference(cell, (rows,), T))
    text = ours.lower(params, carry, xs).as_text()
    assert f"shards = {min(rows, 3)} : i64" in text


def test_concurrent_calls_agree_exactly(three_shards, monkeypatch):
    """Batch rows are independent, so 400 concurrent calls agree for any number of shards."""
    cell = LSTM(D, H)
    params, carry, xs, given = problem(cell, (8,), T)

    def gradient(params, scale):
        return jax.grad(lambda p: jnp.sum(jnp.sin(scale * unroll(cell, p, carry, xs, **given)[1])))(
            params
        )

    in_three_shards = jax.jit(gradient)
    scales = np.linspace(0.5, 2, 400)
    with ThreadPoolExecutor(4) as pool:
        got = list(
            pool.map(lambda scale: jax.block_until_ready(in_three_shards(params, scale)), scales)
        )
    monkeypatch.setattr(threads, "cores_per_device", lambda: 1)
    in_one_shard = jax.jit(lambda params, scale: gradient(params, scale))
    assert "shards = 1 : i64" in in_one_shard.lower(params, scales[0]).as_text()
    for each, scale in zip(got, scales, strict=True):
        jax.tree.map(np.testing.assert_array_equal, each, in_one_shard(params, scale))


def test_thread_count(monkeypatch):
    monkeypatch.setattr(threads, "cores_per_device", lambda: 4)
    enough = threads.PRODUCTS_PER_THREAD
    assert [threads.thread_count(rows, enough) for rows in (1, 7, 8, 12, 16, 64)] == [
        1,
        1,
        2,
        3,
        4,
        4,
    ]
    assert [threads.thread_count(16, products * enough // 16) for products in (0, 1, 2, 3, 9)] == [
        1,
        1,
        2,
        3,
        4,
    ]


def test_cores_per_device(monkeypatch):
    for cores, devices, of_each in ((8, 2, 4), (2, 2, 1), (3, 2, 1), (1, 4, 1)):
        monkeypatch.setattr(
            os, "sched_getaffinity", lambda _, cores=cores: set(range(cores)), raising=False
        )
        monkeypatch.setattr(jax, "local_device_count", lambda devices=devices: devices)
        assert threads.cores_per_device() == of_each


@compiled
def _meet(w, ins, outs, dtype, shard):
    """Wait, with a limit, until all shards have begun; write whether they have to the output."""
    index, count = shard
    begun, out = words(ins[1], 6)[3], words(words(outs[0], 6)[3], count)
    add(begun, 1)
    waited = 0
    while add(begun, 0) < count and waited < 2_000_000:
        yield_thread()
        waited += 1
    out[index] = add(begun, 0) if waited < 2_000_000 else -1


_all_meet = threads.sharded(_meet, 0)


def _meeting(dtype, packed, checksum):
    def meeting(address):
        ins, _ = buffers(address)
        if ins.size > 0:
            _all_meet(address, dtype)
        return 0 * checksum

    return meeting


@pytest.mark.skipif(threads.cores_per_device() < 2, reason="one core has no second thread")
def test_shards_run_concurrently():
    name = registered(_meeting, np.float64, True)
    weights, begun = np.zeros((1, 1, 1)), np.zeros((1,), int)
    call = jax.ffi.ffi_call(name, jax.ShapeDtypeStruct((2,), int))
    assert jax.jit(lambda *a: call(*a, shards=np.int64(2)))(weights, begun).tolist() == [2, 2]


def test_offsets_match_the_header_of_xla():
    header = Path(jax.ffi.include_dir(), "xla/ffi/api/c_api.h").read_text()
    table = re.search(r"struct XLA_FFI_Api \{(.*?)\n\};", header, re.DOTALL).group(1)
    fields = re.findall(r"_XLA_FFI_API_STRUCT_FIELD\((\w+)\)", table)
    before = 6  # size, extension, version (three words), internal
    assert fields.index("XLA_FFI_ThreadPool_Schedule") + before == threads.SCHEDULE
    assert fields.index("XLA_FFI_Error_Destroy") + before == threads.ERROR_DESTROY
    frame = re.search(r"struct XLA_FFI_CallFrame \{(.*?)\n\};", header, re.DOTALL).group(1)
    assert re.findall(r"^  [\w* ]+?\b(\w+);", frame, re.MULTILINE)[:4] == [
        "struct_size",
        "extension_start",
        "api",
        "ctx",
    ]
