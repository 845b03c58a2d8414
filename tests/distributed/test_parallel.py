"""Devices, processes and seeds change where and when things are computed, and nothing else. Programs in processes of their
own (tests/support/parallel_runs.py): virtual devices must be asked for before jax starts."""

import inspect
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

import tbptt
from tbptt.distributed import mesh as mesh_module
from tbptt.distributed.mesh import batch_specs, check_divisible
from tests.support.parallel_runs import CASES, FEW, SPLITS, UPDATES, B

ROOT = Path(__file__).parents[2]
PATIENCE = 600  # seconds for a program of about 60, on a busy machine
exhaustive = pytest.mark.exhaustive


def start(devices: int | None, *arguments: str) -> subprocess.Popen:
    """None: the program splits the CPU itself."""
    flags = os.environ.get("XLA_FLAGS", "")
    flags += f" --xla_force_host_platform_device_count={devices}" if devices else ""
    # NPROC: threads of XLA's pool. With one a core, eight devices that wait for each other can leave none to go on with.
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "1", "NPROC": "16"}
    command = [sys.executable, "-m", "tests.support.parallel_runs", *arguments]
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


def found_by(folder, devices, program):
    try:
        ended(start(devices, program, str(folder)))
    except AssertionError as error:
        if "Termination timeout" not in str(error):
            raise
        # XLA gives up when virtual devices have not met for 40 seconds, as on a busy machine: seen once in six runs.
        ended(start(devices, program, str(folder)))
    return json.loads((folder / f"{program}.json").read_text())


@pytest.fixture(scope="module")
def small(folder):
    return found_by(folder, None, "two_devices")


@pytest.fixture(scope="module")
def one(folder):
    return found_by(folder, 8, "one_process")


