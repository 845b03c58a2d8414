"""Devices, processes and seeds change where and when things are computed, and nothing else. Programs in processes of their
own (tests/parallel_runs.py): virtual devices must be asked for before jax starts."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import tbptt
from tbptt.parallel.mesh import lane_specs
from tests.parallel_runs import CASES, UPDATES, B

ROOT = Path(__file__).parents[1]
PATIENCE = 240  # seconds for a program of about 30, on a busy machine


def start(devices: int, *arguments: str) -> subprocess.Popen:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    # NPROC: threads of XLA's pool. With one a core, eight devices that wait for each other can leave none to go on with.
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "0", "NPROC": "16"}
    command = [sys.executable, "-m", "tests.parallel_runs", *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def ended(*processes: subprocess.Popen) -> list[str]:
    """Waits for all; when one fails or takes too long, none is left behind."""
    try:
        said = [process.communicate(timeout=PATIENCE)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for process, text in zip(processes, said, strict=True):
        assert process.returncode == 0, text[-3000:]
    return said


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("parallel")


@pytest.fixture(scope="module")
def one(folder):
    try:
        ended(start(8, "one_process", str(folder)))
    except AssertionError as error:
        if "Termination timeout" not in str(error):
            raise
        # XLA gives up when virtual devices have not met for 40 seconds, as on a busy machine: seen once in six runs.
        ended(start(8, "one_process", str(folder)))
    return json.loads((folder / "one_process.json").read_text())


@pytest.fixture(scope="module")
def two(one, folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ended(*(start(2, "two_processes", str(folder), port, str(i)) for i in range(2)))
    return [json.loads((folder / f"two_processes-{i}.json").read_text()) for i in range(2)]


def assert_alive(losses):
    """Fifty losses that move: equality of anything else would prove nothing."""
    assert len(losses) == UPDATES and np.isfinite(losses).all() and np.std(losses) > 1e-2 * abs(np.mean(losses))


@pytest.mark.parametrize("name", [*CASES, "truncated, float64"])
def test_eight_devices_have_the_losses_of_one(one, name):
    losses = one["losses"][name]
    assert_alive(losses["one device"])
    np.testing.assert_allclose(losses["devices"], losses["one device"], rtol=1e-12 if "float64" in name else 1e-5)


def test_two_processes_have_the_losses_of_one(one, two):
    assert [p["started"] for p in two] == [[0, 2], [1, 2]] and [p["own"] for p in two] == [[0, B // 2], [B // 2, B]]
    for process in two:
        np.testing.assert_allclose(process["losses"], one["losses"]["truncated"]["one device"], rtol=1e-5)
        want = one["losses"]["truncated, float64"]["one device"]
        np.testing.assert_allclose(process["losses, float64"], want, rtol=1e-12)


def test_a_run_goes_on_with_other_devices(one, two):
    """1 -> 8 -> 2 devices; and 1 -> two processes of 2 -> the same two, started afresh."""
    want = one["losses"]["truncated"]["one device"]
    np.testing.assert_allclose(one["resumed"], want, rtol=1e-5)
    for process in two:
        np.testing.assert_allclose(process["resumed"], want[15:], rtol=1e-5)


def moved(found):
    """(all-reduces outside loops, inside loops) of more than one number: a loss is one."""
    sizes = [(looped, size) for kind, looped, size in found if kind == "all-reduce" and size > 2]
    return sum(not looped for looped, _ in sizes), sum(looped for looped, _ in sizes)


@pytest.mark.parametrize("name", CASES)
def test_nothing_but_gradients_moves_between_devices(one, name):
    assert {kind for kind, _, _ in one["collectives"][name]} == {"all-reduce"}  # no lane is gathered or exchanged


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("full")])
def test_gradients_are_added_up_once_an_update(one, name):
    assert moved(one["collectives"][name]) == (1, 0)


def test_overlapping_windows_add_up_outside_loops(one):
    """Once in each branch (a whole past, a young one), once for what the young one replays: none for every step."""
    assert moved(one["collectives"]["truncated"]) == (3, 0)


def test_left_to_xla_they_are_not(one):
    """What `over_lanes` is for; and that the counting can see it."""
    kinds = {kind for kind, _, _ in one["left to XLA"]["full"]}
    assert "all-gather" in kinds
    assert moved(one["left to XLA"]["full, a cell without a derived backward pass"])[1] > 0


@pytest.mark.parametrize("where", ["one device", "devices"])
def test_seeds_side_by_side_are_the_runs_alone(one, where):
    together, alone = np.array(one["seeds"][where]["together"]), np.array(one["seeds"]["one device"]["alone"])
    np.testing.assert_allclose(together[:2], alone[:2], rtol=1e-5)  # whatever became of the third
    assert np.isfinite(together[:2]).all() and not np.isfinite(together[2, 1:]).any()
    assert not np.allclose(together[0], together[1], rtol=1e-3)


def test_lanes_are_found_by_structure():
    """A leaf that is as long as there are lanes is not one of lanes; one that holds lanes twice over is."""

    def make(lanes):
        shape = jax.ShapeDtypeStruct
        return {
            name: shape(s, float)
            for name, s in {
                "params": (B, B),
                "carry": (lanes, 3),
                "past": (7, lanes, 2),
                "both": (2 * lanes,),
                "count": (),
                "odd": (lanes + 1,),
            }.items()
        }

    none, first, second = PartitionSpec(), PartitionSpec("lanes"), PartitionSpec(None, "lanes")
    want = {"params": none, "carry": first, "past": second, "both": first, "count": none, "odd": none}
    assert lane_specs(make, B) == want


def test_errors_name_both_numbers_and_the_remedy():
    mesh = tbptt.lane_mesh(1)
    batch = tbptt.Batch(np.zeros((4, 3, 2)), np.zeros((4, 3, 1)))
    with pytest.raises(ValueError, match=r"devices must be an int between 1 and 1.*got devices=3.*split_cpu\(3\)"):
        tbptt.lane_mesh(3)
    with pytest.raises(ValueError, match=r"batch\.targets must be \[T, B, \.\.\.\].*got shape \(4,\)"):
        tbptt.put_lanes(batch._replace(targets=np.zeros(4)), mesh)
    with pytest.raises(ValueError, match=r"equally many lanes.*'batch\.inputs': 3, 'batch\.targets': 2"):
        tbptt.put_lanes(batch._replace(targets=np.zeros((4, 2))), mesh)
    with pytest.raises(ValueError, match=r"missing: number, index"):
        tbptt.start_processes("127.0.0.1:1")
    with pytest.raises(ValueError, match=r"index=2, number=2.*from 0"):
        tbptt.start_processes("127.0.0.1:1", 2, 2)
    assert list(tbptt.own_lanes(3, mesh)) == [0, 1, 2]


def test_a_cpu_is_split_before_jax_starts_or_not_at_all():
    with pytest.raises(RuntimeError, match="has started with 1, not 2: call split_cpu first of all"):
        tbptt.split_cpu(2)
    assert tbptt.split_cpu(1) == 1  # it is what it should be
    for wrong in (0, True):
        with pytest.raises(ValueError, match=f"int >= 1, or None for one a core; got devices={wrong}"):
            tbptt.split_cpu(wrong)
    program = "import tbptt, jax; print(tbptt.split_cpu(), jax.device_count())"
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    cores = str(len(os.sched_getaffinity(0)))
    assert run.stdout.split() == [cores, cores], run.stderr


def test_many_updates_under_way_do_not_lock_each_other():
    """As many devices as cores, and nobody who looks at a number between 800 updates. Left to themselves they locked, three
    times of three; XLA ends such a process after 40 seconds."""
    program = """
import tbptt; tbptt.split_cpu(2)
from benchmarks.systems import ours, work
case = work.Case("", 100, 50, 32, 32, 128)
form = ours.forms_on_cores(case, work.draw_weights(case), work.draw_data(case))["per chunk"]
for _ in range(8):
    form.block(form.epoch(form.begin()))
print("done")
"""
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert run.stdout == "done\n", run.stderr[-2000:]


def test_lanes_that_cannot_be_dealt_out_are_refused(one):
    assert one["refused"] == [
        "B lanes must be a multiple of the devices; got B=12 lanes on 8 devices. Take B=8 or 16, or devices=6",
        "B lanes must be a multiple of the devices; got B=4 lanes on 8 devices. Take B=8, or devices=4",
    ]