@pytest.fixture(scope="module")
def two(one, folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ended(*(start(2, "two_processes", str(folder), port, str(i)) for i in range(2)))
    return [json.loads((folder / f"two_processes-{i}.json").read_text()) for i in range(2)]


def assert_alive(losses, updates=UPDATES):
    """Losses that move: equality of anything else would prove nothing."""
    assert len(losses) == updates and np.isfinite(losses).all() and np.std(losses) > 1e-2 * abs(np.mean(losses))


def test_two_devices_have_the_losses_of_one(small):
    assert small["split"] == [2, 2]
    assert_alive(small["alone"][0], FEW)
    np.testing.assert_allclose(small["devices"], small["alone"][0], rtol=1e-12)


@exhaustive
@pytest.mark.parametrize("name", [*CASES, "truncated, float32"])
def test_eight_devices_have_the_losses_of_one(one, name):
    losses = one["losses"][name]
    assert_alive(losses["one device"])
    np.testing.assert_allclose(losses["devices"], losses["one device"], rtol=1e-5 if "float32" in name else 1e-12)


@exhaustive
def test_two_processes_have_the_losses_of_one(one, two):
    assert [p["started"] for p in two] == [[0, 2], [1, 2]] and [p["own"] for p in two] == [[0, B // 2], [B // 2, B]]
    for process in two:
        np.testing.assert_allclose(process["losses"], one["losses"]["truncated"]["one device"], rtol=1e-12)


@exhaustive
def test_a_run_goes_on_with_other_devices(one, two):
    """1 -> 8 devices -> two processes of 2 -> the same two, started afresh."""
    want = one["losses"]["truncated"]["one device"]
    np.testing.assert_allclose(one["resumed"], want[: SPLITS[1]], rtol=1e-12)
    for process in two:
        np.testing.assert_allclose(process["resumed"], want[SPLITS[1] :], rtol=1e-12)


def moved(found):
    """(all-reduces outside loops, inside loops) of more than one number: a loss is one."""
    sizes = [(looped, size) for kind, looped, size in found if kind == "all-reduce" and size > 2]
    return sum(not looped for looped, _ in sizes), sum(looped for looped, _ in sizes)


@exhaustive
@pytest.mark.parametrize("name", CASES)
def test_nothing_but_gradients_moves_between_devices(one, name):
    assert {kind for kind, _, _ in one["collectives"][name]} == {"all-reduce"}  # no lane is gathered or exchanged


@exhaustive
@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("full")])
def test_gradients_are_added_up_once_an_update(one, name):
    assert moved(one["collectives"][name]) == (1, 0)


def test_overlapping_windows_add_up_outside_loops(small):
    """Once in each branch (a whole past, a young one), once for what the young one replays: none for every step."""
    assert {kind for kind, _, _ in small["collectives"]} == {"all-reduce"}
    assert moved(small["collectives"]) == (3, 0)


@exhaustive
def test_left_to_xla_they_are_not(one):
    """What `sharded_loss` is for; and that the counting can see it."""
    kinds = {kind for kind, _, _ in one["left to XLA"]["full"]}
    assert "all-gather" in kinds
    assert moved(one["left to XLA"]["full, a cell without a derived backward pass"])[1] > 0


def assert_runs_alone(together, alone):
    together, alone = np.array(together), np.array(alone)
    np.testing.assert_allclose(together[:2], alone[:2], rtol=1e-12)  # whatever became of the third
    assert np.isfinite(together[:2]).all() and not np.isfinite(together[2, 1:]).any()
    assert not np.allclose(together[0], together[1], rtol=1e-3)


def test_seeds_side_by_side_on_two_devices_are_the_runs_alone(small):
    assert_runs_alone(small["together"], small["alone"])


@exhaustive
@pytest.mark.parametrize("where", ["one device", "devices"])
def test_seeds_side_by_side_are_the_runs_alone(one, where):
    assert_runs_alone(one["together"][where], one["alone"])


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
    assert batch_specs(make, B) == want


def test_errors_name_both_numbers_and_the_remedy():
    mesh = tbptt.distributed.batch_mesh(1)
    batch = tbptt.Batch(np.zeros((4, 3, 2)), np.zeros((4, 3, 1)))
    with pytest.raises(ValueError, match=r"devices must be an int between 1 and 1.*got devices=3.*split_cpu\(3\)"):
        tbptt.distributed.batch_mesh(3)
    with pytest.raises(ValueError, match=r"batch\.targets must be \[T, B, \.\.\.\].*got shape \(4,\)"):
        tbptt.distributed.put_batch(batch._replace(targets=np.zeros(4)), mesh)
    with pytest.raises(ValueError, match=r"equally many lanes.*'batch\.inputs': 3, 'batch\.targets': 2"):
        tbptt.distributed.put_batch(batch._replace(targets=np.zeros((4, 2))), mesh)
    with pytest.raises(ValueError, match=r"missing: number, index"):
        tbptt.distributed.start_processes("127.0.0.1:1")
    with pytest.raises(ValueError, match=r"index=2, number=2.*from 0"):
        tbptt.distributed.start_processes("127.0.0.1:1", 2, 2)
    assert list(tbptt.distributed.local_rows(3, mesh)) == [0, 1, 2]


def test_a_cpu_is_split_before_jax_starts_or_not_at_all(monkeypatch):
    with pytest.raises(RuntimeError, match="has started with 1, not 2: call split_cpu first of all"):
        tbptt.distributed.split_cpu(2)
    assert tbptt.distributed.split_cpu(1) == 1  # it is what it should be
    for wrong in (0, True):
        with pytest.raises(ValueError, match=f"int >= 1, or None for one a core; got devices={wrong}"):
            tbptt.distributed.split_cpu(wrong)
    monkeypatch.setattr(mesh_module, "usable_cores", lambda: 3)
    with pytest.raises(RuntimeError, match="has started with 1, not 3"):
        tbptt.distributed.split_cpu()  # as many as cores


@exhaustive
def test_a_cpu_is_split_into_its_cores():
    program = "import tbptt, jax; print(tbptt.distributed.split_cpu(), jax.device_count())"
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    cores = str(len(os.sched_getaffinity(0)))
    assert run.stdout.split() == [cores, cores], run.stderr


@exhaustive
def test_many_updates_under_way_do_not_lock_each_other():
    """As many devices as cores, and nobody who looks at a number between 800 updates. Left to themselves they locked, three
    times of three; XLA ends such a process after 40 seconds."""
    program = """
import tbptt; tbptt.distributed.split_cpu(2)
from benchmarks.systems import ours, work
case = work.Case("", 100, 50, 32, 32, 128)
form = ours.forms_on_cores(case, work.draw_weights(case), work.draw_data(case))["per chunk"]
for _ in range(8):
    form.block(form.epoch(form.begin()))
print("done")
"""
    run = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE)
    assert run.stdout == "done\n", run.stderr[-2000:]


def refusal(lanes, devices, take, fit):
    what = f"B lanes must be a multiple of the devices; got B={lanes} lanes on {devices} devices."
    return f"{what} Take B={take}, or devices={fit}"


def test_lanes_that_cannot_be_dealt_out_are_refused(small):
    assert small["refused"] == [refusal(3, 2, "2 or 4", 1), refusal(1, 2, "2", 1)]
    check = inspect.unwrap(check_divisible)
    for lanes, devices, take, fit in ((12, 8, "8 or 16", 6), (4, 8, "8", 4), (0, 1, "1", 1)):
        with pytest.raises(ValueError) as caught:
            check(lanes, SimpleNamespace(size=devices))
        assert str(caught.value) == refusal(lanes, devices, take, fit)
    check(16, SimpleNamespace(size=8))


@exhaustive
def test_they_are_refused_on_eight_devices_too(one):
    assert one["refused"] == [refusal(12, 8, "8 or 16", 6), refusal(4, 8, "8", 4)]
